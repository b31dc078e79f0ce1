"""`headscope models`: what can be named and what it needs, and whether a model is what it is taken for."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.cli.console import Device, Dtype, Features, FoldPrefix, progress, say, settle_threads

app = typer.Typer()

Model = Annotated[str, typer.Argument(help="A name, a folder, or path/to/file.py:function.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List the models that can be named, or check or verify one. Example: headscope models check stickers"""
    if context.invoked_subcommand is not None:
        return
    from headscope.models import list_models

    for model in list_models():
        say(f"{model.name:34} {model.description}")
        say(f"{'':34} needs {model.needs}; run on real weights: {model.real}")


@app.command("check")
def check(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="Two that the model takes; may be given again.")] = None,
    features: Features = None,
    fold_prefix: FoldPrefix = True,
    device: Device = "auto",
    dtype: Dtype = None,
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


@app.command("verify")
def verify(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="Four that the model takes; may be given again.")] = None,
    features: Features = None,
    fold_prefix: FoldPrefix = True,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Twenty lines for an issue, by who has the weights. Example: headscope models verify deepseek-ai/Janus-Pro-1B"""
    from headscope.models import load_model, with_settings
    from headscope.pipeline import default_prompts, verify_model

    model = with_settings(model, features, fold_prefix)
    settle_threads(model)
    loaded = load_model(model, device=device, dtype=dtype)
    wrong = 0
    with progress() as tell:
        lines = list(verify_model(loaded, list(prompt or default_prompts(model)), model, tell))
    for line in lines:
        say(line.sentence())
        wrong += line.wrong
    if wrong:
        raise typer.Exit(1)
