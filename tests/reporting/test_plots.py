"""The seaborn figures show the numbers they are given."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from headscope.errors import DataError
from headscope.heads import FEATURES
from headscope.reporting import fronts, plots
from headscope.reporting.explain import explain, parse_head

mpl.use("Agg")
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
    axes = plots.statistic_map(twice, "entropy", "nats").axes[0]
    shown = np.asarray(axes.collections[0].get_array()).reshape(LAYERS, HEADS)
    assert np.allclose(shown, table["entropy"].to_numpy().reshape(LAYERS, HEADS) + 0.5)


def test_a_head_map_of_an_unknown_statistic_names_the_known_ones(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"statistic entropie: not in the trace, which has .*entropy"):
        plots.statistic_map(table, "entropie")


def test_decay_curves_are_the_medians_of_the_classes(table: pd.DataFrame, curves: dict[str, torch.Tensor]) -> None:
    axes = plots.decay_curves(curves["lag_mass"], table, SIDE).axes[0]
    for line, kind in zip(axes.lines, plots.CLASSES, strict=False):
        part = table[table["class"] == kind]
        mass = np.stack([curves["lag_mass"][r.layer, r.kv_head].numpy() for r in part.itertuples()])
        shown = np.asarray(line.get_ydata(), dtype=float)
        assert np.allclose(shown, np.median(mass[:, : len(shown)], 0), rtol=1e-5)


def test_footprints_stand_upright_with_the_query_at_the_bottom(curves: dict[str, torch.Tensor]) -> None:
    axes = plots.footprints(curves["footprint"], [(1, 2), (3, 0)], ["spatial, 0.10"]).axes
    shown = np.asarray(axes[0].images[0].get_array())
    assert np.allclose(shown[-1] ** 2, curves["footprint"][1, 2, 0].numpy(), atol=1e-6)  # the lowest line: the query's own row
    assert axes[0].get_title(loc="left") == "L1H2  spatial, 0.10"
    assert axes[1].get_title(loc="left") == "L3H0"


def test_class_by_layer_shows_each_head_once_and_the_layers_means(table: pd.DataFrame) -> None:
    axes = plots.class_by_layer(table).axes[0]
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == len(table)
    mean = next(line for line in axes.lines if line.get_label() == "mean of the layer")
    assert np.allclose(mean.get_ydata(), table.groupby("layer")["semantic_score"].mean())


def test_telling_leaves_out_what_says_the_same(table: pd.DataFrame) -> None:
    doubled = table.assign(sparsity_image_1=table["sparsity_1"] * 2 + 1)
    chosen = plots.telling(doubled, 9)
    assert {"sparsity_1", "sparsity_image_1"} & set(chosen)
    assert not {"sparsity_1", "sparsity_image_1"} <= set(chosen)


@pytest.mark.parametrize("kind", plots.FORMATS)
def test_the_same_data_give_the_same_file(table: pd.DataFrame, tmp_path: Path, kind: str) -> None:
    files = [plots.save_figure(plots.class_by_layer(table), tmp_path / f"{n}.{kind}").read_bytes() for n in "ab"]
    assert len(files[0]) > 2000
    assert files[0] == files[1]


def test_figures_leave_nothing_open_in_pyplot(table: pd.DataFrame) -> None:
    losses = pd.DataFrame({"budget": [0.2, 0.5], "method": "searched", "seed": 0, "trial": 1, "sampler": "tpe"})
    losses = losses.assign(replay_kl=[0.2, 0.1], best_kl=[0.2, 0.1], seed=[0, 1])
    fronts.budgets_figure(losses)
    fronts.trials_figure(losses)
    plots.pair_plot(table, plots.telling(table, 2))
    plots.dendrogram(table)
    assert plt.get_fignums() == []


def test_a_figure_of_an_unknown_format_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="written as png, svg, pdf"):
        plots.save_figure(plots.class_by_layer(table), tmp_path / "a.gif")
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
