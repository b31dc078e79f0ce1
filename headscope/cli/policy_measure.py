"""`headscope policy measure`: what a policy loses on the unseen images of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Device, Dtype, PolicyFile, progress, say, settle_threads


def measure(
    file: PolicyFile,
    on: Annotated[Path, typer.Option("--on", metavar="RUN", help="A run folder of its model, for its unseen images.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to write (default: FILE itself).")] = None,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Measure, and write the result into it. Example: headscope policy measure mine.safetensors --on runs/stickers"""
    from headscope.models import source_of
    from headscope.pipeline import RunFolder, measure_policy, measured_target, open_run
    from headscope.policy import load_policy
    from headscope.words import nats, size

    target = measured_target(file, out)  # what is wrong with names and files is told before a model is read
    load_policy(file)
    settle_threads(source_of(RunFolder(on)))
    with progress() as tell:
        policy = measure_policy(open_run(on, device=device, dtype=dtype, progress=tell), file, target)
    found, where = policy.results["measured"], policy.provenance["measured_on"]
    say(f"on {found['images']} unseen prompts of {where['model']}, in {where['dtype']}:")
    say(f"replay_kl  {nats(found['replay_kl'])} nats a token [{nats(found['kl_low'])}, {nats(found['kl_high'])}]")
    say(f"free_kl    {nats(found['free_kl'])} [{nats(found['free_low'])}, {nats(found['free_high'])}] on its own images")
    say(f"top1       {found['top1']:.1%} of codes the same")
    nbytes, share = found["cache_bytes"], found["kept_ratio"]
    say(f"bytes      {nbytes:,} an image ({size(nbytes)}), {share:.1%} of the plain cache")
    say(f"policy: {target}")
