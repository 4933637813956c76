"""Captions, feature stores and training pairs. `datasets` gets data sets, `samples` generates samples."""
