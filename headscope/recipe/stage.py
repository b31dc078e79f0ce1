"""A stage of training a transformer: by its steps or the clock, with a log, test losses and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headscope.recipe import checkpoint, parallel
from headscope.recipe.bf16 import Compiled
from headscope.recipe.course import Course
from headscope.recipe.csv_log import Journal
from headscope.recipe.feed import Compose, Feed
from headscope.recipe.muon import MuonAdam
from headscope.recipe.pace import Pace, find_speed, turn_on
from headscope.recipe.plan import Plan
from headscope.recipe.presets import Preset

# The learning rate is constant until this share of the run, then falls to zero; a later stage has less to find out before.
DECAY_FROM, DECAY_FROM_LATER = 0.65, 0.2
WARM_STEPS = 40

Losses = Callable[[dict[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Lesson:
    """What is learned.

    Attributes:
        parts: what learns; its names are those of the checkpoint.
        decoder: the Llama decoder in it.
        loss_of: loss of a batch.
        compose: batches, by step.
        tests: name -> loss on images that are the same throughout.
        decay_from: share of the run until which the learning rate is constant; then it falls to zero.
    """

    parts: nn.Module
    decoder: Any
    loss_of: Losses
    compose: Compose
    tests: Mapping[str, Callable[[], float]]
    decay_from: float = DECAY_FROM


def rate_factor(done: float, step: int, decay_from: float = DECAY_FROM) -> float:
    """Learning rate as a share of its peak, `done` being the share of the run behind us."""
    return min(1.0, (step + 1) / WARM_STEPS) * min(1.0, max(0.0, (1 - done) / (1 - decay_from)))


def train_stage(rank: int, preset: Preset, lesson: Lesson, plan: Plan) -> None:
    """Train, log to `transformer.csv`, checkpoint to `transformer.safetensors`; a stopped run goes on where it was."""
    parts = lesson.parts
    optimiser = MuonAdam(parts, preset.rate, preset.adam_rate)
    path = plan.folder / "transformer.safetensors"
    per_step = preset.batch * parallel.world()
    course = Course.of(plan, -(-(plan.images or preset.images) // per_step))
    facts = checkpoint.resume(parts, optimiser, path)
    course.go_on(facts)
    feed = Feed(lesson.compose, course, plan.device, plan.loaders)
    journal = Journal(plan.folder / "transformer.csv", rank, plan.lines, stage="transformer")
    pace = Pace(feed, preset.batch, plan.device)
    batch: dict[str, torch.Tensor] = {}
    compiled = Compiled(lesson.decoder, lambda: _try(parts, lesson.loss_of(batch))) if plan.compiled else None
    speed: Iterator[int] = iter(())
    if course.steps is None:
        speed = find_speed(course, pace, plan.trial, faster=compiled, tell=journal.note)
    elif compiled is not None and facts.get("compiled") == "yes":
        speed = turn_on(compiled)
    running = torch.zeros((), dtype=torch.float64)
    first, started = course.step, time.monotonic()
    saved = started
    for batch in feed:
        with pace.step():
            loss = _step(parts, optimiser, lesson.loss_of(batch), rate_factor(course.done, course.step, lesson.decay_from))
        # A number on the device, so that no step waits for it.
        running = loss.double() if course.step == first else 0.95 * running + 0.05 * loss.double()
        course.step += 1
        next(speed, None)
        over = course.over
        if over or course.due(course.step):
            losses = {name: test() for name, test in lesson.tests.items()} if rank == 0 else {}
            seconds = time.monotonic() - started
            journal.write(step=course.step, images=course.step * per_step, loss=running.item(), **losses,
                          images_a_second=(course.step - first) * per_step / seconds,
                          **({} if plan.loaders is None else pace.row()), seconds=seconds)  # fmt: skip
        if rank == 0 and (over or time.monotonic() - saved > plan.minutes_between_checkpoints * 60):
            more = {"compiled": "yes" if compiled is not None and compiled.on else "no"}
            checkpoint.save(parts, optimiser, path, course.facts() | more)
            saved = time.monotonic()
        if over:
            break


def _step(parts: nn.Module, optimiser: MuonAdam, loss: torch.Tensor, factor: float) -> torch.Tensor:
    """Learn from a loss; returns it."""
    loss.backward()
    parallel.average_gradients(optimiser.parameters)
    nn.utils.clip_grad_norm_(optimiser.parameters, 1.0)
    optimiser.step(factor)
    parts.zero_grad(set_to_none=True)
    return loss.detach()


def _try(parts: nn.Module, loss: torch.Tensor) -> None:
    """Forwards and backwards, without learning from it."""
    loss.backward()
    parts.zero_grad(set_to_none=True)
