"""Presets at equal bytes, and fairly: the free number of each is swept on the calibration pictures, its best stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from headscope.errors import BudgetError
from headscope.geometry import Geometry
from headscope.policy.budget import Limit
from headscope.policy.policy import ModelShape, Policy
from headscope.policy.presets import CONTROLS, PRESETS, Preset, tighter
from headscope.storage import read_json, write_json, write_whole
from headscope.tuning.replay import Measures

# What a searched policy is compared with, and what SSD's classes are.
COMPARED = ("streaming", "h2o", "linear", "pyramid", "ssd", *CONTROLS)


@dataclass(frozen=True)
class Sweep:
    """Attributes: best: preset name -> its best policy; table: one row a variant that was tried."""

    best: dict[str, Policy]
    table: pd.DataFrame


def sweep_presets(
    replay: Measures,
    shape: ModelShape,
    limit: Limit,
    semantic_score: torch.Tensor,
    *,
    prefix: int,
    names: Sequence[str] = COMPARED,
    quick: bool = False,
    path: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Measure every variant of every preset at the largest size that fits `limit`.

    Args:
        replay: the calibration pictures.
        semantic_score: float32 [layers, kv_heads], for the presets that tell classes apart.
        quick: one variant a preset, of those that replay in chunks of a row: a dry run, no fair comparison.
        path: JSON file of losses by fingerprint; what stands in it is not measured again.
        progress: called with (variants done, variants in all).

    A variant whose buffer does not fit the limit is left out, and said in the table (`fits` False). A preset of which none
    fits is tried with a shorter stride, where it has one; and is left out where that does not help.

    Raises:
        BudgetError: no preset fits.
    """

    def build(variant: Preset) -> Policy | None:
        try:
            return variant.build(shape, limit, prefix=prefix, semantic_score=semantic_score)
        except BudgetError:
            return None

    variants = []
    for name in names:
        usual = _variants(name, shape.geometry, quick)
        shorter = [] if any(build(variant) for variant in usual) else tighter(name, shape.geometry)
        variants += [(name, variant) for variant in [*usual, *(shorter[:1] if quick else shorter)]]
    losses = _read_losses(path)
    rows, best, least = [], {}, dict.fromkeys(names, float("inf"))
    for done, (name, variant) in enumerate(variants):
        row = {
            "method": name,
            "variant": _described(variant),
            "fits": True,
            "kl": float("nan"),
            "seconds": 0.0,
            "fingerprint": "",
        }
        rows.append(row)
        policy = build(variant)
        row["fits"] = policy is not None
        if policy is not None:
            key = policy.fingerprint()
            if key not in losses:
                found = replay.measure(policy)
                losses[key] = {"kl": found.kl, "seconds": found.seconds}
                if path is not None:
                    write_json(path, losses)
            row |= {**losses[key], "fingerprint": key}
            if losses[key]["kl"] < least[name]:
                least[name] = losses[key]["kl"]
                best[name] = policy.replace(provenance={**policy.provenance, "variant": row["variant"]})
        if progress is not None:
            progress(done + 1, len(variants))
    if not best:
        raise BudgetError(f"No variant of {', '.join(names)} fits {limit.bytes:,} bytes: raise the limit.")
    table = pd.DataFrame(rows)
    if path is not None:
        write_whole(Path(path).with_name("presets.parquet"), lambda target: table.to_parquet(target, index=False))
    return Sweep(best, table)


def _variants(name: str, geometry: Geometry, quick: bool) -> list[Preset]:
    everything = PRESETS[name].sweep(geometry)
    if not quick:
        return everything
    by_row = [variant for variant in everything if getattr(variant, "by_row", True)]
    return [by_row[len(by_row) // 2]]


def _read_losses(path: str | Path | None) -> dict[str, dict[str, float]]:
    return dict(read_json(path)) if path is not None and Path(path).exists() else {}


def _described(variant: object) -> str:
    """`split 0.5, by row` for a preset's dataclass."""
    said = []
    for name, value in asdict(variant).items():  # type: ignore[call-overload]
        if name == "strides_a_row" and value == 1:  # as its paper has it
            continue
        word = name.replace("_", " ")
        said.append(f"{word} {value}" if not isinstance(value, bool) else word if value else f"not {word}")
    return ", ".join(said)
