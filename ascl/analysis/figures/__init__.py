"""Plots of finished runs: their data, their drawing, one style."""
