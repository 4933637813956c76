"""Plots of finished runs and studies, in one style: data sources and drawing. Metrics are computed elsewhere."""
