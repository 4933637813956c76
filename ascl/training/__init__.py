"""Training, for both halves: `run` starts a run, `loop` takes its steps, `checkpoints` manages its folder.

Batches, optimizer, schedule and log are here too. Model and loss come from the caller, as callables.
"""
