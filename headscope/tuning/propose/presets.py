"""Presets at equal bytes, and fairly: the free number of each is swept on the calibration images, its best stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch

from headscope.errors import BudgetError
from headscope.geometry import Geometry
from headscope.policy import CONTROLS, PRESETS, Limit, Policy, Preset, project, tighter
from headscope.progress import Progress, of_task
from headscope.storage import read_json, write_json, write_parquet
from headscope.tuning.measure.measurement import PolicyEvaluator, Pruned
from headscope.tuning.measure.replay import chunks

# What a searched policy is compared with, and what SSD's classes are.
COMPARED = ("kivi", "streaming", "tova", "h2o", "linear_ar", "pyramid", "ssd", *CONTROLS)
# Behind a preset's name where its numbers are kept in fewer bits than its paper does.
WITH_BITS = "+bits"
# Variants of a preset that are measured with fewer bits too: those that lose least as published.
AGAIN = 3

ROUNDING = 1.000001
_UNMEASURED = {"kl": float("nan"), "at_least": float("nan"), "seconds": 0.0}


@dataclass(frozen=True)
class Sweep:
    """What `sweep_presets` measured.

    Attributes:
        best: name of the preset -> its best policy.
        table: a row a variant: method, variant, fits, kl (nats a token), at_least (the same, or what it loses at least where it
            was given up), seconds, fingerprint.
    """

    best: dict[str, Policy]
    table: pd.DataFrame


def sweep_presets(
    replay: PolicyEvaluator,
    limit: Limit,
    semantic_score: torch.Tensor,
    *,
    names: Sequence[str] = COMPARED,
    quick: bool = False,
    bits: Sequence[int] = (16,),
    path: str | Path | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Measure every variant of every preset at the largest size that fits `limit`: as published, then with fewer bits.

    A variant whose buffer does not fit the limit is left out, and said in the table (`fits` False). A preset of which none
    fits is tried with a shorter stride, where it has one; and is left out where that does not help.

    The cheapest variants go first. A variant that has lost more on some of the images than the best of its preset on all of
    them can't become the best any more, as no image gains: it is given up, its `kl` is nan, and `at_least` stands for it.

    Args:
        replay: the calibration images.
        limit: the byte limit.
        semantic_score: float32 [layers, kv_heads] in [0, 1], for the presets that tell classes apart.
        names: of the presets.
        quick: one variant a preset, of those that replay in chunks of a row: a dry run, no fair comparison.
        bits: of kept numbers. Below 16, the AGAIN variants of each preset that lose least in 16 bits are measured with
            those too, at the largest size that then fits; the best of them is `h2o+bits` beside `h2o`. Controls have none.
        path: JSON file of losses by fingerprint; what stands in it is not measured again.
        progress: told of variants, see `headscope.progress`.

    Raises:
        BudgetError: no preset fits.
    """
    published = _of_all(names, limit, semantic_score, quick)
    fewer, again = sorted({each for each in bits if each < 16}, reverse=True), 1 if quick else AGAIN
    least = _Losses(replay, path, limit.spec.shape.geometry)
    least.measure(published, of_task(progress, "presets at the same bytes", len(published)))
    packed: list[Variant] = []
    for name in names if fewer else ():
        if name not in CONTROLS:
            some = least.first([variant for variant in published if variant[0] == name], again)
            packed += _in_fewer_bits(some, limit, semantic_score, fewer)
    least.measure(packed, of_task(progress, "presets with fewer bits", len(packed)))
    found = _swept([*published, *packed], least.known)
    if not found.best:
        raise BudgetError(f"No variant of {', '.join(names)} fits {limit.bytes:,} bytes; expected a larger limit.")
    if path is not None:
        write_parquet(found.table, Path(path).with_name("presets.parquet"))
    return found


# A preset's name, one of its variants, and the policy of that, None where its buffer does not fit the limit.
Variant = tuple[str, Preset, Policy | None]


def _of_all(names: Sequence[str], limit: Limit, semantic_score: torch.Tensor, quick: bool) -> list[Variant]:
    """Every variant of every preset; with a shorter stride too where none of the usual ones fits."""
    geometry = limit.spec.shape.geometry

    def build(variant: Preset) -> Policy | None:
        try:
            return variant.build(limit, semantic_score)
        except BudgetError:
            return None

    variants: list[Variant] = []
    for name in names:
        usual = [(name, variant, build(variant)) for variant in _variants(name, geometry, quick)]
        shorter = [] if any(policy for *_, policy in usual) else tighter(name, geometry)
        variants += [*usual, *((name, variant, build(variant)) for variant in (shorter[:1] if quick else shorter))]
    return variants


def _in_fewer_bits(
    variants: Sequence[Variant], limit: Limit, semantic_score: torch.Tensor, bits: Sequence[int]
) -> list[Variant]:
    """A preset's variants again in each number of bits; those that say their bits themselves have no other."""
    found: list[Variant] = []
    for each in bits:
        wide = Limit(min(limit.bytes * 16 // each, limit.spec.full_bytes), limit.spec, limit.share)
        for name, variant, published in variants:
            if published is not None and published.quantized:
                continue
            try:
                policy = in_bits(variant.build(wide, semantic_score), limit, each)
            except BudgetError:
                continue
            found.append((f"{name}{WITH_BITS}", variant, policy))
    return found


@dataclass
class _Losses:
    """What variants lose on the calibration images, by fingerprint, in a file that is read first and written as they come."""

    replay: PolicyEvaluator
    path: str | Path | None
    geometry: Geometry
    known: dict[str, dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.known = _read_losses(self.path)

    def measure(self, variants: Sequence[Variant], tell: Callable[[int, int], None]) -> None:
        """Measure what is not known, the cheapest first; one that can't be its preset's best any more is given up."""
        for done, index in enumerate(_cheap_first([policy for *_, policy in variants], self.geometry)):
            name, _, policy = variants[index]
            if policy is not None:
                least = _least(self.of(other) for of, _, other in variants if of == name and other is not None)
                found = self.of(policy)
                if "kl" not in found and found.get("at_least", 0.0) <= least:
                    self.known[policy.fingerprint()] = _measured(self.replay, policy, least)
                    if self.path is not None:
                        write_json(self.path, self.known)
            tell(done + 1, len(variants))

    def of(self, policy: Policy) -> dict[str, float]:
        """What is known of one: nothing, `kl` and `at_least`, or `at_least` alone where it was given up."""
        return self.known.get(policy.fingerprint(), {})

    def first(self, variants: Sequence[Variant], count: int) -> list[Variant]:
        """Those that lose least as far as is known; where none fits, the first."""
        fitting = [variant for variant in variants if variant[2] is not None]
        ranked = sorted(fitting, key=lambda variant: self.of(variant[2])["at_least"] if variant[2] else 0.0)
        return [*ranked, *(variant for variant in variants if variant[2] is None)][:count]


def _swept(variants: Sequence[Variant], losses: Mapping[str, Mapping[str, float]]) -> Sweep:
    """The table of all variants, and the best of each preset."""
    rows, best, least_of = [], {}, {name: float("inf") for name, *_ in variants}
    for name, variant, policy in variants:
        key = "" if policy is None else policy.fingerprint()
        row = {
            "method": name,
            "variant": _described(variant, policy),
            "fits": policy is not None,
            **_UNMEASURED,
            "fingerprint": key,
        }
        rows.append(row)
        if policy is not None:
            found = losses[key]
            row |= {column: found[column] for column in _UNMEASURED if column in found}
            if found.get("kl", float("inf")) < least_of[name]:
                least_of[name] = found["kl"]
                best[name] = policy.replace(provenance={**policy.provenance, "variant": row["variant"]})
    return Sweep(best, pd.DataFrame(rows))


def _cheap_first(policies: Sequence[Policy | None], geometry: Geometry) -> list[int]:
    """Indices by the number of chunks a policy is replayed in."""
    pieces = [0 if policy is None else sum(1 for _ in chunks(policy, geometry)) for policy in policies]
    return sorted(range(len(policies)), key=lambda index: pieces[index])


def _least(rivals: Iterable[Mapping[str, float]]) -> float:
    """The least loss among a preset's variants so far, a hair above it for sums in another order."""
    return min((rival["kl"] for rival in rivals if "kl" in rival), default=float("inf")) * ROUNDING


def _measured(replay: PolicyEvaluator, policy: Policy, least: float) -> dict[str, float]:
    """Loss and seconds of one variant; in place of the loss only `at_least`, once that is above `least`."""
    began = time.perf_counter()
    lost, seen = 0.0, 0

    def watch(by_image: torch.Tensor) -> None:
        nonlocal lost, seen
        lost, seen = lost + float(by_image.sum()), seen + len(by_image)
        if seen < len(replay) and lost / len(replay) > least:
            raise Pruned

    try:
        found = replay.measure(policy, watch)
    except Pruned:
        return {"at_least": lost / len(replay), "seconds": time.perf_counter() - began}
    return {"kl": found.kl, "at_least": found.kl, "seconds": found.seconds}


def _variants(name: str, geometry: Geometry, quick: bool) -> list[Preset]:
    everything = PRESETS[name].sweep(geometry)
    if not quick:
        return everything
    by_row = [variant for variant in everything if getattr(variant, "by_row", True)]
    return [by_row[len(by_row) // 2]]


def _read_losses(path: str | Path | None) -> dict[str, dict[str, float]]:
    return dict(read_json(path)) if path is not None and Path(path).exists() else {}


def in_bits(policy: Policy, limit: Limit, bits: int) -> Policy:
    """A preset's policy with all heads in so many bits, grown or cut in proportion to the largest size that then fits.

    Args:
        policy: of the preset, whose sizes are in proportion to what heads keep.
        limit: what has to hold it.
        bits: of a kept number.

    Raises:
        BudgetError: it does not fit at any size.
    """
    if policy.quantized and (needed := limit.spec.bytes_of(policy)) > limit.bytes:
        raise BudgetError(f"The preset says its bits itself and takes {needed:,} bytes, the limit is {limit.bytes:,}.")
    if bits == 16 or policy.quantized:
        return policy
    window, heavy = project(
        policy.window, policy.heavy, limit, stride=policy.stride, anchor=int(policy.anchor.max()), bits=bits
    )
    everything = window + heavy >= limit.spec.shape.geometry.tokens - 1
    return policy.replace(
        window=window,
        heavy=heavy,
        anchor=torch.where(everything, 0, policy.anchor.max()).to(policy.anchor.dtype),
        bits=torch.full_like(policy.bits, bits),
    )


def _described(variant: object, policy: Policy | None) -> str:
    """`split 0.5, by row, 8 bits` for a preset's dataclass."""
    said = []
    for name, value in asdict(variant).items():  # type: ignore[call-overload]
        if name == "strides_a_row" and value == 1:  # as its paper has it
            continue
        word = name.replace("_", " ")
        said.append(f"{word} {value}" if not isinstance(value, bool) else word if value else f"not {word}")
    if policy is not None and bool((policy.bits < 16).all()) and "bits" not in asdict(variant):  # type: ignore[call-overload]
        said.append(f"{int(policy.bits.max())} bits")
    return ", ".join(said)
