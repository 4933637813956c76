"""Looking at models: evaluations, diagnostics, significance, probes, explanations, reports, figures, ablations.

Here belongs what reads trained models and the files of runs. Training, scoring and ranking themselves are below.
"""
