"""Training of descriptors: data, batches, objectives (SSCD, RDCD, ASL), validation, and the run."""
