"""Image copy detection: descriptors, edits, evaluation, search (SSCD, RDCD, ASL)."""
