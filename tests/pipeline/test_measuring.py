"""A policy measured on the unseen images of a run: the result is in its file, or nothing is written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from headscope.errors import CacheError, DataError, PolicyMismatch
from headscope.models import ImageModel
from headscope.pipeline import Run, begin_run, measure_policy, open_run, unseen_images
from headscope.policy import CacheSpec, Limit, Policy, load_policy, save_policy, unmeasured
from headscope.tuning import PromptConfig, Replay, RunConfig, measure_free_running

PROMPTS = ("red apple", "dog", "blue car", "red car", "apple", "blue dog")


@pytest.fixture(scope="module")
def begun(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a trace, whose unseen images are there."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    config = RunConfig(model=str(tiny_folder), prompts=PromptConfig(texts=PROMPTS, calibration=3, unseen=3))
    unseen_images(begin_run(config, out, limited=False))
    return out


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Run:
    return open_run(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture
def file(tiny: ImageModel, tmp_path: Path) -> Path:
    policy = Policy.uniform(tiny.shape, window=2, heavy=2, stride=4, prefix=12)
    provenance = {"method": "hand", "transferred": {"from": "elsewhere", "kind": "by depth", "measured": False}}
    return save_policy(
        policy.replace(results={"unseen": {"replay_kl": 9.0}}, provenance=provenance), tmp_path / "p.safetensors"
    )


def test_the_result_is_that_of_a_replay_and_stands_in_the_file(run: Run, file: Path) -> None:
    before = load_policy(file)
    assert "has not been measured on" in unmeasured(before)
    told: list[tuple[int, int]] = []
    measure_policy(run.told(lambda task, done, total, note="": told.append((done, total))), file)
    after, samples = load_policy(file), unseen_images(run)
    found = after.results["measured"]
    recorded = Replay(run.model, samples, by_stream=False).measure(before)
    own = measure_free_running(run.model, samples, before)
    assert found["replay_kl"] == pytest.approx(recorded.kl, rel=1e-4)
    assert found["free_kl"] == pytest.approx(own.kl, rel=1e-4)
    assert found["top1"] == pytest.approx(recorded.top1)
    assert found["kl_low"] <= found["replay_kl"] <= found["kl_high"]
    assert found["free_low"] <= found["free_kl"] <= found["free_high"]
    assert (found["images"], found["cache_bytes"]) == (3, recorded_bytes(run, before))
    assert after.results["unseen"] == {"replay_kl": 9.0}
    shape = run.model.shape
    assert after.provenance["measured_on"] == {
        "model": shape.name, "weights": shape.weights, "prompts": 3, "dtype": "float32",
    }  # fmt: skip
    assert unmeasured(after) == ""
    assert after.provenance["method"] == "hand"
    assert after.same_as(before)
    assert told[-1] == (2, 2)


def recorded_bytes(run: Run, policy: Policy) -> int:
    """Of one image, in two bytes a number, as a run without a limit of its own counts."""
    return CacheSpec(run.model.shape, policy.prefix, streams=2).bytes_of(policy)


def test_a_policy_for_any_weights_stays_one(run: Run, file: Path, tmp_path: Path) -> None:
    policy = load_policy(file)
    save_policy(policy.replace(shape=replace(policy.shape, weights="")), file)
    whole = file.read_bytes()
    measured = measure_policy(run, file, tmp_path / "new" / "q.safetensors")
    assert load_policy(tmp_path / "new" / "q.safetensors").shape.weights == measured.shape.weights == ""
    assert file.read_bytes() == whole


def test_what_does_not_fit_is_refused_and_nothing_is_written(run: Run, file: Path) -> None:
    policy = load_policy(file)
    run.folder.unseen.unlink()
    for shape, says in (
        (replace(policy.shape, weights="other"), "made for other weights"),
        (replace(policy.shape, architecture="other"), "made for another architecture"),
    ):
        save_policy(policy.replace(shape=shape), file)
        whole = file.read_bytes()
        with pytest.raises(PolicyMismatch, match=says):
            measure_policy(run, file)
        assert file.read_bytes() == whole
    short = policy.replace(prefix=1)
    spec = CacheSpec(policy.shape, 1)
    save_policy(short.replace(limit=Limit(spec.bytes_of(short), spec)), file)
    with pytest.raises(CacheError, match=r"takes .* bytes under this policy, which was made for prompts of 1"):
        measure_policy(run, file)
    assert not run.folder.unseen.exists()


def test_a_shipped_policy_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="stickers-20: comes with headscope and stays as it is; name a file to write with `out`"
    ):
        measure_policy(run, "stickers-20")
    with pytest.raises(PolicyMismatch, match="made for stickers"):
        measure_policy(run, "stickers-20", tmp_path / "q.safetensors")
    assert not (tmp_path / "q.safetensors").exists()


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Replay, "measure")
    with pytest.raises(DataError, match="is a folder; name a file"):
        measure_policy(run, file, tmp_path)
