"""Charts of features and of many heads show the numbers they are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from headscope.errors import DataError
from headscope.heads import FEATURES
from headscope.reporting import feature_charts, fronts, head_charts
from headscope.reporting.charts import ablation_panels
from headscope.reporting.explain import explain, parse_head
from headscope.reporting.footprints import footprints
from headscope.reporting.style import CLASSES, FORMATS, save_figure

LAYERS, HEADS, SIDE = 4, 6, 5


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    score = rng.random(LAYERS * HEADS)
    features = {name: (k % 3 - 1) * score + rng.random(len(score)) for k, name in enumerate(FEATURES)}
    return pd.DataFrame(
        {
            "layer": np.repeat(range(LAYERS), HEADS),
            "kv_head": np.tile(range(HEADS), LAYERS),
            "class": np.where(score > 0.5, "semantic", "spatial"),
            "semantic_score": score,
            "confidence": 0.9,
            "stability": 1.0,
            **features,
        }
    )


@pytest.fixture(scope="module")
def curves() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "footprint": torch.rand(LAYERS, HEADS, SIDE, 2 * SIDE - 1, generator=generator),
        "lag_mass": torch.rand(LAYERS, HEADS, SIDE * SIDE, generator=generator) / SIDE**2,
    }


def test_a_head_map_shows_the_mean_of_each_head_s_rows(table: pd.DataFrame) -> None:
    twice = pd.concat([table, table.assign(entropy=table["entropy"] + 1)])
    axes = head_charts.statistic_map(twice, "entropy", "nats").axes[0]
    shown = np.asarray(axes.collections[0].get_array()).reshape(LAYERS, HEADS)
    assert np.allclose(shown, table["entropy"].to_numpy().reshape(LAYERS, HEADS) + 0.5)


def test_a_head_map_of_an_unknown_statistic_names_the_known_ones(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"statistic entropie: not in the trace, which has .*entropy"):
        head_charts.statistic_map(table, "entropie")


def test_decay_curves_are_the_medians_of_the_classes(table: pd.DataFrame, curves: dict[str, torch.Tensor]) -> None:
    axes = head_charts.decay(curves["lag_mass"], table, SIDE).axes[0]
    for line, kind in zip(axes.lines, CLASSES, strict=False):
        part = table[table["class"] == kind]
        mass = np.stack([curves["lag_mass"][r.layer, r.kv_head].numpy() for r in part.itertuples()])
        shown = np.asarray(line.get_ydata(), dtype=float)
        assert np.allclose(shown, np.median(mass[:, : len(shown)], 0), rtol=1e-5)


def test_footprints_stand_upright_with_the_query_at_the_bottom(curves: dict[str, torch.Tensor]) -> None:
    masses = torch.zeros_like(curves["footprint"])
    masses[1, 2, 3, SIDE - 1] = 1.0  # all of it three rows up
    labels = ["spatial, 0.10", "semantic, 0.90"]
    first, second = footprints(masses, [(1, 2), (3, 0)], ["spatial", "semantic"], labels).axes
    cell = next(patch for patch in first.patches if patch.get_alpha() == 1)
    left, bottom, right, top = cell.get_path().get_extents().extents
    assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx((0, 3))
    assert not first.yaxis_inverted()
    assert first.get_title(loc="left") == "L1H2  spatial, 0.10"
    assert len(second.patches) == 1  # nothing but the query


def test_class_by_layer_shows_each_head_once_and_the_layers_means(table: pd.DataFrame) -> None:
    axes = feature_charts.class_by_layer(table).axes[0]
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == len(table)
    mean = next(line for line in axes.lines if line.get_label() == "mean of the layer")
    assert np.allclose(mean.get_ydata(), table.groupby("layer")["semantic_score"].mean())


def test_telling_leaves_out_what_says_the_same(table: pd.DataFrame) -> None:
    doubled = table.assign(sparsity_image_1=table["sparsity_1"] * 2 + 1)
    chosen = feature_charts.telling(doubled, 9)
    assert {"sparsity_1", "sparsity_image_1"} & set(chosen)
    assert not {"sparsity_1", "sparsity_image_1"} <= set(chosen)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_data_give_the_same_file(table: pd.DataFrame, tmp_path: Path, kind: str) -> None:
    files = [save_figure(feature_charts.class_by_layer(table), tmp_path / f"{n}.{kind}").read_bytes() for n in "ab"]
    assert len(files[0]) > 2000
    assert files[0] == files[1]


def test_figures_leave_nothing_open_in_pyplot(table: pd.DataFrame) -> None:
    import matplotlib.pyplot as plt

    losses = pd.DataFrame({"budget": [0.2, 0.5], "method": "searched", "seed": 0, "trial": 1, "sampler": "tpe"})
    losses = losses.assign(replay_kl=[0.2, 0.1], best_kl=[0.2, 0.1], seed=[0, 1])
    fronts.budgets_figure(losses)
    fronts.trials_figure(losses)
    feature_charts.pair_plot(table, feature_charts.telling(table, 2))
    feature_charts.dendrogram(table)
    assert plt.get_fignums() == []


def test_every_pair_of_features_has_its_panel_and_every_head_a_dot(table: pd.DataFrame) -> None:
    names = feature_charts.telling(table, 3)
    panels = [axes for axes in feature_charts.pair_plot(table, names).axes if axes.axison]
    assert len(panels) == 6  # three pairs, and how each is distributed
    below = [axes for axes in panels if len(axes.collections) == 1 and len(axes.collections[0].get_offsets()) == len(table)]
    assert len(below) == 3


def test_a_dendrogram_orders_all_heads_with_their_classes(table: pd.DataFrame) -> None:
    tree, classes, features, _ = feature_charts.dendrogram(table).axes
    names = [label.get_text() for label in features.get_xticklabels()]
    kinds = table["class"].set_axis([f"L{row.layer}H{row.kv_head}" for row in table.itertuples()])
    assert sorted(names) == sorted(kinds.index)
    shown = np.asarray(classes.collections[0].get_array()).ravel()
    assert [CLASSES[int(number)] for number in shown] == [kinds[name] for name in names]
    assert len(tree.collections[0].get_segments()) == len(table) - 1


def test_what_heads_need_is_shown_at_its_place_a_panel_a_budget() -> None:
    rows = {"layer": [0, 0, 1], "kv_head": [0, 1, 0], "class": ["spatial", "semantic", "semantic"], "both": 0.1}
    losses = pd.DataFrame({**rows, "semantic_score": [0.1, 0.9, 0.5], "window": [0.1, 0.4, 0.0], "heavy": [0.2, 0.1, 0.0]})
    found = [_Found(keep, losses.assign(heavy_preference=[-0.3, 0.6, np.nan])) for keep in ("30%", "20%")]
    first, second = ablation_panels(found).axes
    assert np.allclose([dots.get_offsets()[0] for dots in first.collections], [(0.1, -0.3), (0.9, 0.6)])
    assert "20%: rank correlation 0.50" in second.get_title(loc="left")


@dataclass
class _Found:
    keep: str
    table: pd.DataFrame
    correlation: float = 0.5
    low: float = 0.4
    high: float = 0.6


def test_a_figure_of_an_unknown_format_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="written as png, svg, pdf"):
        save_figure(feature_charts.class_by_layer(table), tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()


def test_pushes_add_up_to_where_a_head_lies_between_the_classes(table: pd.DataFrame, curves: dict[str, torch.Tensor]) -> None:
    total = [explain(table, curves, layer, head).reasons["push"].sum() for layer in range(LAYERS) for head in range(HEADS)]
    by_class = pd.Series(total).groupby(table["class"].to_numpy()).mean()
    assert by_class["semantic"] == pytest.approx(1.0)
    assert by_class["spatial"] == pytest.approx(-1.0)


def test_an_explanation_speaks_for_the_class_with_what_pushes_most(
    table: pd.DataFrame, curves: dict[str, torch.Tensor]
) -> None:
    found = explain(table, curves, 2, 3, losses={"20%": {"window": 0.5, "heavy": 0.25, "both": 0.1}})
    said = found.sentences()
    sign = 1 if found.head["class"] == "semantic" else -1
    strongest = found.reasons.loc[(sign * found.reasons["push"]).idxmax(), "feature"]
    assert said[0].startswith(f"L2H3 is {found.head['class']}: semantic score {found.head['semantic_score']:.2f}")
    assert f"For that speaks {strongest}" in said[2]
    assert "Alone at 20% it loses, in nats a token: window 0.5000, heavy 0.2500, both 0.1000; both serves it best" in said[-1]


@pytest.mark.parametrize("name", ["7", "L7", "H7L1", "L-1H2", "LxHy"])
def test_what_is_no_head_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="expected a layer and a KV head such as L7H9"):
        parse_head(name, 8, 8)
    with pytest.raises(DataError, match="layers L0 to L7 and KV heads H0 to H7"):
        parse_head("L8H0", 8, 8)
    assert parse_head(" l3h5 ", 8, 8) == (3, 5)
