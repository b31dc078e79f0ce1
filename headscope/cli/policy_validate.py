"""`headscope policy validate`: whether anything is wrong with a policy file."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.cli.console import Features, FoldPrefix, Keep, LimitBatch, Memory, PolicyFile, say


def validate(
    file: PolicyFile,
    model: Annotated[
        str | None, typer.Option(help="What it has to fit: a bundled model, a folder, FILE.py:FUNCTION, or a hub id.")
    ] = None,
    keep: Keep = None,
    memory: Memory = None,
    batch: LimitBatch = None,
    features: Features = None,
    fold_prefix: FoldPrefix = True,
) -> None:
    """Check everything, and say what it is. Example: headscope policy validate stickers-20 --model stickers --keep 20%"""
    from headscope.cli.policy_limit import limit_for
    from headscope.models import load_model, with_settings
    from headscope.policy import check_fits_limit, load_policy, unmeasured, validate as checked

    limit = limit_for(load_policy(file), keep, memory, batch)  # what is wrong with a file is told before a model is read
    found = checked(file)
    if model is not None:
        found = checked(file, load_model(with_settings(model, features, fold_prefix), device="cpu").shape)
    policy, spec = found.policy, found.policy.spec()
    taken = 0 if limit is None else check_fits_limit(policy, limit, str(file))
    say(f"{file}: a policy of schema {found.schema} for {policy.shape.name}, {policy.shape.words()}.")
    needed = f"a reader that knows {', '.join(found.needs)}" if found.needs else "nothing that not every reader knows"
    say(f"It needs {needed}, and prompts of up to {policy.prefix} tokens.")
    told = "as it says itself" if found.accounted else "which it does not say itself"
    say(
        f"It takes {spec.bytes_of(policy):,} bytes, {spec.share_of(policy):.1%} of the plain cache, for {spec.words()}, {told}."
    )
    if policy.table_bytes:
        say(f"Its tables of scores take {policy.table_bytes:,} bytes more, which all images share.")
    say("It has no limit." if policy.limit is None else f"It fits its own limit, {policy.limit.bytes:,} bytes.")
    if limit is not None:
        say(f"It fits {keep or memory}: {taken:,} bytes of {limit.bytes:,} for {limit.spec.words()}.")
    if model is not None:
        say(f"It fits {model}.")
    elif not policy.shape.weights:
        say("It is for any weights of this shape.")
    if policy.results:
        say(f"It was measured: {', '.join(policy.results)}.")
    if told := unmeasured(policy):
        say(told)
    say(f"{file}: as it should be.")
