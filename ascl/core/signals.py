"""Stop a run cleanly: the first signal asks for a stop, a second one forces it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """A request to stop.

    Attributes:
        signal: name of the signal that asked, None until one does.
        time: when it came, by `time.monotonic`.
    """

    signal: str | None = None
    time: float = 0.0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Make the first SIGINT or SIGTERM only set `.signal`; one that comes over a second later has its usual effect.

    A second signal within that second is the same request: on Ctrl-C, a process started by torchrun gets the signal
    from the terminal and again from torchrun. Only the main thread may handle signals; in others nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.signal is None:
            stop.signal, stop.time = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - stop.time > 1:
            restore()
            signal.raise_signal(number)

    for number in usual:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
