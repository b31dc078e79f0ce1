"""`headscope sensitivity`: what each head needs, by taking it away."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.cli.console import Device, Dtype, RunPath, Seed, progress, say, settle_threads


def sensitivity(
    run: RunPath,
    keep: Annotated[str, typer.Option(help="Shares of the plain cache that a head gets, such as 20% or 30%,20%,10%.")] = "20%",
    images: Annotated[int, typer.Option(min=1, help="Calibration images to replay.")] = 8,
    stride: Annotated[int, typer.Option(min=1, help="Tokens between two choices of a heavy head.")] = 1,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Give each head alone a window, heavy tokens, or both, at equal bytes; all others keep everything.

    The same command goes on after a stop. Example: headscope sensitivity runs/stickers --keep 20%
    """
    from headscope.pipeline import open_run, sensitivity_step
    from headscope.reporting import ablation_panels, save_figure

    keeps = [part.strip() for part in keep.split(",") if part.strip()]
    if not keeps:
        raise typer.BadParameter("--keep: expected shares such as 30%,20%,10%.")
    opened = open_run(run, device, dtype)
    folder = opened.folder
    settle_threads(opened.model.name)
    with progress() as tell:
        found = sensitivity_step(opened.told(tell), keeps, images=images, stride=stride, seed=seed)
    for one in found:
        sizes = ", ".join(f"{kind} {option.window} + {option.heavy}" for kind, option in one.options.items())
        say(f"{one.keep}: tokens a head, recent + heavy: {sizes}")
        say(one.sentence())
    figure = save_figure(ablation_panels(found), folder.path / "figures" / "ablation.png")
    say(f"losses: {folder.sensitivity}")
    say(f"table: {folder.ablation}")
    say(f"figure: {figure}")
