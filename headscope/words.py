"""Numbers and judgements in words: one rule each, so that terminal, report and files of one run say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_FRACTIONS = {1 / 2: "Half", 1 / 3: "A third", 1 / 4: "A quarter", 1 / 5: "A fifth", 1 / 6: "A sixth", 1 / 8: "An eighth",
              1 / 10: "A tenth"}  # fmt: skip
# Rows of the table of methods that keep everything: as the run has it, and rounded to two bytes, the floor of noise.
FULL, ROUNDED = "full", "full_bfloat16"
REFERENCES = (FULL, ROUNDED)
_CONTROLS = {"swapped": "with the classes exchanged", "random_heads": "with random classes"}


def percent(share: float, digits: int = 0) -> str:
    """0.734 -> "73 %"."""
    return f"{100 * share:.{digits}f} %"


def nats(value: float) -> str:
    """Four decimals, or two figures where those would say nothing: 0.0123, 3.1e-05; rounding noise about 0 is 0."""
    if abs(value) < 1e-7:
        return "0"
    return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.2g}"


def size(nbytes: float) -> str:
    """Bytes in their own unit, three figures: 1311488 -> "1.25 MiB", 512 -> "512 bytes"."""
    for unit, factor in _UNITS:
        if nbytes >= factor:
            amount = nbytes / factor
            return f"{amount:,.{2 if amount < 10 else 1 if amount < 100 else 0}f} {unit}"
    return f"{nbytes:.0f} bytes"


def duration(seconds: float) -> str:
    """93 -> "1 min 33 s"; from an hour on without seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def fraction(ratio: float) -> str:
    """0.1999 -> "A fifth"; what is no simple fraction is "23 %"."""
    near = min(_FRACTIONS, key=lambda simple: abs(simple - ratio))
    return _FRACTIONS[near] if abs(near - ratio) <= 0.004 else percent(ratio)


def best_preset(methods: pd.DataFrame) -> pd.Series | None:
    """The row of the preset that loses least, by name; None where none was measured. Controls (exchanged or random classes)
    are measured to judge SSD's classes: nobody proposes them, so they are no presets here.

    Args:
        methods: rows of `methods.csv`: method, replay_kl in nats a token, and more.
    """
    presets = methods.set_index("method").drop([*REFERENCES, "searched", *_CONTROLS], errors="ignore")
    return None if presets.empty else presets.loc[presets["replay_kl"].idxmin()]


def wins(methods: pd.DataFrame) -> bool | None:
    """Whether the searched policy loses less than every preset; None where that was not compared."""
    best = best_preset(methods)
    if best is None or "searched" not in set(methods["method"]):
        return None
    return bool(methods.set_index("method").loc["searched", "replay_kl"] < best["replay_kl"])


def verdict(methods: pd.DataFrame | None, quick: bool = False) -> str:
    """Whether the searched policy is better than the known methods, plainly.

    Args:
        methods: rows of `methods.csv`, all on images of prompts that the search did not see; None where nothing was compared.
            `difference_low` and `difference_high`, where they are there, are the 95 % interval of the paired difference
            between a method's loss and the searched policy's: where it holds 0, the difference is said to be noise.
        quick: the run was a dry run.
    """
    if quick:
        return "This was a dry run: no sensitivity table, presets not swept. The comparison means little."
    if methods is None or "searched" not in set(methods["method"]):
        return "There is nothing to compare yet: the compare step has not run."
    best = best_preset(methods)
    if best is None:
        return "No preset was measured beside the searched policy."
    ours, theirs = float(methods.set_index("method").loc["searched", "replay_kl"]), float(best["replay_kl"])
    noisy = "difference_low" in best and float(best["difference_low"]) <= 0 <= float(best["difference_high"])
    noise = " With so few images the difference is within the noise." if noisy else ""
    if not wins(methods):
        return (
            f"The searched policy does not win here: {best.name}, with its best setting, loses {nats(theirs)} nats a token "
            f"against {nats(ours)}, at the same bytes, on prompts that the search did not see.{noise}"
        )
    return (
        f"At the same bytes the searched policy loses {percent(1 - ours / theirs)} less than the best known method, "
        f"{best.name}, on prompts that the search did not see.{noise}"
    )


def classes_verdict(methods: pd.DataFrame) -> str:
    """Whether SSD's classes say what heads need: against the same classes exchanged, or dealt at random; empty where that was
    not measured.

    Args:
        methods: rows of `methods.csv`; `control_low`, where it is there, is the lower end of the 95 % interval of the paired
            difference between a control's loss and SSD's.
    """
    table = methods.set_index("method")
    found = [name for name in ("random_heads", "swapped") if name in table.index]
    if "ssd" not in table.index or not found:
        return ""
    real = float(table.loc["ssd", "replay_kl"])
    told = " and ".join(f"{nats(float(table.loc[name, 'replay_kl']))} {_CONTROLS[name]}" for name in found)
    low = table["control_low"] if "control_low" in table else table["replay_kl"] - real
    idle = [name for name in found if float(low[name]) <= 0]
    if not idle:
        return f"SSD's classes matter here: it loses {nats(real)} nats a token, {told}."
    rest = "as well" if len(idle) == len(found) else f"as well {' and '.join(_CONTROLS[name] for name in idle)}"
    return f"SSD's classes do not show here: it does {rest}, {nats(real)} nats a token against {told}."


def prompts_needed(needed: int | None, most: int) -> str:
    """How many prompts the classes take.

    Args:
        needed: prompts from which on two disjoint sets agree (Rand index .9, rank correlation .95); None: not even `most` do.
        most: prompts of the largest sets that were compared.
    """
    if needed is None:
        return f"Two sets of {most} prompts do not agree well enough yet (Rand index .9, rank correlation .95): trace more."
    return f"From {needed} prompt{'s' * (needed != 1)} on two disjoint sets agree: Rand index of .9, rank correlation of .95."
