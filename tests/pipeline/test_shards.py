"""A trace made in parts: what becomes of the parts, and of what else lies beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from headscope.pipeline import begin_run, shards
from headscope.pipeline.steps import trace_step
from headscope.pipeline.workers import Workers
from headscope.tuning import PromptConfig, RunConfig

PROMPTS = ["red apple", "dog", "blue car"]


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_become_the_trace_beside_what_is_the_users(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(shards, "map_tasks", lambda job, each, workers, done: [job(*one) for one in each])
    texts = [PROMPTS[0], "red car", PROMPTS[1], "a red car", PROMPTS[2]]
    config = RunConfig(model=str(tiny_folder), prompts=PromptConfig(texts=texts, unseen=1))  # type: ignore[arg-type]
    runs = [begin_run(config, tmp_path / name, limited=False) for name in ("shards", "whole")]
    folders = [run.folder for run in runs]
    for name in ("trace/thesis.txt", "trace-shards/thesis.txt"):
        (folders[0].path / name).parent.mkdir()
        (folders[0].path / name).write_text("years of work")
    made = shards.trace_in_shards(runs[0], Workers(workers))
    whole = trace_step(runs[1])
    assert made.heads().equals(whole.heads())
    assert sorted(path.name for path in made.path.iterdir()) == sorted(
        ["thesis.txt", *(path.name for path in whole.path.iterdir())]
    )
    assert [path.name for path in (folders[0].path / "trace-shards").iterdir()] == ["thesis.txt"]
