"""The card of a policy: what it is made for, what it keeps and what that loses, in Markdown, with a picture of every head.

The numbers are those in the policy: results with `replay_kl` (and `kl_low`, `kl_high`, `free_kl`, `top1`, `images`), by the
name that they were measured under, and the provenance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headscope.errors import DataError
from headscope.facts import NUMBER
from headscope.models import bundled_folder
from headscope.policy import CacheSpec, Policy, unmeasured
from headscope.reporting.head_charts import kept
from headscope.reporting.style import save_figure
from headscope.storage import check_writable, write_text

CALIBRATION = ("calibration_kl", "calibration_top1")
USE = '`headscope generate {} "{}" --policy {} --out images`'
PICTURE = (
    "A bar a head, layer by layer, in tokens: teal recent ones (window), orange older ones by score (heavy), grey what waits "
    "for the next choice, violet first ones (anchor). How wide a bar is says in how many bits: full for 16, half for 8, a "
    "quarter for 4. At the right what a layer takes."
)


def write_card(
    policy: Policy, path: str | Path, name: str, *, more: Sequence[tuple[str, str]] = (), prompt: str = "..."
) -> tuple[Path, Path]:
    """Write a card and, beside it, the picture of what every head keeps: card.md and card.png.

    Args:
        policy: with its results and provenance.
        path: of the card; its name ends in .md.
        name: what commands call the policy: a file, or the name of a shipped one.
        more: further rows of the first table: what, and what is said of it; one of a name that the card has by itself replaces
            it.
        prompt: of the command that uses it.

    Returns:
        Where both are.

    Raises:
        DataError: another suffix, or the place cannot be written.
    """
    path = Path(path)
    if path.suffix != ".md":
        raise DataError(f"{path}: a card is Markdown; name a file that ends in .md.")
    check_writable(path)
    picture = save_figure(kept(policy, policy.spec(), margin=0.08), path.with_suffix(".png"))
    return write_text(path, card_text(policy, name, picture.name, more=more, prompt=prompt)), picture


def card_text(policy: Policy, name: str, picture: str, *, more: Sequence[tuple[str, str]] = (), prompt: str = "...") -> str:
    """The Markdown of a card; arguments as those of `write_card`.

    Args:
        policy: see there.
        name: see there.
        picture: name of the picture's file.
        more: see there.
        prompt: see there.
    """
    rows = dict(_rows(policy, name)) | dict(more)
    weights = " It is refused on other weights." if policy.shape.weights else ""
    use = USE.format(*(_code(one)[1:-1] for one in (policy.shape.name, prompt, name)))
    return "\n".join(
        [
            f"# {_plain(Path(name).name.removesuffix('.safetensors'))}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {what} | {said} |" for what, said in rows.items()),
            "",
            f"For use: {use}.{weights}",
            "",
            "## What each head keeps",
            "",
            f"![What each head keeps](<{picture}>)",
            "",
            PICTURE,
            "",
            *_columns(bool(policy.drops_prompt.any()), bool(policy.other_scores)),
            *_layers(policy),
            "",
        ]
    )


def _rows(policy: Policy, name: str) -> list[tuple[str, str]]:
    shape, provenance = policy.shape, policy.provenance
    bundled = " (bundled)" if bundled_folder(shape.name) is not None else ""
    weights = f"weights {_plain(shape.weights[:16])}" if shape.weights else "any weights of this shape"
    buckets = sum(len(policy.buckets(layer)) for layer in range(shape.layers))
    bits = ", ".join(f"{int((policy.bits == bits).sum())} in {bits}" for bits in (16, 8, 4))
    short = int(policy.drops_prompt.sum())
    prompt = f"{short} with only the first and last token of the prompt; " if short else ""
    prompt += _scores(policy)
    prompt += f"rows at once, each {policy.lead} columns after the one above; " if policy.rows_at_once else ""
    rows = [
        ("model", f"{_code(shape.name)}{bundled}, {weights}"),
        ("limit", _limit(policy)),
        (
            "keeps",
            f"strides of {policy.stride} tokens; {buckets} buckets in {shape.layers} layers; of heads {bits} bits; {prompt}"
            f"{_code(f'headscope policy show {name}')} prints them",
        ),
        ("found by", " ".join(_plain(provenance[key]) for key in ("method", "origin") if key in provenance) or "hand"),
    ]
    if told := unmeasured(policy):
        rows.append(("not measured", _plain(told)))
    rows += [(what, said) for result in policy.results for what, said in [_result(policy, result)] if said]
    return rows


def _scores(policy: Policy) -> str:
    """How heads choose heavy tokens, where not all by attention received."""
    heads = [policy.scores[place] for place in policy.score[policy.heavy > 0].tolist()]
    if not policy.other_scores:
        return ""
    kinds = " and ".join(f"{heads.count(name)} by the score {_plain(name)}" for name in policy.other_scores)
    tables = f" (tables of {policy.table_bytes:,} bytes beside the cache, shared by all images)" if policy.table_bytes else ""
    return f"{kinds}{tables}; "


def _limit(policy: Policy) -> str:
    spec, limit = policy.spec(), policy.limit
    needed = spec.bytes_of(policy)
    if limit is None:
        return f"none; it allocates {needed:,} bytes, {100 * needed / spec.full_bytes:.1f} % of {_cache(spec)}"
    if limit.share is None:
        return f"{limit.bytes:,} bytes, of which it allocates {needed:,}; {_cache(spec)} takes {spec.full_bytes:,}"
    return f"{100 * limit.share:g} % of {_cache(spec)}: {limit.bytes:,} bytes, of which it allocates {needed:,}"


def _cache(spec: CacheSpec) -> str:
    """`a plain cache of one guided image, two bytes a number, prompt of 13 tokens included`."""
    images = "one" if spec.batch == 1 else str(spec.batch)
    guided = {1: "", 2: " guided"}.get(spec.streams, f" {spec.streams}-stream")
    numbers = "two bytes a number" if spec.in_two_bytes() == spec else f"in {spec.dtype}"
    prefix = f"prompt of {spec.prefix} tokens {'included' if spec.count_prefix else 'left out'}"
    return f"a plain cache of {images}{guided} image{'s' * (spec.batch > 1)}, {numbers}, {prefix}"


def _result(policy: Policy, name: str) -> tuple[str, str]:
    """A row about a result: what it is, and what it was measured on."""
    found = policy.results[name]
    if name == "calibration_kl" and NUMBER.accepts(found):
        return "calibration loss", f"{found:.4f} nats a token on the images that the search saw"
    if name in CALIBRATION:
        return name, ""
    if not isinstance(found, Mapping) or not NUMBER.accepts(found.get("replay_kl")):
        return _plain(name), _plain(found)
    on = {"unseen": "prompts that the search never saw", "measured": _measured_on(policy)}.get(name, "images of its own")
    return {"unseen": "loses", "measured": "measured"}.get(name, _plain(name)), _loss(found, on)


def _measured_on(policy: Policy) -> str:
    facts = policy.provenance.get("measured_on")
    if not isinstance(facts, Mapping):
        return "prompts of a run"
    model, weights, dtype = (facts.get(name, "?") for name in ("model", "weights", "dtype"))
    return f"unseen prompts of a run of {_code(model)}, weights {_plain(weights)[:16]}, in {_plain(dtype)}"


def _loss(found: Mapping[str, Any], on: str) -> str:
    """`0.0243 nats a token [0.0206, 0.0287] on 32 prompts ...; top code the same at 94.0%`, as far as it was measured."""

    def interval(first: str, last: str) -> str:
        ends = [found.get(first), found.get(last)]
        return f" [{ends[0]:.4f}, {ends[1]:.4f}]" if all(map(NUMBER.accepts, ends)) else ""

    images = f"{found['images']} " if NUMBER.accepts(found.get("images")) else ""
    parts = [f"{found['replay_kl']:.4f} nats a token{interval('kl_low', 'kl_high')} on {images}{on}"]
    if NUMBER.accepts(found.get("free_kl")):
        parts.append(f"{found['free_kl']:.4f}{interval('free_low', 'free_high')} on images that it made itself")
    if NUMBER.accepts(found.get("top1")):
        parts.append(f"top code the same at {found['top1']:.1%}")
    return "; ".join(parts)


def _layers(policy: Policy) -> list[str]:
    """A row a bucket."""
    spec, rows = policy.spec(), []
    short, scored = bool(policy.drops_prompt.any()), bool(policy.other_scores)
    for layer in range(policy.shape.layers):
        for b in policy.buckets(layer):
            head = spec.head_bytes(b.window, b.heavy, b.anchor, policy.stride, b.bits, int(b.whole_prompt), policy.lead)
            size, heads = int(head) * spec.rows * len(b.heads), ", ".join(map(str, b.heads))
            numbers = [layer, heads, b.window, b.heavy, b.anchor, f"{b.decay:g}", b.bits]
            numbers += ["whole" if b.whole_prompt else "ends"] * short
            numbers += [_plain(b.score)] * scored
            rows.append(f"| {' | '.join(map(str, numbers))} | {size:,} |")
    return rows


def _columns(prompt: bool, score: bool) -> list[str]:
    """The head of that table; prompts have a column where not all are whole, scores where not all are attention received."""
    names = ["layer", "heads", "window", "heavy", "anchor", "decay", "bits", *["prompt"] * prompt, *["score"] * score, "bytes"]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _plain(value: object) -> str:
    """A value out of a file, as a cell of a table can hold it: one line, without marks that mean something in Markdown."""
    text = " ".join(str(value).split())
    return re.sub(r"([|\\<>\[\]])", r"\\\1", text)


def _code(value: object) -> str:
    """A command or a name, likewise."""
    return "`" + " ".join(str(value).split()).replace("`", "'").replace("|", "\\|") + "`"
