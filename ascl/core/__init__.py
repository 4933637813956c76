"""The ground floor: errors, atomic files, checkpoints, provenance, process groups, tensor helpers; no models."""
