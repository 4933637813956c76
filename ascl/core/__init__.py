"""The bottom layer: errors, atomic files, checkpoints, provenance, processes, signals, tensor helpers. No models."""
