"""The ground floor: errors, atomic files, checkpoints, provenance, processes, signals, tensor helpers; no models."""
