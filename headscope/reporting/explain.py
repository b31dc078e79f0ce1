"""Why a head is what it is: in sentences, and as one figure."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from headscope.errors import DataError
from headscope.heads import FEATURES, SEMANTIC, SPATIAL
from headscope.reporting.data import read_run
from headscope.reporting.footprints import described, draw_footprint
from headscope.reporting.style import COLOURS, INK, QUIET, blank, distance_axis, name_of, styled
from headscope.tracing import TraceDataset
from headscope.words import nats, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = {
    "sparsity_1": "attention beyond its next neighbours, SSD's score",
    "sparsity_image_1": "the same of the attention to the image alone",
    "mean_distance": "how many cells away it looks on average",
    "prefix_mass": "attention to the prompt",
    "margin_mass": "attention to the first and the last column",
    "entropy": "how widely it looks, 1 being everywhere alike",
    "column_concentration": "share of the 5 % most attended tokens",
    "row_above": "attention to the cell above its own",
    "row_above_right": "attention to the cell above the one it is about to draw",
    "previous_token": "attention to the token before",
}
_OF_ROWS = ("row_above", "row_above_right", "margin_mass")  # what says nothing where there is a single row
WORDS_FROM = 0.05  # attention to the prompt from which on its words are told


def parse_head(text: str, layers: int, kv_heads: int) -> tuple[int, int]:
    """`L7H9` -> (7, 9).

    Args:
        text: the head's name, in capitals or not.
        layers: of the model.
        kv_heads: of a layer.

    Raises:
        DataError: it does not look so, or the model has no such KV head.
    """
    match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)", text.strip())
    if match is None:
        raise DataError(f"head {text}: expected a layer and a KV head such as L7H9, both counted from 0.")
    layer, head = int(match[1]), int(match[2])
    if layer >= layers or head >= kv_heads:
        raise DataError(f"head {text}: the model has layers L0 to L{layers - 1} and KV heads H0 to H{kv_heads - 1}.")
    return layer, head


@dataclass(frozen=True)
class Explanation:
    """One head among all.

    Attributes:
        head: its row of `Heads.table`.
        reasons: a row a feature: feature, value, spatial, semantic (means of the classes), z (standard deviations from the
            mean of all heads), push (how far it moves the head towards semantic, > 0, or spatial, < 0, in half distances of the
            class means; their sum is where the head lies: -1 at the spatial mean, 1 at the semantic one).
        footprint: float32 [rows, 2 row_length - 1], attention by (rows up, columns right).
        lag_mass: float32 [lags], attention by how many tokens before the query.
        by_class: class -> float32 [lags], the median of its heads' lag_mass.
        words: word and share of attention, most first; empty where the head does not read the prompt.
        losses: share kept -> nats a token by what the head keeps, from `headscope sensitivity`; empty where that has not run.
    """

    head: pd.Series
    reasons: pd.DataFrame
    footprint: torch.Tensor
    lag_mass: torch.Tensor
    by_class: dict[str, torch.Tensor]
    words: list[tuple[str, float]]
    losses: dict[str, dict[str, float]]

    @property
    def name(self) -> str:
        """`L7H9`."""
        return name_of(int(self.head["layer"]), int(self.head["kv_head"]))

    def sentences(self) -> list[str]:
        """What there is to say, the conclusion first."""
        head, kind = self.head, str(self.head["class"])
        steady = f", the same in {percent(head['stability'])} of resamples" if np.isfinite(head["stability"]) else ""
        trust = f"confidence {percent(head['confidence'])}{steady}"
        said = [
            f"{self.name} is {kind}: semantic score {head['semantic_score']:.2f}, {trust}.",
            f"Of its attention to the {'text' if self.footprint.shape[0] == 1 else 'image'}: {described(self.footprint)}.",
        ]
        sign = 1 if kind == SEMANTIC else -1
        speaking = self.reasons[sign * self.reasons["push"] > 0.05].head(3)
        said += [f"For that speaks {_reason(row)}" for row in speaking.to_dict("records")]
        against = self.reasons[sign * self.reasons["push"] < -0.05].head(1)
        said += [f"Against it speaks {_reason(row)}" for row in against.to_dict("records")]
        if self.words:
            told = ", ".join(f"{text} {percent(mass, 1)}" for text, mass in self.words[:3])
            said.append(f"Words of prompts that it reads most, each where it occurs: {told}.")
        for keep, losses in self.losses.items():
            told = ", ".join(f"{name} {nats(loss)}" for name, loss in losses.items())
            best = min(losses, key=lambda name: losses[name])
            said.append(f"Alone at {keep} it loses, in nats a token: {told}; {best} serves it best.")
        return said


def _reason(row: dict[str, float | str]) -> str:
    name = str(row["feature"])
    meaning = f" ({PLAIN[name]})" if name in PLAIN else ""
    others = f"spatial heads have {row['spatial']:.2g}, semantic {row['semantic']:.2g} on average"
    return f"{name}{meaning}: {row['value']:.2g}; {others}."


def explain(
    table: pd.DataFrame,
    curves: dict[str, torch.Tensor],
    layer: int,
    kv_head: int,
    *,
    words: pd.DataFrame | None = None,
    losses: dict[str, dict[str, float]] | None = None,
) -> Explanation:
    """Explain KV head (layer, kv_head).

    Args:
        table: of `Heads`, classified from a trace.
        curves: `footprint`, float32 [layers, KV heads, rows, 2 row_length - 1], and `lag_mass`, [layers, KV heads, lags].
        layer: its number, from 0.
        kv_head: its number in the layer, from 0.
        words: of `TraceDataset.words` for the query heads of this KV head.
        losses: see `Explanation`.

    Raises:
        DataError: the table holds scores alone, as read from a published map.
    """
    flat = curves["footprint"].shape[2] == 1  # a text has no rows and no margins
    names = [name for name in FEATURES if name in table.columns and not (flat and name in _OF_ROWS)]
    if not names:
        raise DataError("The head classes come without features (a published map), so there is nothing to explain: trace.")
    row = table[(table["layer"] == layer) & (table["kv_head"] == kv_head)].iloc[0]
    means, spread = table[names].mean(), table[names].std().where(lambda s: s > 1e-12, 1.0)
    standard = (table[names] - means) / spread
    centres = {kind: standard[table["class"] == kind].mean() for kind in (SPATIAL, SEMANTIC)}
    centres = {kind: centre if centre.notna().all() else standard.mean() for kind, centre in centres.items()}
    half = (centres[SEMANTIC] - centres[SPATIAL]) / 2
    z = standard.loc[row.name]
    push = (z - (centres[SEMANTIC] + centres[SPATIAL]) / 2) * half / max(float((half**2).sum()), 1e-12)
    reasons = pd.DataFrame(
        {
            "feature": names,
            "value": row[names].astype(float).to_numpy(),
            "spatial": (centres[SPATIAL] * spread + means).to_numpy(),
            "semantic": (centres[SEMANTIC] * spread + means).to_numpy(),
            "z": z.to_numpy(dtype=float),
            "push": push.to_numpy(dtype=float),
        }
    )
    read: list[tuple[str, float]] = []
    if words is not None and len(words) and float(row.get("prefix_mass", 0.0)) > WORDS_FROM:
        # A word's share where it occurs; summed over the query heads' mean, so that a group counts as one head.
        per_prompt = words.groupby(["sample", "word", "text"])["mass"].mean().reset_index()
        read = [(str(k), float(v)) for k, v in per_prompt.groupby("text")["mass"].mean().sort_values(ascending=False).items()]
    of_class = {}
    for kind, part in table.groupby("class"):
        mass = torch.stack([curves["lag_mass"][r.layer, r.kv_head] for r in part.itertuples()])
        of_class[str(kind)] = mass.quantile(0.5, 0)
    order = reasons["push"].abs().sort_values(ascending=False, kind="stable").index
    return Explanation(
        row,
        reasons.loc[order].reset_index(drop=True),
        curves["footprint"][layer, kv_head],
        curves["lag_mass"][layer, kv_head],
        of_class,
        read,
        losses or {},
    )


def explain_head(run_folder: str | Path, head: str) -> tuple[Explanation, Figure]:
    """Explain a head of a run folder, such as "L7H9", with what is known of it there.

    Raises:
        DataError: the heads are not classified, or there is no such head.
    """
    data = read_run(run_folder)
    if data.heads is None or data.curves is None:
        command = shlex.join(["headscope", "heads", str(data.path)])
        raise DataError(f"{data.path}: the heads are not classified yet; run `{command}` first.")
    model = data.run["model"]
    layer, kv_head = parse_head(head, int(model["layers"]), int(model["kv_heads"]))
    group = int(model["query_heads"]) // int(model["kv_heads"])
    queries = range(kv_head * group, (kv_head + 1) * group)
    losses = {}
    if data.ablation is not None:
        mine = data.ablation[(data.ablation["layer"] == layer) & (data.ablation["kv_head"] == kv_head)]
        kinds = ("window", "heavy", "both")
        losses = {str(row["keep"]): {kind: float(row[kind]) for kind in kinds} for row in mine.to_dict("records")}
    explanation = explain(
        data.heads.table,
        {name: data.by_kv_head(name) for name in ("footprint", "lag_mass")},
        layer,
        kv_head,
        words=TraceDataset(data.path / "trace").words(layer=layer, head=queries),
        losses=losses,
    )
    geometry = model["geometry"]
    return explanation, explained(explanation, int(geometry["cols"]) + int(geometry.get("row_end", 0)))


@styled()
def explained(explanation: Explanation, row_length: int) -> Figure:
    """Footprint, attention by distance beside the classes' medians, and what pushes the head to its side."""
    tall, wide = explanation.footprint.shape
    figure = blank(10.4, 3.1)
    places = figure.subplots(1, 3, width_ratios=(2.9 if tall == 1 else 2.9 * wide / max(wide, 2 * tall), 3.3, 2.6))
    kind, score = str(explanation.head["class"]), explanation.head["semantic_score"]
    draw_footprint(places[0], explanation.footprint, kind, f"{explanation.name}  {kind}, score {score:.2f}")
    _distances(places[1], explanation, row_length)
    _pushes(places[2], explanation)
    return figure


def _distances(axes: Axes, explanation: Explanation, row_length: int) -> None:
    last = min(len(explanation.lag_mass), 4 * row_length + 2)
    for kind, curve in explanation.by_class.items():
        axes.plot(curve[:last].clamp(min=1e-5), color=COLOURS[kind], linewidth=1.2, alpha=0.75, label=f"median {kind}")
    axes.plot(explanation.lag_mass[:last].clamp(min=1e-5), color=INK, linewidth=1.5, label=explanation.name)
    distance_axis(axes, last, row_length)
    axes.set_title("attention by distance")
    axes.legend(loc="upper right", frameon=True, framealpha=0.85, edgecolor="none")


def _pushes(axes: Axes, explanation: Explanation) -> None:
    reasons = explanation.reasons.iloc[::-1]
    colours = [COLOURS[SEMANTIC if push > 0 else SPATIAL] for push in reasons["push"]]
    axes.barh(reasons["feature"], reasons["push"], color=colours, height=0.62)
    axes.axvline(0, color=QUIET, linewidth=0.8)
    axes.set(title="what pushes it", xlabel="← spatial    semantic →")
    axes.tick_params(left=False)
