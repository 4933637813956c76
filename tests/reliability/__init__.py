"""Damaged inputs and killed commands, counted: `python -m tests.reliability`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")       # cases run in forked processes, where torch's threads are lost
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
