"""`headscope heads`: tell spatial heads from semantic ones, and how far to trust it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.console import Seed, pasted, say

if TYPE_CHECKING:
    import pandas as pd

    from headscope.heads import HeadClassifier
    from headscope.policy import ModelShape

RunPath = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder, made by `headscope trace` or `run`.")]


def heads(
    run: RunPath = None,
    method: Annotated[str, typer.Option(help="mixture, kmeans, or threshold, the paper's rule.")] = "mixture",
    clusters: Annotated[str, typer.Option(help="Number of clusters, or bic.")] = "2",
    threshold: Annotated[float, typer.Option(help="Of SSD's score, for the threshold rule and --scores.")] = 0.2,
    stability: Annotated[
        bool,
        typer.Option(
            "--stability", help="How far two looks agree: prompts, seeds, streams, and bands of rows where they were traced."
        ),
    ] = False,
    against: Annotated[list[Path] | None, typer.Option(help="Other runs of this model to compare with (--stability).")] = None,
    scores: Annotated[Path | None, typer.Option(help="Read a published head map (CSV) instead of a trace.")] = None,
    model_shape: Annotated[str | None, typer.Option(help="LAYERSxHEADS of that map, such as 24x16.")] = None,
    explain: Annotated[str | None, typer.Option(metavar="L7H9", help="Say and show why this head is what it is.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for --scores (default: heads.safetensors).")] = None,
    seed: Seed = 0,
) -> None:
    """Classify the heads of a trace. Example: headscope heads runs/stickers"""
    if (run is None) == (scores is None):
        raise typer.BadParameter("give a run folder, or --scores FILE with --model-shape.")
    if not (clusters == "bic" or clusters.isdigit()):
        raise typer.BadParameter(f"--clusters {clusters}: expected a number or bic.")
    if against and not stability:
        raise typer.BadParameter("--against is what --stability compares with: give both.")
    if scores is not None:
        if explain is not None or stability:
            raise typer.BadParameter("a published map has scores alone: --explain and --stability need a run folder.")
        _published(scores, model_shape, threshold, out or Path("heads.safetensors"))
        return
    assert run is not None
    plain = (method, clusters, threshold) == ("mixture", "2", 0.2)
    if explain is not None and plain and (run / "heads.safetensors").is_file():
        _explain(run, explain)  # of the classes that stand, whichever method made them
        return
    from headscope.heads import HeadClassifier
    from headscope.pipeline import heads_step, open_run

    count = clusters if clusters == "bic" else int(clusters)
    judge = HeadClassifier(seed, method=method, n_clusters=count, threshold=threshold)
    opened = open_run(run)
    found = heads_step(opened, judge)
    _counts(found.table)
    say(str(found.meta["verdict"]))
    if stability:
        _stability(opened.folder.trace, opened.model.shape, judge, against or [], opened.folder.stability, seed)
    say(f"heads: {opened.folder.heads}")
    if explain is not None:
        _explain(run, explain)
        return
    say(f"next: {pasted('headscope', 'search', run, '--keep', '20%')}")


def _counts(table: pd.DataFrame) -> None:
    counts = table["class"].value_counts().to_dict()
    say("  ".join(f"{name} {counts.get(name, 0)}" for name in ("spatial", "semantic")))


def _explain(run: Path, head: str) -> None:
    from headscope.reporting import explain_head, save_figure

    explanation, figure = explain_head(run, head)
    for sentence in explanation.sentences():
        say(sentence)
    say(f"figure: {save_figure(figure, run / 'figures' / f'{explanation.name}.png')}")


def _published(file: Path, model_shape: str | None, threshold: float, out: Path) -> None:
    from headscope.heads import read_scores

    if model_shape is None:
        raise typer.BadParameter("--scores needs --model-shape, such as 24x16.")
    found = read_scores(file, model_shape, threshold)
    found.save(out)
    _counts(found.table)
    score = found.table["semantic_score"]
    shares = " / ".join(f"{(score > edge).mean():.0%}" for edge in (0.2, 0.3, 0.5))
    say(f"mean score {score.mean():.3f}, median {score.median():.3f}; above .2 / .3 / .5: {shares}")
    say(f"heads: {out}")


def _stability(trace: Path, shape: ModelShape, judge: HeadClassifier, against: list[Path], out: Path, seed: int) -> None:
    from headscope import words
    from headscope.cli.tables import print_table
    from headscope.errors import DataError
    from headscope.heads import enough, measure_stability
    from headscope.storage import write_csv
    from headscope.tracing import TraceDataset

    here = TraceDataset(trace)
    traces = {str(path): TraceDataset(path / "trace") for path in against}
    for name, other in traces.items():
        if other.meta["weights"] != here.meta["weights"]:
            raise DataError(f"{name}: is a run of other weights than {trace.parent}; name runs of the same model.")
    others = {name: other.heads() for name, other in traces.items()}
    table = measure_stability(here.heads(band=None), shape, judge, others=others, seed=seed)
    write_csv(table, out, float_format="%.4f")
    shown = table[["what", "value"]].rename(columns={"what": "agreement between", "value": ""})
    for name, digits in (("rand", 2), ("rank", 3)):
        ends = zip(table[f"{name}_low"], table[f"{name}_high"], strict=True)
        shown[name] = table[name].map(f"{{:.{digits}f}}".format)
        shown[f"{name}, 10-90 %"] = [f"{low:.{digits}f}-{high:.{digits}f}" for low, high in ends]
    print_table(shown)
    say(words.prompts_needed(enough(table), int(table.loc[table["what"] == "prompts", "value"].iloc[-1])))
    say(f"stability: {out}")
