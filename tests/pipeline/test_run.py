"""One command from a model to a report; a stopped run goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from headscope.errors import DataError
from headscope.models import ImageModel, Samples, load_model
from headscope.pipeline import open_run, run
from headscope.pipeline.prompts import PLAIN, default_prompts, split
from headscope.pipeline.steps import search_step
from headscope.policy import CONTROLS, CacheSpec, Limit, load_policy, make_preset, save_policy
from headscope.reporting import write_report
from headscope.tuning import LimitConfig, PromptConfig, RunConfig, SearchConfig
from headscope.tuning.propose.presets import COMPARED
from tests.cli.command import headscope, left_by_an_overwrite
from tests.reporting.parsed_page import page_of

PROMPTS = ["red apple", "dog", "blue car", "red car", "apple", "blue dog"]


def small(folder: Path) -> RunConfig:
    return RunConfig(
        model=str(folder),
        limit=LimitConfig(keep="50%"),
        prompts=PromptConfig(texts=tuple(PROMPTS), calibration=3, unseen=3),
        search=SearchConfig(trials=6, table_images=2, bits="16"),
    )


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    report = run(small(tiny_folder), out)
    assert report == out / "report.html"
    return out


@pytest.fixture(scope="module")
def in_bits(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in float32 whose heads may have fewer bits, as they do by default."""
    out = tmp_path_factory.mktemp("runs") / "bits"
    run(small(tiny_folder).replace(search=SearchConfig(trials=4, table="heads", table_images=2)), out)
    return out


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    expected = {
        "run.json", "prompts.json", "calibration.parquet", "unseen.parquet", "heads.safetensors", "policy.safetensors",
        "methods.csv", "kl_by_row.parquet", "report.html", "trace/heads.parquet", "trace/curves.safetensors",
        "search/study.db", "search/sensitivity-2-fisher.parquet", "search/trials.parquet", "search/search.json",
        "search/presets.parquet", "images/sheet.png", "images/images.parquet", "images/full/000.png",
        "images/searched/002.png",
    }  # fmt: skip
    assert expected <= names
    assert not [name for name in names if ".part" in name]


def test_everything_that_a_run_leaves_is_known_to_overwrite(finished: Path, tmp_path: Path) -> None:
    assert left_by_an_overwrite(finished, tmp_path) == []


def test_the_table_of_methods_is_at_equal_bytes(finished: Path) -> None:
    table = pd.read_csv(finished / "methods.csv")
    columns = ["method", "budget", "bits", "kept_ratio", "replay_kl", "free_kl", "top1", "cache_bytes", "ms_per_step"]
    assert list(table.columns[:9]) == columns
    assert set(table["method"]) == {"full", "full_bfloat16", "searched", *COMPARED} - {"kivi"}  # 69 % with every token
    assert set(table["bits"]) == {16}
    methods = table.set_index("method")
    full = methods.loc["full"]
    assert full["replay_kl"] == pytest.approx(0, abs=1e-6)
    assert full["free_kl"] == pytest.approx(0, abs=1e-6)
    assert set(methods.index[methods["free_kl"].isna()]) == {"full_bfloat16", *CONTROLS}
    assert full["kept_ratio"] == pytest.approx(1)
    rounded, others = methods.loc["full_bfloat16"], methods.drop(["full", "full_bfloat16"])
    assert 1e-6 < rounded["replay_kl"] < others["replay_kl"].min()
    assert (rounded["kept_ratio"], rounded["cache_bytes"]) == (full["kept_ratio"], full["cache_bytes"])
    assert list(methods.index[methods["ms_per_step"].isna()]) == ["full_bfloat16"]
    assert (others["kept_ratio"] <= 0.5).all()
    prefix = json.loads((finished / "run.json").read_text())["prefix"]
    cells = 2 * 2 * 2 * 8 * 2 * 2  # streams, layers, KV heads, head size, two bytes, keys and values
    # The unseen prompts may be shorter than the longest of the run, which the limit is for.
    assert (others["cache_bytes"] <= 0.5 * (prefix + 16) * cells).all()
    assert full["cache_bytes"] <= (prefix + 16) * cells


def test_methods_are_counted_as_the_limit_counts(in_bits: Path) -> None:
    methods = pd.read_csv(in_bits / "methods.csv", dtype={"bits": str}).set_index("method")
    searched = load_policy(in_bits / "policy.safetensors")
    spec = CacheSpec(searched.shape, searched.prefix)
    assert searched.limit == Limit.of_share("50%", spec)
    policies = {path.stem: load_policy(path) for path in (in_bits / "search" / "presets").glob("*.safetensors")}
    policies |= {"searched": searched, "full": make_preset("full", Limit.of_share("100%", spec))}
    assert {*policies, "full_bfloat16"} == set(methods.index)
    for name, policy in policies.items():
        assert methods.loc[name, "cache_bytes"] == spec.bytes_of(policy)
        assert methods.loc[name, "kept_ratio"] == pytest.approx(spec.share_of(policy))
        assert {*methods.loc[name, "bits"].split()} == {str(bits) for bits in policy.bits.unique().tolist()}
    assert methods.loc["full", "cache_bytes"] == spec.full_bytes
    assert (methods.drop(["full", "full_bfloat16"])["kept_ratio"] <= 0.5).all()
    assert searched.results["unseen"]["cache_bytes"] == spec.bytes_of(searched)


def test_a_page_shows_no_images_of_a_policy_that_was_replaced(in_bits: Path, tmp_path: Path) -> None:
    out = shutil.copytree(in_bits, tmp_path / "again")
    before, sentence = page_of(out), "The images here are of another policy than the one that stands here now"
    assert sentence not in before.said
    assert "and, as " in before.said
    assert "+bits, with its best 8 or 4" in before.said
    assert "The row full_bfloat16 keeps everything in bfloat16: less than that is noise." in before.said
    assert [tag for tag, _ in before.tags].count("img") == 2 * 3
    again = open_run(out)
    search_step(again.under(again.config.limit.replace(keep="40%")))
    after = page_of(out)
    assert sentence in after.said
    assert "img" not in {tag for tag, _ in after.tags}
    assert "of the tokens the same" not in after.said
    assert "There is no comparison: the compare step has not run." in after.said


def test_a_page_shows_no_methods_where_the_policy_was_searched_anew_and_not_compared(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "searched")
    policy, sentence = load_policy(out / "policy.safetensors"), "There is no comparison: the compare step has not run."
    assert sentence not in page_of(out).said
    results = {name: value for name, value in policy.results.items() if name != "unseen"}
    save_policy(policy.replace(results=results), out / "policy.safetensors")
    page = page_of(out)
    assert sentence in page.said
    assert "searched, not yet compared" in page.said
    assert "img" in {tag for tag, _ in page.tags}  # the policy is the same, and so are its images


def test_calibration_and_unseen_prompts_share_nothing(finished: Path) -> None:
    parts = json.loads((finished / "prompts.json").read_text())
    assert not set(parts["calibration"]) & set(parts["unseen"])
    assert Samples.load(finished / "unseen.parquet").prompts == parts["unseen"]
    assert Samples.load(finished / "trace" / "samples.parquet").prompts == parts["calibration"]


def test_the_policy_says_where_it_comes_from(finished: Path, tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder))
    policy = load_policy(finished / "policy.safetensors", model.shape)
    assert CacheSpec(policy.shape, policy.prefix).share_of(policy) <= 0.5
    assert policy.provenance["method"] == "searched"
    assert policy.limit is not None
    assert policy.limit.spec.streams == 2
    assert policy.results["unseen"]["replay_kl"] >= 0


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize(
    ("work", "at"),
    [
        ("generating the calibration", 1),
        ("tracing", 1),
        ("sensitivity", 5),
        ("presets", 4),
        ("trials", 3),
        ("generating with", 1),
    ],
)
def test_a_stopped_run_goes_on_and_the_same_seed_finds_the_same_policy(
    finished: Path, tiny_folder: Path, tmp_path: Path, work: str, at: int
) -> None:
    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what.startswith(work) and done >= at:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(small(tiny_folder), out, progress=stop)
    assert not (out / "report.html").exists()
    assert not list(out.rglob("*.part*"))
    run(small(tiny_folder), out, resume=True)
    again, whole = (pd.read_csv(path / "methods.csv").drop(columns="ms_per_step") for path in (out, finished))
    pd.testing.assert_frame_equal(again, whole)
    first, second = (load_policy(path / "policy.safetensors") for path in (finished, out))
    assert first.same_as(second)
    assert (out / "report.html").exists()


def test_every_step_works_alone(finished: Path, tiny_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    out, prompts = tmp_path / "steps", tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    steps = (
        ("trace", tiny_folder, "--out", out, "--prompts", prompts, "--calibration", 3, "--unseen", 3),
        ("heads", out),
        ("search", out, "--keep", "50%", "--trials", 4),
        ("policy", "show", out / "policy.safetensors"),
        ("generate", tiny_folder, "--policy", out / "policy.safetensors", "dog", "--compare", "--out", tmp_path / "generated"),
        ("report", out),
        ("models",),
    )
    for step in steps:
        ended = headscope(capsys, monkeypatch, *step)
        assert ended.status == 0, (step, ended)
    assert (tmp_path / "generated" / "sheet.png").exists()
    assert (out / "report.html").exists()


def test_a_longer_prompt_than_the_limit_allows_is_refused(finished: Path, tiny_folder: Path, tmp_path, capsys, monkeypatch):
    long = " ".join(["red apple"] * 20)
    ended = headscope(
        capsys, monkeypatch, "generate", tiny_folder, "--policy", finished / "policy.safetensors", "--prompt", long,
        "--out", tmp_path / "o",
    )  # fmt: skip
    assert ended.status == 2
    assert f"A prompt of 42 tokens ('{long}') takes" in ended.err
    assert not (tmp_path / "o").exists()


def test_prompts_are_dealt_alternately_and_never_twice() -> None:
    assert split(["a", "b", "a", "c", "d"], 8, 1) == (["a", "c"], ["b"])
    assert len(default_prompts("stickers")) >= 32
    assert default_prompts("no/such-model") == list(PLAIN)


def test_the_bundled_models_prompts_are_all_words_it_knows(stickers: ImageModel) -> None:
    unknown = stickers.tokenizer.unk_token_id  # type: ignore[attr-defined]
    ids = stickers.tokenize(default_prompts("stickers")).ids
    assert not torch.any(ids == unknown)


def test_a_run_of_an_earlier_version_is_refused_in_a_sentence(finished: Path, tiny_folder: Path, tmp_path: Path) -> None:
    old = shutil.copytree(finished, tmp_path / "old")
    facts = json.loads((old / "run.json").read_text())
    facts |= {"headscope": "0.1.0", "settings": {"keep": "20%", "trials": 40, "prompts": ["red apple"]}}
    (old / "run.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"begun by headscope 0\.1\.0, whose settings this version does not read; begin"):
        open_run(old)
    with pytest.raises(DataError, match=r"begun by headscope 0\.1\.0"):
        run(small(tiny_folder), old, resume=True)
    with pytest.raises(DataError, match=r"begun by headscope 0\.1\.0"):
        write_report(old)
