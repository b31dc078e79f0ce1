"""The whole training of a bundled model in one command: dry, on the CPU, on squares of one colour."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open

from headscope.errors import DataError
from headscope.recipe import checkpoint, full
from headscope.recipe.full import FullTraining, train_in_full
from headscope.recipe.presets import for_gpu
from headscope.recipe.scenes import CLASSES
from headscope.recipe.scoring import Comparison, prompts_for
from headscope.storage import write_parquet
from tests.sources import ROOT

RUN = """
import sys
sys.modules.update(dict.fromkeys(("optuna", "resvg_py", "headscope.tuning")))  # importing None is an ImportError
from headscope.recipe.__main__ import app
app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All classes in two styles."""
    rng, rows = np.random.default_rng(0), []
    for concept in CLASSES.values():
        for style in ("flat", "noto"):
            kept = io.BytesIO()
            Image.new("RGBA", (8, 8), (*rng.integers(0, 256, 3).tolist(), 255)).save(kept, "WEBP")
            rows.append((concept, style, concept, "MIT", "test", kept.getvalue()))
    path = tmp_path_factory.mktemp("data") / "stickers.parquet"
    table = pd.DataFrame(rows, columns=["concept", "style", "caption", "licence", "source", "webp"])
    return write_parquet(table, path)


@pytest.mark.slow
def test_a_dry_run_goes_through_every_stage_without_what_only_a_search_needs(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["full", "stickers", "--data", str(data), "--out", str(out), "--device", "cpu", "--dry"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    sentence = (out / "result.txt").read_text().strip()
    assert ended.stdout.splitlines()[-1] == sentence
    assert sentence.startswith("stickers, trained on a CPU in 0.05 minutes: StickerEval gives it 0.")
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["stage"] for line in lines)) == ["vq", "transformer", "score"]
    last = [line for line in lines if line["stage"] == "transformer"][-1]
    assert {"step", "loss", "seconds", "images_a_second", "loader_images_a_second", "step_images_a_second", "waited"} <= set(
        last
    )
    assert last["step"] > 4
    assert list(pd.read_csv(out / "score.csv")["category"])[-1] == "overall"
    assert {"config.json", "model.safetensors", "prompts.txt", "README.md"} <= {
        path.name for path in (out / "stickers").iterdir()
    }
    assert json.loads((out / "stickers" / "recipe.json").read_text())[0]["preset"] == "tiny-quick"
    assert Image.open(out / "sheet.png").width > 100
    assert not (out / "training" / "vq-checkpoint.safetensors").exists()


def test_the_same_command_goes_on_after_a_stop(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = FullTraining("stickers", data, tmp_path, "cpu", workers=1, dry=True)
    save, saved, ended = checkpoint.save, [], []
    monkeypatch.setattr(full, "_judge", lambda *arguments: ended.append(arguments) or "judged")

    def stop(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        path, facts = arguments[2:4]
        assert isinstance(path, Path)
        assert isinstance(facts, dict)
        saved.append((path.name, int(facts["step"])))
        if saved.count(saved[-1]) == 1 and facts["step"] == "3":
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop)
    for stage in ("vq-checkpoint", "transformer"):
        with pytest.raises(KeyboardInterrupt):
            train_in_full(asked)
        assert saved[-3:] == [(f"{stage}.safetensors", step) for step in (1, 2, 3)]
    assert train_in_full(asked).endswith("judged")
    of_transformer = [step for name, step in saved if name == "transformer.safetensors"]
    assert of_transformer == list(range(1, len(of_transformer) + 1))  # nothing twice
    with safe_open(str(tmp_path / "training" / "transformer.safetensors"), "pt") as file:
        assert int(file.metadata()["step"]) == of_transformer[-1] >= 8
    train_in_full(asked)  # nothing is left to train
    assert [step for name, step in saved if name == "transformer.safetensors"] == of_transformer
    assert len(ended) == 2


def test_other_settings_are_no_place_to_go_on_from(data: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"model": "stickers", "preset": "quick", "batch": 256, "seed": 3}')
    with pytest.raises(DataError, match="was begun with seed 3, not 4; choose another folder"):
        train_in_full(FullTraining("stickers", data, tmp_path, "cpu", seed=4))


def test_sizes_are_those_of_the_bundled_model_or_of_a_preset_of_its_kind() -> None:
    size = for_gpu("stickers-scenes", batch=128)
    assert (size.hidden, size.pixels, size.batch, size.rate) == (192, 96, 128, 0.02)
    assert for_gpu("stickers-scenes", "full").hidden == 256
    with pytest.raises(DataError, match="its images are not those of stickers; take quick or none"):
        for_gpu("stickers", "full")
    with pytest.raises(DataError, match="janus: `full` trains stickers or stickers-scenes"):
        for_gpu("janus")


def test_single_stickers_are_asked_for_in_their_models_own_words() -> None:
    prompts = prompts_for(scenes=False)
    assert {prompt.tag for prompt in prompts} == {"single", "style"}
    assert "dog face" in [prompt.prompt for prompt in prompts]
    assert len(prompts_for(scenes=True)) == 200


def test_both_scores_are_said_in_one_sentence() -> None:
    rows = [("single", "a dog"), ("single", "a cat"), ("style", "a dog, noto style"), ("style", "a cat, noto style")]
    graded = pd.DataFrame(rows, columns=["tag", "prompt"])
    compared = Comparison.of(
        graded.assign(correct=[True, True, True, False]), graded.assign(correct=[True, False, False, False])
    )
    assert compared.table["difference"].tolist() == [0.5, 0.5, 0.5]
    assert "gives it 0.750 (" in compared.sentence()
    assert "the model that ships 0.250 (" in compared.sentence()
