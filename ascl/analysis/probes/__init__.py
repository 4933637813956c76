"""Probes of asymmetry: variants of captions that say something false, more, or less, and their order."""
