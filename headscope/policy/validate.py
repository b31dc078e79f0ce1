"""A policy file, checked beyond what reading it checks: its own reckoning of bytes, its own limit, and a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.errors import PolicyMismatch
from headscope.facts import FLAG, check, one_of, optional, whole
from headscope.geometry import MOST_TOKENS
from headscope.policy.files import stored_facts
from headscope.policy.footprint import CacheSpec
from headscope.policy.merge import MERGED, check_fits_limit
from headscope.policy.metadata import DTYPE
from headscope.policy.policy import Policy
from headscope.policy.shape import ModelShape
from headscope.policy.shipped import policy_file

_SIZE = whole(0, 2**63 - 1)
# Schema 1 said `of` in place of `count_prefix`, and its prefix was the policy's.
_ACCOUNTING = {
    "bytes": _SIZE,
    "plain_bytes": _SIZE,
    "batch": whole(1),
    "streams": whole(1),
    "dtype": DTYPE,
    "prefix": optional(whole(0, MOST_TOKENS)),
    "count_prefix": optional(FLAG),
    "of": optional(one_of("all", "image")),
}


@dataclass(frozen=True)
class ValidPolicy:
    """A policy file in which nothing is wrong.

    Attributes:
        policy: what it holds; of the model that it was tried on, where there was one.
        schema: that it is written in.
        needs: features without which it is not understood, by name.
        accounted: whether it says what it takes; a file may leave that out.
    """

    policy: Policy
    schema: int
    needs: tuple[str, ...]
    accounted: bool


def validate(path: str | Path, shape: ModelShape | None = None) -> ValidPolicy:
    """Read and check everything of a policy file.

    Args:
        path: of the file, or the name of a shipped policy.
        shape: the model that it has to fit, None for any.

    Raises:
        DataError: see `Policy.load`.
        PolicyMismatch: see `Policy.load`; or the bytes in the file are not those that its numbers take.
        BudgetError: it takes more than its own limit.
    """
    policy, path = Policy.load(path, shape), policy_file(path)
    facts = stored_facts(path)
    accounting = facts.get("accounting")
    if accounting is not None:
        _check_accounting(policy, check(accounting, _ACCOUNTING, f"{path}: accounting", PolicyMismatch), path)
    if policy.limit is not None:
        check_fits_limit(policy, policy.limit, str(path))
    return ValidPolicy(policy, facts["headscope_schema"], tuple(facts.get("needs", ())), accounting is not None)


def _check_accounting(policy: Policy, told: dict[str, Any], path: Path) -> None:
    counted = {name: told[name] for name in ("batch", "streams", "dtype")}
    whole_prefix = told.get("count_prefix", told.get("of", "all") == "all")
    spec = CacheSpec(policy.shape, told.get("prefix", policy.prefix), count_prefix=whole_prefix, **counted)
    for name, needed in (("bytes", spec.bytes_of(policy)), ("plain_bytes", spec.full_bytes)):
        if told[name] != needed:
            raise PolicyMismatch(
                f"{path}: accounting.{name} is {told[name]:,}, expected {needed:,} for {spec.words()}; write the file anew."
            )


def unmeasured(policy: Policy) -> str:
    """A sentence about a policy that nobody has measured since it was made for its model; empty for any other.

    That is one whose provenance has `transferred`, an object, in which `measured` is not true, or one that was merged and has
    no results.

    Args:
        policy: what is asked about.
    """
    moved, name = policy.provenance.get("transferred"), policy.shape.name
    advice = "`headscope policy measure` does it"
    if isinstance(moved, dict) and moved.get("measured") is not True:
        origin = moved.get("from")
        made = f"transferred from {origin}" if isinstance(origin, str) else "transferred from another model"
        kind = f" ({moved['kind']})" if isinstance(moved.get("kind"), str) else ""
        return f"It was {made}{kind} and has not been measured on {name}: {advice}."
    if policy.provenance.get("method") == MERGED and not policy.results:
        return f"It was merged and has not been measured on {name} since: {advice}."
    return ""
