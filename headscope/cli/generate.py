"""`headscope generate`: the same prompts and seeds with the full cache and with a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Device, Dtype, ModelName, PromptFile, Seed, progress, say, settle_threads
from headscope.errors import DataError


def generate(
    model: ModelName,
    policy: Annotated[Path | None, typer.Option(help="Policy file; without one only the full cache draws.")] = None,
    prompts: PromptFile = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    count: Annotated[int | None, typer.Option(min=1, help="Draw only the first so many prompts.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (default: the model's).")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the most likely code (default: the model's).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn together.")] = 16,
    accept_other_weights: Annotated[bool, typer.Option(help="Use the policy on a fine-tune of its model.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
) -> None:
    """Draw with and without a policy. Example: headscope generate stickers --prompt "red apple, noto style" --out pictures"""
    from headscope.models import load_model
    from headscope.pipeline.prompts import default_prompts, read_prompts
    from headscope.pipeline.steps import save_png, write_pictures
    from headscope.policy.files import load_policy
    from headscope.runtime import generate as draw

    texts = list(prompt or []) or (default_prompts(model) if prompts is None else read_prompts(prompts))
    texts = texts[: count or len(texts)]
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose a folder with --out.")
    settle_threads(model)
    loaded = load_model(model, device=device, dtype=dtype)
    kept = None if policy is None else load_policy(policy, loaded.shape, accept_other_weights=accept_other_weights)
    options = {"guidance": guidance, "temperature": temperature, "batch_size": batch_size}
    with progress() as tell:
        full = draw(loaded, texts, seed, progress=lambda d, n: tell("full cache", d, n, float("nan")), **options)  # type: ignore[arg-type]
        if kept is None:
            for number, picture in enumerate(loaded.to_images(full.tokens)):
                save_png(picture, out / f"{number:03d}.png")
            say(f"pictures: {out}")
            return
        small = draw(
            loaded, texts, seed, policy=kept, progress=lambda d, n: tell("policy", d, n, float("nan")), **options  # type: ignore[arg-type]
        )  # fmt: skip
    table = write_pictures(loaded, full, small, out)
    say(f"tokens that agree: {table['token_agreement'].mean():.1%}")
    say(f"side by side: {out / 'sheet.png'}")
