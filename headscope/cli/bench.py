"""`headscope bench`: what things cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.console import RunPath, Seed, Trials, lines, progress, say, settle_threads
from headscope.cli.decode import decode

if TYPE_CHECKING:
    import pandas as pd

    from headscope.benchmarks.searching import Ground

app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")


app.command("decode")(decode)


@app.callback()
def _group() -> None:
    """Measure on this machine."""


@app.command("trace")
def trace(
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("trace.csv"),
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens, prompt included; may be given again.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="plain, tracer, tracer_full, maps (default: all).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Passes of each; the least time counts.")] = 5,
    layers: Annotated[int, typer.Option(min=1)] = 8,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    head_dim: Annotated[int, typer.Option(min=2)] = 64,
    intermediate: Annotated[int, typer.Option(min=1)] = 1376,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Time and memory of tracing beside the plain pass. Example: headscope bench trace -o trace.csv"""
    import torch
    from rich.table import Table

    from headscope.benchmarks.tracing import VARIANTS, Shape, bench_tracing
    from headscope.storage import write_whole

    if unknown := [name for name in variant or () if name not in VARIANTS]:
        raise typer.BadParameter(f"variant {unknown[0]}: expected {', '.join(VARIANTS)}.")
    if dtype not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"dtype {dtype}: expected float32 or bfloat16.")
    torch.set_num_threads(threads)
    shape = Shape(layers, heads, head_dim, intermediate, dtype)
    with progress() as tell:
        table = bench_tracing(
            tokens or [600, 2400],
            shape,
            variants=variant or VARIANTS,
            repeats=repeats,
            progress=lambda done, total: tell("passes", done, total, float("nan")),
        )
    write_whole(out, lambda path: table.to_csv(path, index=False, float_format="%.4g"))
    shown = Table(*table.columns, box=None)
    for row in table.itertuples(index=False):
        shown.add_row(*(_cell(cell) for cell in row))
    lines.print(shown)
    say(f"table: {out}")


@app.command("stickereval")
def stickereval(
    evaluation: Annotated[Path, typer.Argument(metavar="EVALUATION", help="A folder of `headscope evaluate --run ...`.")],
    run: Annotated[list[Path], typer.Option(help="The runs whose policies it drew; give it again for more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write, with a figure beside it.")] = Path(
        "stickereval.csv"
    ),
    seed: Seed = 0,
) -> None:
    """Meaning by method and budget, and whether replay KL predicts it. Example: headscope bench stickereval e --run runs/s20"""
    from rich.table import Table

    from headscope.benchmarks.meaning import meaning
    from headscope.reporting.fronts import meaning_figure
    from headscope.reporting.plots import save_figure
    from headscope.storage import write_whole

    found = meaning(evaluation, run, seed)
    table = found.table.assign(cache_bytes=found.table["cache_bytes"].round().astype("Int64"))
    write_whole(out, lambda path: table.to_csv(path, index=False, float_format="%.5g"))
    overall = found.table[found.table["category"] == "overall"].drop(columns="category")
    for frame in (overall, found.correlations):
        shown = Table(*frame.columns, box=None)
        for row in frame.itertuples(index=False):
            shown.add_row(*(_cell(cell) for cell in row))
        lines.print(shown)
    say("correlation: Spearman's of replay KL and overall score within a budget, 95 % by bootstrap over prompts.")
    if found.left_out:
        say(f"left out, for no run given holds their loss: {', '.join(found.left_out)}.")
    figure = save_figure(meaning_figure(found.table), out.with_suffix(".png"))
    say(f"table: {out}, figure: {figure}")


Pictures = Annotated[int, typer.Option(min=1, help="Pictures of the sensitivity table.")]
Kept = Annotated[str, typer.Option(help="Shares of the plain cache: 50,30,20,15,10%.")]
OutFolder = Annotated[Path | None, typer.Option(help="Where studies are kept (default: bench/ in RUN); goes on there.")]


@app.command("search")
def search(
    run: RunPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("search.csv"),
    keep: Kept = "50,30,20,15,10%",
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    trials: Trials = 60,
    table_pictures: Pictures = 8,
    folder: OutFolder = None,
) -> None:
    """Every preset, the solver, Optuna and both, on unseen pictures. Example: headscope bench search runs/stickers"""
    from headscope.benchmarks.searching import COLUMNS, bench_search
    from headscope.cli.search import keep_list
    from headscope.reporting.fronts import budgets_figure
    from headscope.reporting.plots import save_figure
    from headscope.storage import write_whole

    ground = _ground(run, folder)

    def written(table: pd.DataFrame) -> None:
        write_whole(out, lambda path: table.to_csv(path, index=False, float_format="%.6g"))

    with progress() as tell:
        table = bench_search(
            ground, keep_list(keep), seeds=seeds, trials=trials, table_pictures=table_pictures, progress=tell, after=written
        )
    _shown(table[[*COLUMNS, "difference", "difference_low", "difference_high"]])
    say("difference: loss minus the searched policy's of seed 0, picture by picture, with its 95 % interval.")
    figure = save_figure(budgets_figure(table), out.with_suffix(".png"))
    say(f"table: {out}, figure: {figure}")


@app.command("samplers")
def samplers(
    run: RunPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("samplers.csv"),
    keep: Kept = "20%",
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    trials: Trials = 60,
    sampler: Annotated[list[str] | None, typer.Option(help="One of the samplers; may be given again (default: all).")] = None,
    table_pictures: Pictures = 8,
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help="Give up what is worse; only tpe learns of that.")] = True,
    folder: OutFolder = None,
) -> None:
    """Samplers at equal trials: least loss so far. Example: headscope bench samplers runs/stickers --keep 20%"""
    from headscope.benchmarks.searching import bench_samplers
    from headscope.reporting.fronts import trials_figure
    from headscope.reporting.plots import save_figure
    from headscope.storage import write_whole
    from headscope.tuning.propose.samplers import SAMPLERS

    if unknown := [name for name in sampler or () if name not in SAMPLERS]:
        raise typer.BadParameter(f"sampler {unknown[0]}: expected one of {', '.join(SAMPLERS)}.")
    with progress() as tell:
        table = bench_samplers(
            _ground(run, folder),
            keep,
            sampler or SAMPLERS,
            seeds=seeds,
            trials=trials,
            table_pictures=table_pictures,
            prune=prune,
            progress=tell,
        )
    write_whole(out, lambda path: table.to_csv(path, index=False, float_format="%.6g"))
    last = table[table["trial"] == table.groupby(["method", "sampler", "seed"])["trial"].transform("max")]
    _shown(last.groupby(["method", "sampler"])[["best_kl", "seconds"]].agg(["mean", "min", "max"]).pipe(_flat))
    figure = save_figure(trials_figure(table), out.with_suffix(".png"))
    say(f"table: {out}, figure: {figure}")


@app.command("buckets")
def buckets(
    run: RunPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("buckets.csv"),
    keep: Kept = "20%",
    table_pictures: Pictures = 8,
    folder: OutFolder = None,
) -> None:
    """Loss and time of a step by kinds of heads in a layer. Example: headscope bench buckets runs/stickers --keep 20%"""
    from headscope.benchmarks.searching import bench_buckets
    from headscope.cli.search import keep_list
    from headscope.storage import write_whole

    with progress() as tell:
        table = bench_buckets(_ground(run, folder), keep_list(keep), table_pictures=table_pictures, progress=tell)
    write_whole(out, lambda path: table.to_csv(path, index=False, float_format="%.6g"))
    _shown(table)
    say(f"table: {out}")


@app.command("tables")
def tables(
    run: RunPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("tables.csv"),
    keep: Kept = "50,30,20,15,10%",
    table_pictures: Pictures = 8,
    folder: OutFolder = None,
) -> None:
    """The solver by a table of every head, of groups, of the trace alone. Example: headscope bench tables runs/stickers"""
    from headscope.benchmarks.tables import bench_tables
    from headscope.cli.search import keep_list
    from headscope.pipeline.tables import groups_of
    from headscope.run_folder import RunFolder
    from headscope.storage import write_whole

    ground = _ground(run, folder)
    groups = groups_of(ground.model, RunFolder(run), "groups")
    assert groups is not None
    with progress() as tell:
        table = bench_tables(ground, groups, keep_list(keep), table_pictures=table_pictures, progress=tell)
    write_whole(out, lambda path: table.to_csv(path, index=False, float_format="%.6g"))
    _shown(table)
    say(f"table: {out}")


@app.command("replay")
def replay(
    run: RunPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("replay.csv"),
    pictures: Annotated[int, typer.Option(min=1, help="Of the calibration pictures.")] = 8,
    keep: Annotated[str, typer.Option(help="Share of the plain cache that the policies keep.")] = "20%",
) -> None:
    """Policies a minute that replay measures. Example: headscope bench replay runs/stickers"""
    from headscope.benchmarks.replaying import bench_replay
    from headscope.models import Samples
    from headscope.pipeline import open_run
    from headscope.storage import write_whole
    from headscope.tuning import Replay

    model, folder = open_run(run)
    settle_threads(model.name)
    samples = Samples.load(folder.samples)
    table = bench_replay(Replay(model, samples.select(range(min(pictures, len(samples)))), by_stream=False), keep)
    write_whole(out, lambda path: table.to_csv(path, index=False, float_format="%.4g"))
    _shown(table)
    say(f"table: {out}")


def _ground(run: Path, folder: Path | None) -> Ground:
    from headscope.benchmarks.searching import Ground
    from headscope.heads import Heads
    from headscope.models import Samples
    from headscope.pipeline import open_run, settings_of
    from headscope.pipeline.run import read_prompts_of
    from headscope.pipeline.steps import unseen_pictures

    model, files = open_run(run)
    settle_threads(model.name)
    unseen = unseen_pictures(model, files, read_prompts_of(files)["unseen"], settings_of(files))
    scores = Heads.load(files.heads).scores()
    return Ground(
        model, Samples.load(files.samples), unseen, scores, int(files.read()["prefix"]), folder or files.path / "bench"
    )


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis([" ".join(column) for column in table.columns], axis=1).reset_index()


def _shown(table: pd.DataFrame) -> None:
    from rich.table import Table

    shown = Table(*map(str, table.columns), box=None)
    for row in table.itertuples(index=False):
        shown.add_row(*(_cell(cell) for cell in row))
    lines.print(shown)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
