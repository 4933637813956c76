"""Training of descriptors: batches, objectives (SSCD, RDCD, ASL), validation, the run."""
