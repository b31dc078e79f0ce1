"""A trace made in parts: what becomes of the parts, and of what else lies beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from headscope.models import ImageModel
from headscope.pipeline import RunFolder, Settings, shards
from headscope.pipeline.run import begin
from headscope.pipeline.settings import Crew
from headscope.pipeline.steps import trace_step

PROMPTS = ["red apple", "dog", "blue car"]


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_become_the_trace_beside_what_is_the_users(
    tiny: ImageModel, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(shards, "spread", lambda job, each, crew, done: [job(*one) for one in each])
    settings = Settings(keep=None)
    folders = [RunFolder(tmp_path / name) for name in ("shards", "whole")]
    for folder in folders:
        begin(tiny, str(tiny_folder), folder, (PROMPTS, ["red car"]), settings)
    for name in ("trace/thesis.txt", "trace-shards/thesis.txt"):
        (folders[0].path / name).parent.mkdir()
        (folders[0].path / name).write_text("years of work")
    made = shards.trace_in_shards(tiny, folders[0], PROMPTS, settings, Crew(workers=workers))
    whole = trace_step(tiny, folders[1], PROMPTS, settings)
    assert made.heads().equals(whole.heads())
    assert sorted(path.name for path in made.path.iterdir()) == sorted(
        ["thesis.txt", *(path.name for path in whole.path.iterdir())]
    )
    assert [path.name for path in (folders[0].path / "trace-shards").iterdir()] == ["thesis.txt"]
