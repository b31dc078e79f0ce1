"""The evaluation of a tiny model: what each variant gave, measured once, in a folder that survives what befalls it."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from headscope import evaluation
from headscope.errors import DataError
from headscope.evaluation.claims import claim
from headscope.evaluation.evaluate import _real
from headscope.evaluation.likeness import likeness
from headscope.models import load_model
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec, Limit, Policy, save_policy
from headscope.prompt_files import Asked, read_asked
from headscope.reporting.evaluation import write_evaluation
from headscope.runtime.batches import FIRST_SEED, OTHER, ImageBatches, Variant
from headscope.stickereval.prompts import grading_if_ours
from headscope.storage import read_json, write_json
from tests.cli.command import headscope
from tests.evaluation.conftest import PROMPTS

ASKED = [Asked(prompt, f"{n:05d}", {}) for n, prompt in enumerate(PROMPTS)]


def evaluate(model: JanusModel, asked, policies, out, *, other_dtype=None, **config) -> evaluation.Evaluation:
    """`headscope.evaluation.evaluate` with the fields of its config as keywords."""
    return evaluation.evaluate(model, asked, policies, out, evaluation.EvaluationConfig(**config), other_dtype=other_dtype)


@pytest.fixture
def larger(tiny: JanusModel, monkeypatch: pytest.MonkeyPatch) -> JanusModel:
    """The tiny model with its images enlarged: SSIM's window is larger than they are."""
    small = tiny.to_images
    monkeypatch.setattr(tiny, "to_images", lambda tokens: small(tokens).repeat_interleave(4, 1).repeat_interleave(4, 2))
    return tiny


def test_an_evaluation_has_floors_and_what_each_policy_did(larger: JanusModel, half: Policy, tmp_path: Path) -> None:
    found = evaluate(larger, ASKED, {"half": half}, tmp_path / "e", seeds=2, other_dtype=lambda: larger)
    like = found.likeness.set_index("variant")
    assert list(like.index) == ["full", "full_float32", "other_seed", "half"]
    assert like.loc["full", "same"] == 1
    assert like.loc["full", "agreement"] == 1
    assert like.loc["other_seed", "agreement"] < 1
    prefix = larger.tokenize(PROMPTS).ids.shape[1]
    spec = CacheSpec(half.shape, prefix, dtype="float32")
    assert like.loc["half", "cache_bytes"] == spec.bytes_of(half) < like.loc["full", "cache_bytes"]
    seeds = found.images.groupby("variant")["seed"].apply(list)
    assert seeds["half"] == seeds["full"] == [FIRST_SEED + n for n in range(6)]
    assert seeds["other_seed"] == [FIRST_SEED + OTHER + n for n in range(6)]
    assert len(found.by_row) == 4 * 4
    files = sorted(path.name for path in (tmp_path / "e" / "half").iterdir())
    assert files == [f"{prompt:05d}-{seed}.png" for prompt in range(3) for seed in range(2)]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "e" / "images.parquet"), found.images)
    with pytest.raises(DataError, match="holds an evaluation with seeds 2, now it is 3"):
        evaluate(larger, ASKED, {"half": half}, tmp_path / "e", seeds=3)


def test_what_was_measured_is_not_measured_again(
    larger: JanusModel, half: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "e"
    real = tmp_path / "real"
    real.mkdir()
    for number, pixels in enumerate(
        larger.to_images(ImageBatches(larger, Variant("r"), PROMPTS, 1, tmp_path / "r").all(4).tokens)
    ):
        Image.fromarray(pixels.numpy()).save(real / f"{number}.png")
    first = evaluate(larger, ASKED, {"half": half}, out, seeds=1, real=real)
    measured: list[int] = []

    def counted(images: torch.Tensor, reference: torch.Tensor) -> dict[str, torch.Tensor]:
        measured.append(len(images))
        return likeness(images, reference)

    monkeypatch.setattr("headscope.evaluation.measuring.likeness", counted)
    again = evaluate(larger, ASKED, {"half": half}, out, seeds=1, real=real)
    assert measured == []
    for name in ("images", "likeness", "scores", "by_row"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name))
    (out / "measured" / "half.json").write_text("{")  # damaged
    pd.testing.assert_frame_equal(evaluate(larger, ASKED, {"half": half}, out, seeds=1, real=real).likeness, first.likeness)
    assert measured == [3]
    evaluate(larger, ASKED, {"half": half}, out, seeds=1)  # without the distances: something else
    assert len(measured) == 4


def test_a_name_stands_for_one_policy(larger: JanusModel, half: Policy, tmp_path: Path) -> None:
    evaluate(larger, ASKED, {"p": half}, tmp_path / "e", seeds=1)
    other = Policy.uniform(larger.shape, window=2, stride=4, prefix=10)
    with pytest.raises(DataError, match="holds images of another policy called p; give the file another name"):
        evaluate(larger, ASKED, {"p": other}, tmp_path / "e", seeds=1)
    both = evaluate(larger, ASKED, {"p": half, "q": other}, tmp_path / "e", seeds=1).likeness
    assert list(both["variant"]) == ["full", "other_seed", "p", "q"]
    for name in ("full", "other_seed", "full_bfloat16"):
        with pytest.raises(DataError, match=f"policy name {name}: is that of a row"):
            evaluate(larger, ASKED, {name: half}, tmp_path / "f", seeds=1)


def test_what_is_wrong_is_told_before_the_folder_is_claimed(larger: JanusModel, tmp_path: Path) -> None:
    long = [Asked("dog " * 500, "00000", {})]
    for asked, options, said in (
        (long, {}, "tokens long"),
        (ASKED, {"guidance": float("nan")}, "guidance nan"),
        (ASKED, {"memory": 10}, "hold no cache"),
        (ASKED, {"layout": "dpg"}, "layout dpg: takes 4 images a prompt, not 1"),
        (ASKED[:1], {"real": tmp_path}, "needs at least two images on each side"),
    ):
        with pytest.raises(DataError, match=said):
            evaluate(larger, asked, {}, tmp_path / "e", seeds=1, **options)  # type: ignore[arg-type]
        assert not (tmp_path / "e").exists()


def test_a_prompt_too_long_for_a_policy_is_told_before_the_folder_is_claimed(
    larger: JanusModel, half: Policy, tmp_path: Path
) -> None:
    spec = CacheSpec(half.shape, 10)
    searched = half.replace(limit=Limit(spec.bytes_of(half), spec))
    long = [*ASKED, Asked("dog " * 12, "00003", {})]
    with pytest.raises(DataError, match=r"policy half: A prompt of \d+ tokens \('dog dog"):
        evaluate(larger, long, {"half": searched}, tmp_path / "e", seeds=1)
    assert not (tmp_path / "e").exists()


def test_the_model_s_guidance_may_be_said(larger: JanusModel, tmp_path: Path) -> None:
    first = evaluate(larger, ASKED, {}, tmp_path / "e", seeds=1).likeness
    again = evaluate(larger, ASKED, {}, tmp_path / "e", seeds=1, guidance=larger.guidance).likeness
    pd.testing.assert_frame_equal(again, first)
    with pytest.raises(DataError, match="holds an evaluation with guidance"):
        evaluate(larger, ASKED, {}, tmp_path / "e", seeds=1, guidance=larger.guidance + 1)


def test_facts_for_geneval_s_scorer_are_those_of_the_prompt_file_today(larger: JanusModel, tmp_path: Path) -> None:
    for count in (1, 2):
        facts = {"tag": "counting", "include": [{"class": "dog", "count": count}], "prompt": "dog"}
        evaluate(larger, [Asked("dog", "00000", facts)], {}, tmp_path / "e", seeds=1, layout="geneval")
        for name in ("full", "other_seed"):
            assert read_json(tmp_path / "e" / name / "00000" / "metadata.jsonl") == facts


@pytest.mark.parametrize("name", ["NA", "None", "nan"])
def test_a_policy_may_be_called_as_nothing_is(larger: JanusModel, half: Policy, tmp_path: Path, name: str) -> None:
    evaluate(larger, ASKED, {name: half}, tmp_path / "e", seeds=1)
    write_csv = "variant,category,score,images\n" + f"{name},{name},0.5,3\n"
    (tmp_path / "e" / "imported.csv").write_text(write_csv)
    page = write_evaluation(tmp_path / "e").read_text(encoding="utf-8")
    assert page.count(f'<th scope="row">{name}</th>') == 2
    (tmp_path / "e" / name / "00000-0.png").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"00000-0.png: not a readable image"):
        write_evaluation(tmp_path / "e")
    (tmp_path / "e" / "imported.csv").write_text("")
    with pytest.raises(DataError, match=r"imported.csv: cannot be read as a CSV table"):
        write_evaluation(tmp_path / "e")


@pytest.mark.parametrize(
    ("line", "graded"),
    [
        ('{"tag": "counting", "include": [{"class": "lemon", "count": 3}], "prompt": "three lemons"}', True),
        ('{"tag": "counting", "include": [{"class": "bench", "count": 3}], "prompt": "three benches"}', False),
        ('{"tag": "colors", "include": [{"class": "lemon", "count": 1, "color": "red"}], "prompt": "a red lemon"}', False),
        ('{"prompt": "three lemons"}', False),
    ],
)
def test_prompts_of_the_grader_s_own_kind_are_graded(tmp_path: Path, line: str, graded: bool) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    assert (grading_if_ours(read_asked(tmp_path / "p.jsonl")) is not None) == graded


def test_a_tag_that_is_nobody_s_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"tag": "sinlge", "include": [{"class": "lemon"}], "prompt": "a lemon"}\n')
    with pytest.raises(DataError, match="unknown tag 'sinlge'; nearest known: single"):
        grading_if_ours(read_asked(tmp_path / "p.jsonl"))


@pytest.mark.parametrize("include", ["5", "null", '{"class": "lemon"}', "[]", '[{"class": ["lemon"]}]'])
def test_what_is_to_be_there_is_a_list_of_things(tmp_path: Path, include: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"tag": "single", "include": {include}, "prompt": "a lemon"}}\n')
    with pytest.raises(DataError, match="line 1"):
        grading_if_ours(read_asked(tmp_path / "p.jsonl"))


def test_real_images_may_be_called_png_in_capitals_and_a_cut_one_is_named(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="PNG")
    assert _real(tmp_path).shape == (2, 8, 8, 3)
    whole = (tmp_path / "a.PNG").read_bytes()
    header = b"IHDR" + struct.pack(">II", 90_000, 90_000) + whole[24:29]  # of an image that no memory holds
    for broken in (whole[:40], whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]):
        (tmp_path / "a.PNG").write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.PNG: not a readable image"):
            _real(tmp_path)


def test_a_folder_survives_what_befalls_it(larger: JanusModel, tmp_path: Path) -> None:
    out = tmp_path / "e"
    first = evaluate(larger, ASKED, {}, out, seeds=1).likeness
    (out / "full" / "00001-0.png").unlink()
    tokens = out / "tokens" / "full"
    (tokens / "000000 (copy).parquet").write_bytes((tokens / "000000.parquet").read_bytes())
    (tokens / ".000000.42.part.parquet").write_bytes(b"cut")
    (tokens / "000000.json").write_text("{}")
    again = evaluate(larger, ASKED, {}, out, seeds=1).likeness
    assert (out / "full" / "00001-0.png").is_file()
    assert math.isnan(again["seconds"][0])
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), first.drop(columns="seconds"))
    (tokens / "000000.parquet").write_bytes(b"junk")
    with pytest.raises(DataError, match="without that file the same command"):
        evaluate(larger, ASKED, {}, out, seeds=1)
    write_json(out / "evaluation.json", {**read_json(out / "evaluation.json"), "policies": ["full"]})
    (tokens / "000000.parquet").unlink()
    with pytest.raises(DataError, match=r"evaluation\.json: policies is .*choose another folder"):
        evaluate(larger, ASKED, {}, out, seeds=1)
    (out / "evaluation.json").write_text("junk")
    with pytest.raises(DataError, match="choose another folder"):
        evaluate(larger, ASKED, {}, out, seeds=1)


def test_a_folder_keeps_to_one_dtype(tiny_folder: Path, tmp_path: Path) -> None:
    full, half = (load_model(str(tiny_folder), dtype=dtype) for dtype in ("float32", "bfloat16"))
    with pytest.raises(DataError, match="real images"):
        evaluate(full, ASKED, {}, tmp_path / "e", seeds=1, real=tmp_path / "none")
    assert not (tmp_path / "e").exists()  # it is told before the folder is claimed
    claim(tmp_path / "e", full, ASKED, 1, None, None)
    with pytest.raises(DataError, match="holds an evaluation with dtype float32, now it is bfloat16"):
        evaluate(half, ASKED, {}, tmp_path / "e", seeds=1)


def test_the_command_writes_a_page_and_goes_on(
    tiny: JanusModel, tiny_folder: Path, half: Policy, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small = JanusModel.to_images
    monkeypatch.setattr(JanusModel, "to_images", lambda m, t: small(m, t).repeat_interleave(4, 1).repeat_interleave(4, 2))
    save_policy(half, tmp_path / "half.safetensors")
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "r.jsonl").write_text('{"variant": "half", "category": "dpg", "score": 0.5}')
    arguments = ["evaluate", tiny_folder, "--policy", tmp_path / "half.safetensors", "--prompts", tmp_path / "p.txt",
                 "--out", tmp_path / "e", "--seeds", 1, "--no-floor"]  # fmt: skip
    ended = headscope(capsys, monkeypatch, *arguments)
    assert ended.status == 0, ended.err
    assert "half" in ended.out
    ended = headscope(capsys, monkeypatch, *arguments, "--import", tmp_path / "r.jsonl")
    assert ended.status == 0
    page = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert "Scores of another scorer" in page
    assert "http://" not in page
    arguments[arguments.index(tmp_path / "e")] = tmp_path / "two"
    ended = headscope(capsys, monkeypatch, *arguments, "--workers", 2)
    assert ended.status == 0, ended.err
    for name in ("full", "other_seed", "half"):
        one, two = (
            ImageBatches(tiny, Variant(name), PROMPTS, 1, tmp_path / of / "tokens" / name).all(4) for of in ("e", "two")
        )
        assert torch.equal(one.tokens, two.tokens)
    ended = headscope(capsys, monkeypatch, *arguments, "--layout", "fid")
    assert ended.status == 2
    assert "--layout fid: unknown; known are geneval, dpg" in ended.err
