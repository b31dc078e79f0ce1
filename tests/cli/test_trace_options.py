"""`headscope trace` with a choice of heads, live and through a policy, and `headscope merge`."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from headscope.cli.trace import _numbers, merge, trace
from headscope.errors import DataError
from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy, save_policy
from headscope.tracing import TraceDataset
from tests.cli.command import headscope


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("red apple\ndog\na blue car\n", encoding="utf-8")
    return file


def test_ranges_of_numbers() -> None:
    assert _numbers("--layers", "0,2,5-7") == (0, 2, 5, 6, 7)
    for wrong in ("", "a", "3-1", "1,,2", "-1"):
        with pytest.raises(typer.BadParameter, match="expected numbers and ranges"):
            _numbers("--layers", wrong)


def test_a_live_trace_through_a_policy_shows_what_it_leaves(
    tiny: JanusModel, tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    policy = Policy.uniform(tiny.shape, window=2, stride=1, prefix=16)
    save_policy(policy, tmp_path / "p.safetensors")
    model = str(tiny_folder)
    trace(model, tmp_path / "run", prompts, 2, 1, policy=tmp_path / "p.safetensors", layers="1", heads="0-1")
    dataset = TraceDataset(tmp_path / "run" / "trace")
    assert dataset.meta["cache"].startswith("policy ")
    table = dataset.heads()
    assert set(table["layer"]) == {1}
    assert set(table["head"]) == {0, 1}
    assert (dataset.curves()["lag_mass"][..., 3:] == 0).all()
    with pytest.raises(DataError, match="layer 5: the model has 2"):
        trace(model, tmp_path / "other", prompts, 2, 1, layers="5")
    assert not (tmp_path / "other").exists()


def test_run_folders_merge_by_their_traces(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    for number, seed in enumerate((0, 7)):
        trace(str(tiny_folder), tmp_path / f"run{number}", prompts, 2, 1, seed=seed)
    merge([tmp_path / "run0", tmp_path / "run1"], tmp_path / "both")
    assert TraceDataset(tmp_path / "both").meta["samples"] == 4


def test_without_a_terminal_each_step_is_told_when_it_begins_and_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path, prompts: Path
) -> None:
    ended = headscope(capsys, monkeypatch, "trace", tiny_folder, "--out", tmp_path / "r", "--prompts", prompts)
    assert ended.status == 0
    told = [line for line in ended.err.splitlines() if line.startswith("tracing")]
    assert [line.split(":")[0].partition(" (")[0] for line in told] == ["tracing", "tracing"]
    assert " in " in told[1]
