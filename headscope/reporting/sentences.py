"""What a report says in words, from the numbers alone: the headline, what it costs, and the few numbers below."""

from __future__ import annotations

from typing import Any

import pandas as pd

from headscope import words
from headscope.reporting.data import RunData
from headscope.words import nats, percent, size


def searched_row(data: RunData) -> pd.Series | None:
    """The searched policy's row of the table of methods; None where nothing was compared."""
    if data.methods is None or "searched" not in set(data.methods["method"]):
        return None
    return data.methods.set_index("method").loc["searched"]


def headline(data: RunData) -> str:
    """One sentence from the numbers."""
    row = searched_row(data)
    if row is None or data.methods is None:
        done = "heads classified" if data.heads is not None else "run begun"
        step = "searched, not yet compared" if data.policy is not None else "nothing searched yet"
        return f"{data.run['model']['name']}: {done}, {step}."
    begin, best = f"{words.fraction(row['kept_ratio'])} of the cache", words.best_preset(data.methods)
    if best is not None and not words.wins(data.methods) and not data.quick:
        # More decimals than usual: that it loses must show in the figures.
        return (
            f"{begin}, but {best.name} does better: KL {nats(best['replay_kl'])} against {nats(row['replay_kl'])} nats a token."
        )
    loss = float(row["replay_kl"])
    parts = [begin, f"KL {f'{loss:.3f}' if loss >= 1e-3 else nats(loss)} nats a token"]
    if data.images is not None:
        parts.append(f"{percent(data.images['token_agreement'].mean())} of the tokens the same")
    return ", ".join(parts) + "."


def verdict(data: RunData) -> str:
    """Whether the searched policy is better than the known methods."""
    if searched_row(data) is None and data.policy is None and not data.quick:
        return "There is nothing to compare yet: the search step has not run."
    return words.verdict(data.methods, data.quick)


def cost(data: RunData) -> str:
    """What a step takes against the full cache, said also where it takes longer; empty where it was not timed."""
    row = searched_row(data)
    if row is None or data.methods is None or "full" not in set(data.methods["method"]):
        return ""
    full = float(data.methods.set_index("method").loc["full", "ms_per_step"])
    mine = float(row["ms_per_step"])
    if not (full > 0 and mine > 0):  # nan: not timed
        return ""
    times = f"{mine:.1f} ms against {full:.1f} ms with the full cache"
    if mine > 1.05 * full:
        return f"It saves memory, not time, on this machine and at this batch: a step takes {times}."
    if mine < 0.95 * full:
        return f"A step is quicker, too: {times}."
    return f"A step takes as long as before: {times}."


def key_figures(data: RunData) -> list[dict[str, str]]:
    """The few numbers under the headline: name, value, and what it is measured against."""
    row = searched_row(data)
    if row is None or data.methods is None:
        return []
    table = data.methods.set_index("method")
    full: Any = table.loc["full"] if "full" in table.index else None
    measured = f"of {size(full['cache_bytes'])}" if full is not None else f"{percent(row['kept_ratio'], 1)} of the full one"
    figures = [
        {"name": "cache of an image", "value": size(row["cache_bytes"]), "note": measured},
        {"name": "replay KL", "value": nats(row["replay_kl"]), "note": _interval(row)},
        {"name": "most likely token the same", "value": percent(row["top1"], 1), "note": "top-1, images replayed"},
    ]
    if data.images is not None:
        note = f"{len(data.images)} images generated anew"
        figures.append({"name": "tokens the same", "value": percent(data.images["token_agreement"].mean()), "note": note})
    return figures


def _interval(row: pd.Series) -> str:
    if "kl_low" not in row or pd.isna(row["kl_low"]):
        return "nats a token"
    return f"nats a token, {nats(row['kl_low'])} to {nats(row['kl_high'])}"


def ablation(keep: str, noted: Any) -> str:
    """Whether the semantic score says what a head needs.

    Args:
        keep: the budget.
        noted: correlation, low, high of run.json, if they stand there.
    """
    begin = (
        f"Each head alone at {keep}, all others full: does it need the newest tokens or the heaviest? The larger a dot, the "
        "more it loses without."
    )
    if not isinstance(noted, dict) or not {"correlation", "low", "high"} <= set(noted):
        return begin
    between = f"{noted['correlation']:.2f}, {noted['low']:.2f} to {noted['high']:.2f} (95 %)"
    return f"{begin} Rank correlation with the semantic score {between}."


def facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    """What the figures belong to: name and value, only what run.json says."""
    told, model = [], run["model"]
    weights = f", weights {str(model['weights'])[:16]}" if model.get("weights") else ""
    told.append(("model", f"{model.get('source') or model['name']}{weights}"))
    if limit := run.get("limit"):
        told.append(("limit", _limit(limit)))
    if "seed" in run:
        told.append(("seed", str(run["seed"])))
    if run.get("created"):
        told.append(("begun", f"{run['created']}, headscope {run.get('headscope', 'unknown')}"))
    listed = [(name, run.get(name, {})) for name in ("machine", "versions")]
    told += [(name, ", ".join(f"{key} {value}" for key, value in table.items())) for name, table in listed if table]
    steps = {name: step for name, step in run.get("steps", {}).items() if isinstance(step, dict) and "seconds" in step}
    if steps:
        times = ", ".join(f"{name} {words.duration(step['seconds'])}" for name, step in steps.items())
        told.append(("time", f"{times}; {words.duration(sum(step['seconds'] for step in steps.values()))} in all"))
        if peak := max(int(step.get("peak_memory_bytes", 0)) for step in steps.values()):
            told.append(("memory", f"{size(peak)} at most"))
    return told


def _limit(limit: dict[str, Any]) -> str:
    images, streams = int(limit.get("batch", 1)), int(limit.get("streams", 1))
    terms = f"{images} image{'s' * (images != 1)} × {streams} stream{'s' * (streams != 1)}"  # noqa: RUF001
    plain = f"; the plain cache takes {int(limit['plain_bytes']):,}" if "plain_bytes" in limit else ""
    of = ", prompt not counted" if limit.get("of") == "image" or limit.get("count_prefix") is False else ""
    return f"{limit.get('text', '')}{of} = {int(limit['bytes']):,} bytes for {terms} in {limit['dtype']}{plain}"
