"""Drawing an evaluation's pictures in several processes: a batch is drawn by one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from headscope.evaluation.evaluate import Task
from headscope.models import load_model
from headscope.models.protocol import ImageModel
from headscope.pipeline.settings import Crew
from headscope.pipeline.workers import spread
from headscope.runtime import Sampling
from headscope.runtime.batches import draw_numbers


def draw_in_crew(
    tasks: Sequence[Task],
    prompts: Sequence[str],
    seeds: int,
    guidance: float | None,
    *,
    source: str,
    device: str,
    crew: Crew,
    done: Callable[[int, int], None],
) -> None:
    """Draw each task in one of the crew's processes; what was drawn before a stop stays.

    Args:
        source: where the model comes from. done: told how many of all tasks are finished.
    Raises:
        HeadscopeError: what a process raised.
    """
    each = [(source, device, task, list(prompts), seeds, guidance) for task in tasks]
    done(0, len(each))
    spread(_draw, each, crew, lambda finished: done(finished, len(each)))


def _draw(source: str, device: str, task: Task, prompts: list[str], seeds: int, guidance: float | None) -> str:
    model = _loaded(source, device, task.dtype)
    draw_numbers(model, task.variant, prompts, seeds, task.folder, task.numbers, Sampling(guidance))
    return str(task.folder)


@lru_cache(maxsize=2)
def _loaded(source: str, device: str, dtype: str) -> ImageModel:
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    return load_model(source, device=device, dtype=dtype)
