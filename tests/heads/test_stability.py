"""Two looks at heads that differ agree; at heads that do not, they don't. Published maps are read, or refused in a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.heads import stability
from headscope.heads.features import FEATURES
from headscope.heads.published import read_scores
from headscope.heads.stability import enough, measure_stability
from headscope.policy.shape import ModelShape
from tests.heads.test_classifier import two_kinds


def traced(noise: float, images: int = 8) -> tuple[pd.DataFrame, ModelShape]:
    """30 heads in 5 layers, of two kinds; every image adds noise of its own."""
    rng = np.random.default_rng(4)
    values = two_kinds(0, 20, 10)[0]
    rows = []
    for sample in range(images):
        for stream in ("conditional", "unconditional"):
            seen = values + noise * rng.standard_normal(values.shape) * values.std(0)
            for head, row in enumerate(seen):
                keys = {"sample": sample, "stream": stream, "layer": head // 6, "head": head % 6, "band": -1}
                rows.append(keys | dict(zip(FEATURES, row, strict=True)))
    return pd.DataFrame(rows), ModelShape("toy", 5, 6, 6, 8, Geometry(6, 6), "archi", "weights")


@pytest.fixture
def two_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "REPEATS", 2)


def test_a_single_head_has_no_stability() -> None:
    table, shape = traced(0.01, 2)
    with pytest.raises(DataError, match="toy has one head, and stability compares"):
        measure_stability(table.query("layer == 0 and head == 0"), replace(shape, layers=1, query_heads=1, kv_heads=1))


@pytest.mark.usefixtures("two_draws")
def test_clear_kinds_agree_from_one_prompt_on() -> None:
    table, shape = traced(0.01)
    found = measure_stability(table, shape)
    assert found["what"].tolist() == ["prompts"] * 3 + ["seeds", "streams"]
    assert found["value"].tolist()[:3] == ["1", "2", "4"]
    assert (found["rand"] == 1).all()
    assert enough(found, rank=0.9) == 1


def test_noise_needs_more_prompts_and_is_seen() -> None:
    table, shape = traced(8.0)
    found = measure_stability(table, shape)
    prompts = found[found["what"] == "prompts"]
    assert prompts["rank"].is_monotonic_increasing
    assert prompts["rank"].iloc[0] < 0.8
    assert enough(found) is None


@pytest.mark.usefixtures("two_draws")
def test_a_seed_gives_its_draws() -> None:
    table, shape = traced(8.0, images=4)
    found = measure_stability(table, shape)
    pd.testing.assert_frame_equal(measure_stability(table, shape), found)


@pytest.mark.usefixtures("two_draws")
def test_bands_and_other_traces_get_rows_of_their_own() -> None:
    table, shape = traced(0.1)
    both = pd.concat([table, table.assign(band=0), table.assign(band=1)])
    found = measure_stability(both, shape, others={"guidance 5": table})
    assert found["value"].tolist()[-3:] == ["band 0", "band 1", "guidance 5"]
    assert found["rand"].iloc[-1] == 1
    with pytest.raises(DataError, match="expected at least two"):
        measure_stability(table[table["sample"] == 0], shape)


def test_a_published_map_becomes_heads(tmp_path: Path) -> None:
    file = tmp_path / "map.csv"
    file.write_text("0.1,0.9,0.2\n0.5,0.0,1.0\n", encoding="utf-8")
    heads = read_scores(file, "2x3", threshold=0.3)
    assert heads.scores().tolist() == [[pytest.approx(v) for v in row] for row in ([0.1, 0.9, 0.2], [0.5, 0.0, 1.0])]
    assert heads.table["class"].tolist() == ["spatial", "semantic", "spatial", "semantic", "spatial", "semantic"]
    assert heads.load(heads.save(tmp_path / "h.parquet")).table["kv_head"].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("content", "shape", "words"),
    [
        ("0.1,0.2\n", "2x2", "has 1 lines, expected 2"),
        ("0.1,0.2\n0.3\n", "2x2", "line 2 has 1 numbers, expected 2"),
        ("0.1,x\n0.3,0.4\n", "2x2", "layer 0 head 1 is 'x', expected a number"),
        ("0.1,0.2\n0.3,1.4\n", "2x2", "layer 1 head 1 is 1.4, expected a score from 0 to 1"),
        ("0.1,nan\n0.3,0.4\n", "2x2", "layer 0 head 1 is nan"),
        ("0.1,0.2\n", "two by two", "expected LAYERSxHEADS"),
    ],
)
def test_a_map_that_does_not_fit_is_one_sentence(tmp_path: Path, content: str, shape: str, words: str) -> None:
    file = tmp_path / "map.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_scores(file, shape)
    with pytest.raises(DataError, match="no such file"):
        read_scores(tmp_path / "none.csv", "2x2")
