"""Descriptors of images for copy detection: networks, teachers, the perceptual hash, extraction and files."""
