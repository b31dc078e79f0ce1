"""The figure of `headscope sensitivity`: does the semantic score say what a head needs?"""

from __future__ import annotations

from collections.abc import Sequence

import seaborn as sns
from matplotlib.figure import Figure

from headscope.reporting.plots import CLASSES, COLOURS, QUIET, styled
from headscope.tuning import Needs


def needs_figure(found: Sequence[Needs]) -> Figure:
    """A panel a budget, a dot a head: semantic score against what it needs; area: the larger of the two losses."""
    with styled():
        figure = Figure(figsize=(3.4 * len(found) + 1.5, 3.5))
        panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for number, (axes, one) in enumerate(zip(panels, found, strict=True)):
            felt = one.table[one.table["needs"].notna()]
            felt = felt.assign(loss=felt[["window", "heavy"]].max(axis=1))
            sns.scatterplot(
                felt,
                x="semantic_score",
                y="needs",
                hue="class",
                hue_order=[kind for kind in CLASSES if kind in set(felt["class"])],
                palette=COLOURS,
                size="loss",
                sizes=(14, 170),
                alpha=0.75,
                linewidth=0.4,
                legend="brief" if number == len(found) - 1 else False,
                ax=axes,
            )
            axes.axhline(0, color=QUIET, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
            between = f"{one.low:.2f} to {one.high:.2f}"
            axes.set_title(f"{one.keep}: rank correlation {one.correlation:.2f} ({between})", fontsize=9)
            axes.set(
                xlabel="semantic score", ylabel="needs   window ←   → heavy tokens", xlim=(-0.03, 1.03), ylim=(-1.08, 1.08)
            )
        if (legend := panels[-1].get_legend()) is not None:
            sns.move_legend(panels[-1], "upper left", bbox_to_anchor=(1.01, 1.02))
            for label in legend.get_texts():
                if label.get_text() == "loss":
                    label.set_text("larger loss, nats")
    return figure
