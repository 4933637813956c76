"""Extraction on several machines or GPUs: actors of Ray Data compute the parts (extra `scale`).

Ray places the actors, hands out the parts, and reassigns a part if a machine dies. Every machine needs this package
and must see the images and the output under the same path (a network disk).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.features.writer import Backend, Plan, Worked, compute_parts


def on_ray(
    make_backend: Callable[[], Backend], *, actors: int | None = None, gpus: float | None = None
) -> Callable[[Plan, Sequence[range], tqdm], Worked]:
    """Return a `compute` for `extract` that runs on the Ray cluster, or on this machine if there is none.

    Args:
        make_backend: called once in each actor, on its machine; must return the backend that `extract` was given.
        actors: number of backends that work at a time; None = as many as the cluster has room for.
        gpus: GPUs per actor; None = one if the cluster has any.

    Raises:
        DataError: Ray is not installed. The returned function raises it for any DataError in an actor.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DataError(f"extraction with Ray needs Ray Data ({error}): pip install 'ascl[scale]'") from error

    def compute(plan: Plan, spans: Sequence[range], bar: tqdm) -> Worked:
        if not spans:
            return Worked(0.0, 0.0)
        if not ray.is_initialized():
            ray.init(logging_level=logging.WARNING, log_to_driver=False)
        resources = ray.cluster_resources()
        each = gpus if gpus is not None else float(resources.get("GPU", 0) >= 1)
        room = resources.get("GPU", 1) / each if each else resources.get("CPU", 1)
        parts = ray.data.from_items([{"start": span.start, "stop": span.stop} for span in spans])
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors or int(room), len(spans))))
        done = parts.repartition(len(spans)).map_batches(
            PartActor, fn_constructor_args=(make_backend, plan), batch_size=1, num_gpus=each or None,
            num_cpus=0 if each else 1, compute=pool,
        )
        busy = waited = 0.0
        for part in done.iter_rows():
            if part["error"]:
                raise DataError(str(part["error"]))
            bar.update(int(part["images"]))
            busy, waited = busy + float(part["busy"]), waited + float(part["waited"])
        return Worked(busy, waited)

    return compute


class PartActor:
    """One backend on one machine. It returns a DataError as a row, because Ray would retry one that is raised."""

    def __init__(self, make_backend: Callable[[], Backend], plan: Plan) -> None:
        self.backend, self.plan = make_backend(), plan

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        span = range(int(batch["start"][0]), int(batch["stop"][0]))
        try:
            worked, error = compute_parts(self.backend, self.plan, [span], tqdm(disable=True)), ""
        except DataError as wrong:
            worked, error = Worked(0.0, 0.0), str(wrong)
        return {"images": [len(span)], "busy": [worked.busy], "waited": [worked.waited], "error": [error]}
