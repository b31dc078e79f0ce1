"""A knob has one default: what an option says is what Python does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from headscope.cli.evaluate import evaluate
from headscope.cli.heads import heads
from headscope.cli.run import run
from headscope.cli.search import search
from headscope.cli.sensitivity import sensitivity
from headscope.cli.trace import trace
from headscope.evaluation import EvaluationConfig
from headscope.heads import HeadClassifier
from headscope.pipeline import sensitivity_step
from headscope.policy import parse_size
from headscope.runtime.generate import DEFAULT_BATCH
from headscope.tracing import Selection
from headscope.tuning import LimitConfig, PromptConfig, RunConfig, SearchConfig

SEARCH, PROMPTS, LIMIT, RUN = SearchConfig(), PromptConfig(), LimitConfig(), RunConfig(model="m")


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize("name", SearchConfig.model_fields)
def test_knobs_of_the_search(name: str) -> None:
    if name != "strides":  # which the command line leaves to the model's grid
        assert defaults(search)[name] == getattr(SEARCH, name)


def test_knobs_of_a_run() -> None:
    found = defaults(run)
    assert (found["trials"], found["quick"], found["seed"]) == (SEARCH.trials, SEARCH.quick, RUN.seed)
    assert (found["calibration"], found["unseen"]) == (PROMPTS.calibration, PROMPTS.unseen)
    assert (found["batch"], found["batch_size"]) == (LIMIT.batch, RUN.batch_size)
    assert RUN.batch_size == DEFAULT_BATCH
    assert {name: defaults(trace)[name] for name in ("calibration", "unseen", "batch_size", "seed", "guidance")} == {
        **{name: found[name] for name in ("calibration", "unseen", "batch_size", "seed")},
        "guidance": RUN.guidance,
    }


def test_knobs_beside_the_search() -> None:
    step, option = defaults(sensitivity_step), defaults(sensitivity)
    assert all(option[name] == step[name] for name in ("images", "stride", "seed"))
    judge, option = HeadClassifier(), defaults(heads)
    assert (option["method"], option["clusters"], option["threshold"]) == (
        judge.method,
        str(judge.n_clusters),
        judge.threshold,
    )
    config, option = EvaluationConfig(), defaults(evaluate)
    assert (option["seeds"], option["guidance"], parse_size(option["memory"])) == (config.seeds, config.guidance, config.memory)
    chosen, option = Selection(), defaults(trace)
    assert (option["every"], option["bands"], option["full"]) == (chosen.every, chosen.band_count, chosen.full)
