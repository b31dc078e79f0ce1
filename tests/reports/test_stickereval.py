"""Scores and losses come together by method and budget, and their correlation is what it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headscope.errors import DataError
from headscope.evaluation import policies_of
from headscope.policy import Policy, save_policy
from headscope.reporting import meaning_figure
from tests.reports.scripts import REPORTS, functions, script
from tests.tiny import tiny_model

COLUMNS = list(pd.read_csv(REPORTS / "stickers" / "stickereval.csv").columns)
METHODS = {"searched": 0.1, "h2o": 0.2, "ssd": 0.4, "swapped": 3.0}


@pytest.fixture
def meaning(monkeypatch: pytest.MonkeyPatch):
    return functions(monkeypatch, "stickers/stickereval.py").meaning


def make(folder: Path, quality: dict[str, float], kept: str = "20%") -> tuple[Path, Path]:
    """An evaluation of 40 prompts in two categories, and the run of its policies."""
    rng = np.random.default_rng(0)
    run, evaluation = folder / "run", folder / "e"
    run.mkdir(parents=True)
    evaluation.mkdir()
    (run / "policy.safetensors").write_bytes(b"")
    (run / "run.json").write_text(json.dumps({"limit": {"text": kept}}))
    rows = [("full", 0.0, 1000)] + [(name, kl, 200) for name, kl in METHODS.items()]
    pd.DataFrame(rows, columns=["method", "replay_kl", "cache_bytes"]).to_csv(run / "methods.csv", index=False)
    images, scores = [], []
    for name, share in {"full": 0.9, "other_seed": 0.8, **{f"{m}-20": q for m, q in quality.items()}}.items():
        right = rng.random(40) < share
        images += [(name, n, "single" if n < 20 else "two", bool(right[n])) for n in range(40)]
        for category, part in (("single", right[:20]), ("two", right[20:]), ("overall", right)):
            scores.append((name, category, part.mean(), 0.0, 1.0))
    frame = pd.DataFrame(images, columns=["variant", "prompt", "tag", "correct"])
    frame.to_parquet(evaluation / "images.parquet", index=False)
    pd.DataFrame(scores, columns=["variant", "category", "score", "low", "high"]).to_csv(evaluation / "scores.csv", index=False)
    return evaluation, run


def test_a_table_holds_every_method_and_budget_and_leaves_the_floors_out(meaning, tmp_path: Path) -> None:
    evaluation, run = make(tmp_path, dict.fromkeys(METHODS, 0.5))
    found = meaning(evaluation, [run]).table
    assert list(found.columns) == COLUMNS
    assert set(found["method"]) == {"full", *METHODS}
    full = found[found["method"] == "full"]
    assert (full["budget"] == 1).all()
    assert (full["cache_bytes"] == 1000).all()
    ssd = found[(found["method"] == "ssd") & (found["category"] == "overall")].iloc[0]
    assert (ssd["budget"], ssd["replay_kl"], ssd["cache_bytes"]) == (0.2, 0.4, 200)


@pytest.mark.parametrize(("quality", "expected"), [([0.95, 0.65, 0.35, 0.05], -1.0), ([0.05, 0.35, 0.65, 0.95], 1.0)])
def test_losses_that_predict_meaning_correlate_with_it(meaning, tmp_path: Path, quality: list[float], expected: float) -> None:
    evaluation, run = make(tmp_path, dict(zip(METHODS, quality, strict=True)))
    row = meaning(evaluation, [run]).correlations.iloc[0]
    assert (row["budget"], row["policies"]) == (0.2, 4)
    assert row["correlation"] == pytest.approx(expected)
    assert row["low"] - 1e-9 <= row["correlation"] <= row["high"] + 1e-9  # all are rounded


def test_the_script_writes_the_table_and_its_figure(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evaluation, run = make(tmp_path, dict(zip(METHODS, [0.95, 0.65, 0.35, 0.05], strict=True)), kept="0.2")
    out = tmp_path / "out.csv"
    ended = script(capsys, monkeypatch, "stickers/stickereval.py", evaluation, "--run", run, "-o", out)
    assert ended.status == 0, ended.err
    table = pd.read_csv(out)
    assert list(table.columns) == COLUMNS
    assert set(table["budget"]) == {1.0, 0.2}
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_a_category_of_one_prompt_varies_with_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    correlation = functions(monkeypatch, "stickers/stickereval.py").rank_correlation
    right = np.array([[1.0, 0.5, 0.0]])
    assert correlation(np.array([0.1, 0.2, 0.3]), [right, right]) == pytest.approx((-1, -1, -1))
    middle, low, high = correlation(np.array([0.1, 0.2, 0.3]), [np.ones((4, 3))])
    assert np.isnan([middle, low, high]).all()  # where all score alike there is no correlation


def test_a_policy_without_its_run_and_a_limit_in_bytes_are_refused(meaning, tmp_path: Path) -> None:
    evaluation, _ = make(tmp_path / "a", dict.fromkeys(METHODS, 0.5))
    with pytest.raises(DataError, match="none of the runs given holds the loss"):
        meaning(evaluation, [])
    _, run = make(tmp_path / "b", dict.fromkeys(METHODS, 0.5), kept="12MiB")
    with pytest.raises(
        DataError,
        match=r"was searched with 12MiB, .* such as 20%; give its policy by its file",
    ):
        meaning(evaluation, [run])


def test_a_policy_of_no_run_is_left_out_and_named(meaning, tmp_path: Path) -> None:
    evaluation, run = make(tmp_path, dict.fromkeys(METHODS, 0.5))
    scores = pd.read_csv(evaluation / "scores.csv")
    mine = scores[scores["variant"] == "other_seed"].assign(variant="mine-20")
    pd.concat([scores, mine]).to_csv(evaluation / "scores.csv", index=False)
    found = meaning(evaluation, [run])
    assert found.left_out == ["mine-20"]
    assert set(found.table["method"]) == {"full", *METHODS}
    with pytest.raises(DataError, match="holds no finished evaluation; make one with `headscope evaluate`"):
        meaning(tmp_path / "nowhere", [run])


def test_a_run_of_several_budgets_brings_them_all(meaning, tmp_path: Path) -> None:
    evaluation, run = make(tmp_path, dict.fromkeys(METHODS, 0.5))
    model = tiny_model()
    policy = Policy.uniform(model.shape, window=3, stride=4, prefix=5)
    (run / "policies").mkdir()
    for keep in ("50", "7.5"):
        presets = run / "search" / f"keep-{keep}" / "presets"
        presets.mkdir(parents=True)
        save_policy(policy, run / "policies" / f"keep-{keep}.safetensors")
        save_policy(policy, presets / "h2o.safetensors")
        pd.DataFrame([("searched", 0.01, 500)], columns=["method", "replay_kl", "cache_bytes"]).to_csv(
            presets.parent / "methods.csv", index=False
        )
    (run / "policy.safetensors").unlink()
    assert set(policies_of(run, model.shape)) == {"searched-50", "h2o-50", "searched-7.5", "h2o-7.5"}
    save_policy(policy, run / "policy.safetensors")  # and the run's own, for its limit
    assert set(policies_of(run)) == {"searched-50", "h2o-50", "searched-7.5", "h2o-7.5", "searched-20"}
    for name in ("images.parquet", "scores.csv"):  # one more variant was evaluated
        table = pd.read_parquet(evaluation / name) if name.endswith("parquet") else pd.read_csv(evaluation / name)
        table = pd.concat([table, table[table["variant"] == "searched-20"].assign(variant="searched-50")])
        table.to_parquet(evaluation / name) if name.endswith("parquet") else table.to_csv(evaluation / name, index=False)
    table = meaning(evaluation, [run]).table
    more = table[(table["budget"] == 0.5) & (table["category"] == "overall")].iloc[0]
    assert (more["method"], more["replay_kl"], more["cache_bytes"]) == ("searched", 0.01, 500)


def test_the_figure_draws_each_method_at_each_budget(meaning, tmp_path: Path) -> None:
    evaluation, run = make(tmp_path, dict.fromkeys(METHODS, 0.5))
    table = meaning(evaluation, [run]).table
    more = table[table["method"] != "full"].assign(budget=0.1, score=0.25)
    axes = meaning_figure(pd.concat([table, more])).axes[0]
    heights = {tuple(line.get_ydata()) for line in axes.lines}
    for method in METHODS:
        score = table[(table["method"] == method) & (table["category"] == "overall")]["score"].iloc[0]
        assert (score, 0.25) in heights
    assert {text.get_text() for text in axes.texts} == set(METHODS)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["20", "10"]


def test_a_damaged_table_is_named_itself_and_copies_of_policies_are_nobody_s(meaning, tmp_path: Path) -> None:
    evaluation, run = make(tmp_path, dict.fromkeys(METHODS, 0.5))
    (run / "policies").mkdir()
    (run / "policies" / "keep-20-old.safetensors").write_bytes(b"")
    assert set(meaning(evaluation, [run]).table["method"]) == {"full", *METHODS}
    (run / "methods.csv").write_text("variant,replay_kl\nh2o,1\n")
    with pytest.raises(DataError, match=r"run/methods.csv: has no column method; its columns are variant, replay_kl"):
        meaning(evaluation, [run])
    (run / "methods.csv").write_text("")
    with pytest.raises(DataError, match=r"run/methods.csv: cannot be read as a CSV table"):
        meaning(evaluation, [run])
    (run / "methods.csv").write_text("method,replay_kl,cache_bytes\nh2o,NaN,1\n")
    with pytest.raises(DataError, match=r'run/methods.csv: row 1 has replay_kl "NaN", expected a number'):
        meaning(evaluation, [run])
    (run / "methods.csv").write_text("method,replay_kl,cache_bytes\nh2o,1,1\n")
    with pytest.raises(DataError, match=r"run: its methods.csv has no row of the full cache"):
        meaning(evaluation, [run])
    (run / "methods.csv").write_text("method,replay_kl,cache_bytes\nfull,0,\n")
    with pytest.raises(DataError, match=r"run/methods.csv: has a row without replay_kl or cache_bytes"):
        meaning(evaluation, [run])
    with pytest.raises(DataError, match="nope: no such run folder"):
        meaning(evaluation, [tmp_path / "nope"])


@pytest.mark.parametrize("facts", ["[]", '{"limit": null}', '{"limit": {"text": 20}}', "{", '{"limit": 1, "limit": 2}'])
def test_a_run_that_names_no_limit_is_refused(meaning, tmp_path: Path, facts: str) -> None:
    evaluation, run = make(tmp_path, dict.fromkeys(METHODS, 0.5))
    (run / "run.json").write_text(facts)
    with pytest.raises(DataError, match=r"run\.json: "):
        meaning(evaluation, [run])


def test_images_that_do_not_go_with_the_scores_are_named(meaning, tmp_path: Path) -> None:
    evaluation, run = make(tmp_path, dict.fromkeys(METHODS, 0.5))
    file = evaluation / "images.parquet"
    images = pd.read_parquet(file)
    images[images["variant"] != "h2o-20"].to_parquet(file)
    with pytest.raises(DataError, match=r"scores\.csv has h2o-20, images\.parquet does not"):
        meaning(evaluation, [run])
    images.drop(columns="tag").to_parquet(file)
    with pytest.raises(DataError, match=r"images\.parquet: has no column tag"):
        meaning(evaluation, [run])
    file.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"images\.parquet: "):
        meaning(evaluation, [run])
    file.unlink()
    with pytest.raises(DataError, match=r"images\.parquet: no such table"):
        meaning(evaluation, [run])
