"""Descriptors of images for copy detection: networks, teachers, extraction, files, the perceptual hash."""
