"""Plots of finished runs and studies: their data, their drawing, one style. Metrics are computed elsewhere."""
