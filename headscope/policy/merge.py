"""Edits of single layers and heads, merged into a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from headscope.errors import BudgetError, HeadscopeError, PolicyMismatch
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.policy.score_table import joined
from headscope.policy.tensors import DTYPES, KEPT, SCORE

MERGED = "merged"  # the method of such a policy


@dataclass(frozen=True)
class Edit:
    """What some heads are to keep.

    Attributes:
        where: what it is called in messages, such as `edits.toml: edit 2`.
        layers: numbers, from 0.
        heads: numbers of KV heads in each of these, None for all.
        numbers: new values by name: window, heavy, anchor, decay, per_visit, bits, prompt; score, a name of a kind.
        source: a policy of the same shape from which these heads are taken, or None.
        name: what that policy is called, for the provenance.
    """

    where: str
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    source: Policy | None = None
    name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For the provenance: JSON values."""
        taken = {} if self.source is None else {"from": _named(self.source, self.name)}
        return {"layers": [*self.layers], "heads": None if self.heads is None else [*self.heads], **self.numbers, **taken}


def merge(base: Policy, edits: Sequence[Edit], limit: Limit | None = None, name: str = "") -> Policy:
    """A policy with some heads changed; later edits win.

    Its results are dropped, as they were measured for other numbers, and its provenance says what it was merged from. A head
    that then keeps everything has no anchors, which would only take slots. Example: an edit of layers (4,) with bits 8 leaves
    windows, scores and all other layers as they are.

    Args:
        base: the policy to begin with.
        edits: in their order.
        limit: that the result has to fit and is then made for, None for none.
        name: what `base` is called, for the provenance.

    Raises:
        PolicyMismatch: a layer or head that there is not, a number out of range, or a source of another shape, architecture,
            stride or lead; the sentence begins with the edit's `where`.
        BudgetError: the result does not fit; with the bytes.
    """
    merged = base
    for edit in edits:
        try:
            merged = _edited(merged, edit)
            merged.check_tables()
        except HeadscopeError as error:
            told = str(error)
            raise PolicyMismatch(told if told.startswith(edit.where) else f"{edit.where}: {told}") from None
    everything = merged.window + merged.heavy >= base.shape.geometry.tokens - 1
    count = f"{len(edits)} edit{'s' * (len(edits) != 1)}"
    provenance: dict[str, Any] = {"method": MERGED, "origin": f"of {name or 'another policy'} by {count}"}
    provenance["merged_from"] = {
        "base": {**_named(base, name), "provenance": dict(base.provenance)},
        "edits": [edit.to_dict() for edit in edits],
    }
    if isinstance(moved := base.provenance.get("transferred"), dict):
        provenance["transferred"] = {**moved, "measured": False}
    anchor = torch.where(everything, 0, merged.anchor).to(merged.anchor.dtype)
    merged = merged.replace(anchor=anchor, limit=limit, results={}, provenance=provenance)
    if limit is not None:
        check_fits_limit(merged, limit, "the merged policy")
    return merged


def check_fits_limit(policy: Policy, limit: Limit, what: str) -> int:
    """Refuse a policy that takes more than a limit, and tell what it takes.

    Args:
        policy: its own prefix counts, whatever that of the limit is.
        limit: what has to hold it.
        what: the policy, for the sentence.

    Returns:
        Its bytes, counted as those of the limit are: a size holds the tables of scores too, once, a share does not.

    Raises:
        BudgetError: with both numbers of bytes.
    """
    if (needed := limit.taken_by(policy, policy.prefix)) > limit.bytes:
        share = "" if limit.share is None else f" ({limit.share:.3g} of the plain cache)"
        raise BudgetError(
            f"{what}: takes {needed:,} bytes for {limit.spec.words()}, expected at most {limit.bytes:,}{share}; keep less, or "
            "name a larger limit."
        )
    return needed


def _edited(policy: Policy, edit: Edit) -> Policy:
    """One edit, checked as a new policy is."""
    shape, source = policy.shape, edit.source
    for what, numbers, there in (("layer", edit.layers, shape.layers), ("head", edit.heads or (), shape.kv_heads)):
        if wrong := [number for number in numbers if not 0 <= number < there]:
            raise PolicyMismatch(f"{what} {wrong[0]}: {shape.name} has {there}, numbered 0 to {there - 1}.")
    chosen = torch.zeros(shape.layers, shape.kv_heads, dtype=torch.bool)
    for layer in edit.layers:
        chosen[layer, list(range(shape.kv_heads) if edit.heads is None else edit.heads)] = True
    tensors: dict[str, Any] = {name: getattr(policy, name) for name in KEPT}
    scores, tables = policy.scores, policy.tables
    if source is not None:
        _check_source(policy, edit, source)
        scores = (*scores, *(name for name in source.scores if name not in scores))
        tables = joined(tables, source.tables, chosen)
        places = torch.tensor([scores.index(name) for name in source.scores], dtype=DTYPES[SCORE])
        taken = {name: getattr(source, name) for name in KEPT} | {SCORE: places[source.score.long()]}
        tensors = {name: torch.where(chosen, taken[name], tensor) for name, tensor in tensors.items()}
    for name, number in edit.numbers.items():
        if name not in tensors:
            raise PolicyMismatch(f"{name}: unknown, expected one of {', '.join(KEPT)}.")
        if name == SCORE:
            scores = scores if number in scores else (*scores, str(number))
            number = scores.index(str(number))
        tensors[name] = torch.where(chosen, torch.tensor(number, dtype=DTYPES[name]), tensors[name])
    return policy.replace(**tensors, scores=scores, tables=tables)


def _check_source(policy: Policy, edit: Edit, source: Policy) -> None:
    called = f"{edit.where}: {edit.name or 'the other policy'}"
    source.shape.check_alike(policy.shape, called)
    if source.shape.architecture != policy.shape.architecture:
        raise PolicyMismatch(
            f"{called}: is for another architecture ({source.shape.architecture[:12]}) than the base "
            f"({policy.shape.architecture[:12]}); take policies of one model."
        )
    for name in ("stride", "lead"):
        found, wanted = getattr(source, name), getattr(policy, name)
        if found != wanted:
            raise PolicyMismatch(
                f"{called}: its {name} is {found}, expected {wanted}, which all heads of the base share; take a policy of that "
                f"{name}, or give numbers."
            )


def _named(policy: Policy, name: str) -> dict[str, Any]:
    return {"name": name, "fingerprint": policy.fingerprint(), "weights": policy.shape.weights or None}
