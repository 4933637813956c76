"""Analysis of trained models: evaluation, diagnostics, significance, probes, explanations, reports, figures, ablations.

Code that reads trained models and run files belongs here. Training, scoring and ranking are in rooms below.
"""
