"""`headscope models`: what can be named, and whether a model is what it is taken for."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.cli.console import Device, Features, FoldPrefix, say

app = typer.Typer()


@app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List the models that can be named, or check one. Example: headscope models check stickers"""
    if context.invoked_subcommand is not None:
        return
    from headscope.models import known_models

    for name, description in known_models():
        say(f"{name:34} {description}")


@app.command("check")
def check(
    model: Annotated[str, typer.Argument(help="A name, a folder, or path/to/file.py:function.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Two that the model takes; may be given again.")] = None,
    features: Features = None,
    fold_prefix: FoldPrefix = True,
    device: Device = "auto",
    dtype: Annotated[str | None, typer.Option(help="Of the weights (default: float32 on a CPU, else bfloat16).")] = None,
) -> None:
    """Try what headscope relies on in a model. Example: headscope models check mine.py:load"""
    from headscope.models import load_model, with_settings
    from headscope.pipeline import check_model, default_prompts

    model = with_settings(model, features, fold_prefix)
    loaded = load_model(model, device=device, dtype=dtype)
    wrong = 0
    for finding in check_model(loaded, list(prompt or default_prompts(model)[:2]), model):
        say(finding.sentence())
        wrong += finding.wrong is not None
    if wrong:
        say(f"{model}: {wrong} of these are wrong, and figures of this model would be too.")
        raise typer.Exit(1)
    say(f"{model}: as it should be.")
