"""`headscope generate`: images, with a policy, with the full cache, or with both side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import (
    Device,
    Dtype,
    Features,
    FoldPrefix,
    ModelName,
    PromptFile,
    Seed,
    progress,
    say,
    settle_threads,
)


def generate(
    model: ModelName,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What to generate.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file, or a shipped one by name; none: the full cache.")] = None,
    prompts: PromptFile = None,
    prompt: Annotated[list[str] | None, typer.Option(help="As PROMPT; may be given several times.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images; goes on with what is there.")] = Path(
        "images"
    ),
    each: Annotated[int, typer.Option("-n", min=1, help="Images of each prompt.")] = 1,
    count: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="With the full cache too, and a sheet side by side.")] = False,
    batch: Annotated[str, typer.Option(help="Images generated together: a number, or auto for what fits.")] = "auto",
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (default: the model's).")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the most likely code (default: the model's).")] = None,
    cfg_interval: Annotated[int | None, typer.Option(help="Tokens that are guided; -1 all (default: the model's).")] = None,
    lead: Annotated[
        int | None, typer.Option(help="Begin a row so many columns after the one above (default: the policy's).")
    ] = None,
    accept_other_weights: Annotated[bool, typer.Option(help="Use the policy on a fine-tune of its model.")] = False,
    decoder: Annotated[str, typer.Option(help="transformers, llama_cpu, llama_cuda; auto: the fastest here.")] = "auto",
    seed: Seed = 0,
    features: Features = None,
    fold_prefix: FoldPrefix = True,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Generate images. Example: headscope generate stickers "red apple, noto style" --policy stickers-20 -n 4 -o images"""
    from headscope.models import load_model, with_settings
    from headscope.pipeline import Request, default_prompts, free_memory, generate_images, plan_images, read_prompts
    from headscope.policy import load_policy, with_lead
    from headscope.runtime import Sampling

    model = with_settings(model, features, fold_prefix)
    together = _batch(batch)
    if compare and policy is None and lead is None:
        raise typer.BadParameter("--compare: compares a policy with the full cache; name one with --policy.")
    wanted = [*(texts or []), *(prompt or []), *(read_prompts(prompts) if prompts is not None else [])]
    wanted = wanted or default_prompts(model)
    wanted = wanted[: count or len(wanted)]
    sampling = Sampling(
        guidance, temperature, seed=seed, cfg_interval=cfg_interval
    )  # what is out of range is told before the model is read
    settle_threads(model)
    loaded = load_model(model, device=device, dtype=dtype)
    kept = None if policy is None else load_policy(policy, loaded.shape, accept_other_weights=accept_other_weights)
    kept = kept if lead is None else with_lead(kept, loaded.shape, loaded.max_prefix, lead)
    request = Request(tuple(wanted), each, sampling, kept, compare, decoder)
    plan = plan_images(loaded, request, free=free_memory(str(loaded.device)), batch=together)
    say(plan.sentence())
    with progress() as tell:
        table = generate_images(loaded, plan, out, tell)
    if table is None:
        say(f"images: {out}, by {plan.decoded_by()}")
        return
    say(f"tokens that agree: {table['token_agreement'].mean():.1%}, by {plan.decoded_by()}")
    say(f"side by side: {out / 'sheet.png'}")


def _batch(text: str) -> int | None:
    """`auto` -> None.

    Raises:
        typer.BadParameter: neither that nor a number from 1.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--batch {text}: expected a number from 1, or auto.")
    return int(text)
