"""The policies and losses of a run folder, by method and budget."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from headscope.errors import DataError
from headscope.evaluation import losses_of, policies_of
from headscope.pipeline.steps.paths import SearchPaths
from headscope.policy import Policy, save_policy
from headscope.run_folder import RunFolder
from tests.tiny import tiny_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was searched once, with one preset."""
    policy = Policy.uniform(tiny_model().shape, window=3, stride=4, prefix=5)
    (tmp_path / "search" / "presets").mkdir(parents=True)
    save_policy(policy, tmp_path / "policy.safetensors")
    save_policy(policy, tmp_path / "search" / "presets" / "h2o.safetensors")
    rows = [("full", 0.0, 9), ("searched", 0.1, 2), ("h2o", 0.2, 2)]
    pd.DataFrame(rows, columns=["method", "replay_kl", "cache_bytes"]).to_csv(tmp_path / "methods.csv", index=False)
    return tmp_path


@pytest.mark.parametrize(("text", "budget"), [("20%", "20"), ("0.2", "20"), ("7.5 %", "7.5"), ("0.07", "7")])
def test_policies_are_named_by_their_share_however_it_was_written(run: Path, text: str, budget: str) -> None:
    (run / "run.json").write_text(json.dumps({"limit": {"text": text}}))
    assert set(policies_of(run)) == {f"searched-{budget}", f"h2o-{budget}"}
    assert list(losses_of(run)["variant"]) == ["full", f"searched-{budget}", f"h2o-{budget}"]


def test_a_run_searched_for_a_size_is_refused(run: Path) -> None:
    (run / "run.json").write_text(json.dumps({"limit": {"text": "12MiB"}}))
    with pytest.raises(DataError, match="was searched with 12MiB"):
        policies_of(run)
    (run / "policy.safetensors").unlink()
    with pytest.raises(DataError, match="holds no policy yet"):
        policies_of(run)


def test_a_share_has_one_place_in_the_run(run: Path) -> None:
    folder = RunFolder(run)
    assert len({SearchPaths.at_share(folder, keep) for keep in ("0.2", " 20%", "20.0 %")}) == 1
    assert SearchPaths.at_share(folder, "0.075").policy.name == "keep-7.5.safetensors"
