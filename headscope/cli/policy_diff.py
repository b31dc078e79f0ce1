"""`headscope policy diff`: what changes from one policy to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.cli.console import PolicyFile, say

if TYPE_CHECKING:
    from headscope.policy import Policy, PolicyDiff


def diff(first: PolicyFile, second: PolicyFile) -> None:
    """What changes, where, in tokens and bytes. Example: headscope policy diff stickers-20 stickers-10"""
    import pandas as pd

    from headscope.cli.tables import print_table
    from headscope.policy import diff as compare, load_policy

    before, after = load_policy(first), load_policy(second)
    found = compare(before, after, str(second))
    for line in _facts(before, after, found):
        say(line)
    if found.same:
        say("the same: both keep the same tokens in the same bits.")
        return
    rows = [
        (
            change.layer,
            f"{len(change.heads)} of {before.shape.kv_heads}",
            f"{change.tokens.before:,}",
            f"{change.tokens.after:,}",
            f"{change.bytes.before:,}",
            f"{change.bytes.after:,}",
            ", ".join(change.fields),
        )
        for change in found.layers
    ]
    say("")
    print_table(pd.DataFrame(rows, columns=["layer", "heads", "tokens before", "after", "bytes before", "after ", "changes"]))
    heads = sum(len(change.heads) for change in found.layers)
    say("")
    say(f"in all     {heads} of {before.shape.layers * before.shape.kv_heads} heads in {len(found.layers)} layers change")


def _facts(before: Policy, after: Policy, found: PolicyDiff) -> list[str]:
    """A line each of what is not a head's."""
    weights = [policy.shape.weights[:16] or "any of this shape" for policy in (before, after)]
    limits = ["none" if policy.limit is None else f"{policy.limit.bytes:,} bytes" for policy in (before, after)]
    share = _two(*(f"{100 * one / plain:.1f}%" for one, plain in (
        (found.bytes.before, found.plain_bytes.before), (found.bytes.after, found.plain_bytes.after),
    )))  # fmt: skip
    lead = [f"lead       {_two(found.lead.before, found.lead.after)} columns"]
    lead *= before.rows_at_once or after.rows_at_once
    return [
        f"model      {_two(before.shape.name, after.shape.name)}, {before.shape.words()}",
        f"weights    {_two(*weights)}",
        f"stride     {_two(found.stride.before, found.stride.after)} tokens",
        *lead,
        f"prompts    up to {_two(found.prefix.before, found.prefix.after)} tokens",
        f"limit      {_two(*limits)}",
        f"tokens     {_two(found.tokens.before, found.tokens.after)} in all heads together, prompts included",
        f"bytes      {_two(found.bytes.before, found.bytes.after)} ({share} of the plain cache) for {found.spec.words()}",
    ]


def _two(before: str | int, after: str | int) -> str:
    """`4`, or `4 -> 16` where it changes."""
    first, second = (f"{one:,}" if isinstance(one, int) else one for one in (before, after))
    return first if first == second else f"{first} -> {second}"
