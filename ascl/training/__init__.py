"""How any run trains: it begins in `run`, `loop` takes its steps, `checkpoints` keeps its folder.

Beside them batches, optimizer, schedule and log. What is trained comes as callables.
"""
