"""Extraction of region and global features: backends, the writer, the feature file, drawing."""
