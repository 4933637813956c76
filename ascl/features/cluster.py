"""The same extraction on several machines or GPUs: parts are computed by actors of Ray Data (extra `scale`).

Ray places the actors, hands out the parts, and gives a part to another actor where a machine dies. Every machine needs
this package and sees the images and the output under the same path (a network disk).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ascl.errors import DataError
from ascl.features.writer import Backend, Plan, compute_parts


def on_ray(
    make_backend: Callable[[], Backend], *, actors: int | None = None, gpus: float = 0
) -> Callable[[Plan, Sequence[range], tqdm], float]:
    """What `extract` takes as `compute` to run on the Ray cluster at hand, or on this machine where there is none.

    Args:
        make_backend: called once in each actor, on its machine; has to give the backend that `extract` was given.
        actors: number of backends at work at a time; None = as many as Ray finds room for.
        gpus: of each actor.

    Raises:
        DataError: Ray is not installed. From the result: whatever `compute_parts` finds wrong in an actor.
    """
    ray = import_ray()

    def compute(plan: Plan, spans: Sequence[range], bar: tqdm) -> float:
        if not spans:
            return 0.0
        if not ray.is_initialized():
            ray.init(logging_level="warning", log_to_driver=False)
        parts = ray.data.from_items([{"start": span.start, "stop": span.stop} for span in spans])
        most = actors or max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1) / (gpus or 1)))
        done = parts.repartition(len(spans)).map_batches(
            PartActor,
            fn_constructor_args=(make_backend, plan),
            batch_size=1,
            num_gpus=gpus or None,
            num_cpus=0 if gpus else 1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(spans))),
        )
        waited = 0.0
        for part in done.iter_rows():
            if part["error"]:
                raise DataError(str(part["error"]))
            bar.update(int(part["images"]))
            waited += float(part["waited"])
        return waited

    return compute


class PartActor:
    """One backend on one machine. An error of the user's data comes back as a row: raised, Ray would try it again."""

    def __init__(self, make_backend: Callable[[], Backend], plan: Plan) -> None:
        self.backend, self.plan = make_backend(), plan

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        span = range(int(batch["start"][0]), int(batch["stop"][0]))
        silent = tqdm(disable=True)
        try:
            waited, error = compute_parts(self.backend, self.plan, [span], silent), ""
        except DataError as wrong:
            waited, error = 0.0, str(wrong)
        return {"images": [len(span)], "waited": [waited], "error": [error]}


def import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DataError(f"--engine ray needs Ray Data ({error}): pip install 'ascl[scale]'") from error
    return ray
