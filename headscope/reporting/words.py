"""What a report says in words, from the numbers alone: the headline, who wins, and what it costs."""

from __future__ import annotations

from typing import Any

import pandas as pd

from headscope.heads.stability import enough
from headscope.policy import CONTROLS
from headscope.reporting.data import RunData

NBSP = "\u00a0"
FRACTIONS = {
    1 / 2: "Half",
    1 / 3: "A third",
    1 / 4: "A quarter",
    1 / 5: "A fifth",
    1 / 6: "A sixth",
    1 / 8: "An eighth",
    1 / 10: "A tenth",
}


def percent(share: float, digits: int = 0) -> str:
    """0.734 -> "73 %"."""
    return f"{100 * share:.{digits}f}{NBSP}%"


def nats(value: float) -> str:
    """Four decimals, or two figures where those would say nothing: 0.0123, 3.1e-05; rounding noise about 0 is 0."""
    if abs(value) < 1e-7:
        return "0"
    return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.2g}"


def size(nbytes: float) -> str:
    """1311488 -> "1.25 MiB"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            amount = nbytes / factor
            return f"{amount:,.{2 if amount < 10 else 1 if amount < 100 else 0}f}{NBSP}{unit}"
    return f"{nbytes:.0f}{NBSP}bytes"


def duration(seconds: float) -> str:
    """93 -> "1 min 33 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}{NBSP}s" if seconds < 10 else f"{whole}{NBSP}s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}{NBSP}h {minutes}{NBSP}min" if hours else f"{minutes}{NBSP}min {whole % 60}{NBSP}s"


def share_of(ratio: float) -> str:
    """0.1999 -> "A fifth"; what is no simple fraction is "23 %"."""
    near = min(FRACTIONS, key=lambda fraction: abs(fraction - ratio))
    return FRACTIONS[near] if abs(near - ratio) <= 0.004 else percent(ratio)


def quick(data: RunData) -> bool:
    """Whether the run was a dry run, whose comparison means little."""
    return bool(data.run.get("settings", {}).get("quick"))


def standing(data: RunData) -> tuple[pd.Series, pd.Series | None] | None:
    """The searched policy's row of the table of methods and that of the best preset; None where nothing was compared."""
    if data.methods is None or "searched" not in set(data.methods["method"]):
        return None
    table = data.methods.set_index("method")
    presets = table.drop(["full", "searched", *CONTROLS], errors="ignore")
    return table.loc["searched"], None if presets.empty else presets.loc[presets["replay_kl"].idxmin()]


def wins(data: RunData) -> bool | None:
    """Whether the searched policy loses less than every preset; None where nothing was compared."""
    found = standing(data)
    if found is None or found[1] is None:
        return None
    return bool(found[0]["replay_kl"] < found[1]["replay_kl"])


def headline(data: RunData) -> str:
    """One sentence from the numbers."""
    found = standing(data)
    if found is None:
        done = "heads classified" if data.heads is not None else "run begun"
        step = "searched, not yet compared" if data.policy is not None else "nothing searched yet"
        return f"{data.run['model']['name']}: {done}, {step}."
    row, best = found
    begin = f"{share_of(row['kept_ratio'])} of the cache"
    if best is not None and not wins(data) and not quick(data):
        # More decimals than usual: that it loses must show in the figures.
        return (
            f"{begin}, but {best.name} does better: KL {nats(best['replay_kl'])} against {nats(row['replay_kl'])} nats a token."
        )
    parts = [begin, f"KL {_short(row['replay_kl'])} nats a token"]
    if data.pictures is not None and len(data.pictures):
        parts.append(f"{percent(data.pictures['token_agreement'].mean())} of the tokens the same")
    return ", ".join(parts) + "."


def verdict(data: RunData) -> str:
    """Whether the searched policy is better than the known methods, plainly."""
    if quick(data):
        return "This was a dry run: no sensitivity table, presets not swept. The comparison means little."
    found = standing(data)
    if found is None:
        return "There is nothing to compare yet: " + (
            "the search step has not run." if data.policy is None else "the compare step has not run."
        )
    row, best = found
    if best is None:
        return "No preset was measured beside the searched policy."
    ours, theirs = float(row["replay_kl"]), float(best["replay_kl"])
    noisy = "difference_low" in best and float(best["difference_low"]) <= 0 <= float(best["difference_high"])
    noise = " With so few pictures the difference is within the noise." if noisy else ""
    if ours >= theirs:
        return (
            f"The searched policy does not win here: {best.name}, with its best setting, loses {nats(theirs)} nats a token "
            f"against {nats(ours)}, at the same bytes, on prompts that the search did not see.{noise}"
        )
    return (
        f"At the same bytes the searched policy loses {percent(1 - ours / theirs)} less than the best known method, "
        f"{best.name}, on prompts that the search did not see.{noise}"
    )


def classes(methods: pd.DataFrame) -> str:
    """Whether SSD's classes say what heads need: against the same classes exchanged, or dealt at random; empty where that was
    not measured."""
    table = methods.set_index("method")
    found = [name for name in CONTROLS if name in table.index]
    if "ssd" not in table.index or not found:
        return ""
    real = float(table.loc["ssd", "replay_kl"])
    said = {"swapped": "with the classes exchanged", "random_heads": "with random classes"}
    told = " and ".join(f"{nats(float(table.loc[name, 'replay_kl']))} {said[name]}" for name in found)
    low = table["control_low"] if "control_low" in table else table["replay_kl"] - real
    idle = [name for name in found if float(low[name]) <= 0]
    if not idle:
        return f"SSD's classes matter here: it loses {nats(real)} nats a token, {told}."
    rest = "as well" if len(idle) == len(found) else f"as well {' and '.join(said[name] for name in idle)}"
    return f"SSD's classes do not show here: it does {rest}, {nats(real)} nats a token against {told}."


def agreement(stability: pd.DataFrame) -> str:
    """How many prompts are enough."""
    needed, most = enough(stability), stability.loc[stability["what"] == "prompts", "value"].iloc[-1]
    if needed is None:
        return f"Two sets of {most} prompts do not agree well enough yet (Rand index .9, rank correlation .95): trace more."
    return f"From {needed} prompt{'s' * (needed != 1)} on two disjoint sets agree: Rand index of .9, rank correlation of .95."


def needs(keep: str, noted: Any) -> str:
    """Whether the semantic score says what a head needs; noted: correlation, low, high of run.json, if they stand there."""
    begin = (
        f"Each head alone at {keep}, all others full: does it need the newest tokens or the heaviest? The larger a dot, the "
        "more it loses without."
    )
    if not isinstance(noted, dict) or not {"correlation", "low", "high"} <= set(noted):
        return begin
    between = f"{noted['correlation']:.2f}, {noted['low']:.2f} to {noted['high']:.2f} (95{NBSP}%)"
    return f"{begin} Rank correlation with the semantic score {between}."


def cost(data: RunData) -> str:
    """What a step takes against the full cache, said also where it takes longer; empty where it was not timed."""
    found = standing(data)
    if found is None or data.methods is None or "full" not in set(data.methods["method"]):
        return ""
    full = float(data.methods.set_index("method").loc["full", "ms_per_step"])
    mine = float(found[0]["ms_per_step"])
    if not (full > 0 and mine > 0):  # nan: not timed
        return ""
    times = f"{mine:.1f}{NBSP}ms against {full:.1f}{NBSP}ms with the full cache"
    if mine > 1.05 * full:
        return f"It saves memory, not time, on this machine and at this batch: a step takes {times}."
    if mine < 0.95 * full:
        return f"A step is quicker, too: {times}."
    return f"A step takes as long as before: {times}."


def key_figures(data: RunData) -> list[dict[str, str]]:
    """The few numbers under the headline: name, value, and what it is measured against."""
    found = standing(data)
    if found is None or data.methods is None:
        return []
    row, table = found[0], data.methods.set_index("method")
    full: Any = table.loc["full"] if "full" in table.index else None
    figures = [
        {
            "name": "cache of a picture",
            "value": size(row["cache_bytes"]),
            "note": f"of {size(full['cache_bytes'])}"
            if full is not None
            else f"{percent(row['kept_ratio'], 1)} of the full one",
        },
        {"name": "replay KL", "value": nats(row["replay_kl"]), "note": _interval(row)},
        {"name": "most likely token the same", "value": percent(row["top1"], 1), "note": "top-1, pictures replayed"},
    ]
    if data.pictures is not None and len(data.pictures):
        note = f"{len(data.pictures)} pictures drawn anew"
        figures.append({"name": "tokens the same", "value": percent(data.pictures["token_agreement"].mean()), "note": note})
    return figures


def _interval(row: pd.Series) -> str:
    if "kl_low" not in row or pd.isna(row["kl_low"]):
        return "nats a token"
    return f"nats a token, {nats(row['kl_low'])} to {nats(row['kl_high'])}"


def _short(value: float) -> str:
    return f"{value:.3f}" if value >= 1e-3 else nats(value)
