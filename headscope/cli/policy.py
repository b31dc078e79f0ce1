"""`headscope policy`: look into policy files, compare, check, change, describe and measure them; one small file a verb."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from headscope.cli.console import PolicyFile, say
from headscope.cli.exchange import export, import_
from headscope.cli.policy_card import card
from headscope.cli.policy_diff import diff
from headscope.cli.policy_measure import measure
from headscope.cli.policy_merge import merge
from headscope.cli.policy_validate import validate
from headscope.cli.transfer import transfer

if TYPE_CHECKING:
    from headscope.policy import Policy

app = typer.Typer(no_args_is_help=True, help="Policy files.")


@app.callback()
def _group() -> None:
    """Policy files."""


@app.command("show")
def show(file: PolicyFile) -> None:
    """Print what a policy keeps, and for which model. Example: headscope policy show runs/demo/policy.safetensors"""
    from headscope.policy import load_policy, unmeasured

    policy = load_policy(file)
    shape = policy.shape
    spec = policy.spec()
    geometry = shape.geometry
    say(f"model      {shape.name}, {shape.layers} layers, {shape.kv_heads} KV heads, {geometry} tokens")
    say(f"weights    {shape.weights[:16] or 'any of this shape'}")
    say(f"stride     {policy.stride} tokens; prompts up to {policy.prefix} tokens")
    if policy.rows_at_once:
        say(f"lead       {policy.lead} columns: a row begins when the one above is so far, {_steps(policy)}")
    say(f"bytes      {spec.bytes_of(policy):,} of {spec.full_bytes:,} ({spec.share_of(policy):.1%}) for {spec.words()}")
    if policy.table_bytes:
        say(f"tables     {policy.table_bytes:,} bytes, of scores; all images share them")
    if policy.limit is not None:
        share = "" if policy.limit.share is None else f" ({policy.limit.share:.3g} of the plain cache)"
        say(f"limit      {policy.limit.bytes:,} bytes{share}")
    say(f"made by    {policy.provenance.get('method', 'hand')} {policy.provenance.get('origin', '')}")
    if "transferred" in policy.provenance:
        say(f"transferred {_transferred(policy)}")
    say(f"rule       {'carried' if policy.rule is not None else 'none'}, for `headscope policy transfer`")
    for name, value in policy.results.items():
        say(f"{name:10} {value}")
    if told := unmeasured(policy):
        say(told)
    say("")
    scored = bool(policy.score.any())
    say(f"layer  heads  window  heavy  anchor  decay  bits  prompt{'  score' if scored else ''}")
    for layer in range(shape.layers):
        for row in _rows(policy, layer, scored):
            say(row)


def _steps(policy: Policy) -> str:
    """How many steps an image takes in place of how many."""
    from headscope.policy import schedule

    geometry = policy.shape.geometry
    return f"{len(schedule(geometry, policy.lead)) - 1:,} steps in place of {geometry.tokens - 1:,}"


def _rows(policy: Policy, layer: int, scored: bool) -> list[str]:
    """A line a bucket; `ends` of a prompt are its first and last token."""
    return [
        f"{layer:5}  {len(b.heads):5}  {b.window:6}  {b.heavy:5}  {b.anchor:6}  {b.decay:5.2f}  {b.bits:4}  "
        f"{'whole' if b.whole_prompt else 'ends':>6}{f'  {b.score}' if scored else ''}"
        for b in policy.buckets(layer)
    ]


def _transferred(policy: Policy) -> str:
    """From what, and by which kind."""
    facts = policy.provenance["transferred"]
    facts = facts if isinstance(facts, dict) else {}
    return f"from {facts.get('from', 'another model')}, {facts.get('kind', 'in a way that it does not say')}"


app.command("diff")(diff)
app.command("validate")(validate)
app.command("merge")(merge)
app.command("card")(card)
app.command("measure")(measure)
app.command("export")(export)
app.command("import")(import_)
app.command("transfer")(transfer)
