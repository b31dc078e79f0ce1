"""Prompts of several lengths: what heads that drop them are worth.

    python reports/stickers/prompts.py RUN --tokens 8,32,62 --keep 20,10% --images 8 -o reports/stickers/prompts.csv

Captions of the run are joined until a prompt has so many tokens; images of them are generated with the full cache, half for a
table by gradients, half to measure on. A row a length, limit and kind: tokens (of every prompt), keep, prompt (whole in all
heads, or by head), drop (heads that keep two tokens of it), of_limit (the share of the limit that whole prompts in 16 bits
would take), replay_kl of the solver's answer (nats a token) with its 95 % interval over images, and the paired difference to
whole prompts; a kind that no limit holds has no row.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from bench_setup import Folder, Keep, Out, Run, Setup, shares, show, shown, start, write_table

from headscope import generate
from headscope.errors import BudgetError, ModelError
from headscope.intervals import mean_interval
from headscope.models import ImageModel
from headscope.tuning import Replay, fitting_strides, solve

BITS = (16, 8, 4)
KINDS = {"whole": (1,), "by head": (1, 0)}


def main(
    run: Run,
    out: Out = Path("prompts.csv"),
    keep: Keep = "20,10%",
    tokens: Annotated[str, typer.Option(help="Lengths of prompts, such as 8,32.")] = "8,32,62",
    images: Annotated[int, typer.Option(min=2, help="Images of the table, and as many to measure on.")] = 8,
    folder: Folder = None,
) -> None:
    """Both kinds at every length."""
    opened, rows = Setup.open(run, folder), list[dict[str, Any]]()
    captions = [*opened.calibration.prompts, *opened.unseen.prompts]
    for length in map(int, tokens.split(",")):
        texts = [joined(opened.model, captions[place:], length) for place in range(2 * images)]
        samples = generate(opened.model, texts, 0, progress=shown(f"images of prompts of {length} tokens"))
        setup = replace(
            opened,
            calibration=samples.select(list(range(images))),
            unseen=samples.select(list(range(images, 2 * images))),
            prefix=length,
            out=opened.out / f"prompts-{length}",
        )
        replay = Replay(setup.model, setup.unseen, by_stream=False)
        for share in shares(keep):
            rows += compared(setup, replay, share, images)
            write_table(pd.DataFrame(rows), out)
    show(pd.DataFrame(rows))
    print(f"table: {out}")


def compared(setup: Setup, replay: Replay, share: float, images: int) -> list[dict[str, Any]]:
    """Rows of a length and a limit."""
    limit, shape = setup.limit(share), setup.model.shape
    strides = fitting_strides(limit)
    stride = min(strides, key=lambda each: abs(each - shape.geometry.stride_row / 4))
    rows, first = list[dict[str, Any]](), None
    for kind, prompts in KINDS.items():
        try:
            policy = solve(setup.losses(setup.gradients(images, BITS, prompts).losses), limit, stride)
        except BudgetError:
            continue
        losses = replay.measure(policy).kl_by_image.numpy()
        first = losses if first is None else first
        low, high = mean_interval(losses)
        least, most = mean_interval(losses - first)
        rows.append(
            {"tokens": setup.prefix, "keep": share, "prompt": kind, "drop": int((policy.prompt == 0).sum())}
            | {"of_limit": setup.prefix / (share * (setup.prefix + shape.geometry.tokens))}
            | {"replay_kl": float(losses.mean()), "kl_low": low, "kl_high": high}
            | {"difference_low": least, "difference_high": most}
        )
    return rows


def joined(model: ImageModel, captions: list[str], length: int) -> str:
    """Captions one after the other, cut at a word where the prompt has so many tokens.

    Raises:
        ModelError: no number of words gives them.
    """
    words = " ".join(caption.replace(",", " ,") for caption in captions).split()
    for count in range(1, len(words)):
        text = " ".join(words[:count])
        found = int(model.tokenize([text]).mask.sum())
        if found == length:
            return text
        if found > length:
            break
    raise ModelError(f"{model.name}: no prompt of {length} tokens from these captions; ask for another length.")


if __name__ == "__main__":
    start(main)
