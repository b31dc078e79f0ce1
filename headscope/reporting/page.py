"""The report of a run: one HTML file that opens without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from headscope import words
from headscope.heads import enough
from headscope.policy import CONTROLS, CacheSpec
from headscope.reporting import charts, head_charts, sentences
from headscope.reporting.data import RunData, read_run
from headscope.reporting.footprints import described, footprint
from headscope.reporting.html import inlined, write_page
from headscope.reporting.streams import stream_map
from headscope.reporting.style import NARROW, WIDE, svg
from headscope.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_AT_ONCE = 8  # pairs of images at once; the others are behind a click
MOST_IMAGES = 64  # pairs in the page, so that it stays light
SHOWN_HEADS = 4  # most spatial and most semantic heads
_SIDE = 192  # pixels of an image in the page


def write_report(run_folder: str | Path) -> Path:
    """Write report.html from the files of a run; a step that has not run is said to be missing.

    Raises:
        DataError: no run folder, or a damaged file in it.
    """
    data = read_run(run_folder)
    return write_page(data.path / "report.html", "report.html.jinja", **content(data))


def content(data: RunData) -> dict[str, Any]:
    """What the template shows."""
    return {
        "run": data.run,
        "model": data.run["model"],
        "source": data.run["model"].get("source") or data.run["model"]["name"],
        "headline": sentences.headline(data),
        "verdict": sentences.verdict(data),
        "cost": sentences.cost(data),
        "key_figures": sentences.key_figures(data),
        "facts": sentences.facts(data.run),
        **_of_images(data),
        **_of_methods(data),
        **_of_heads(data),
        **_of_the_policy(data),
        **_of_the_search(data),
    }


def _both(chart: Callable[..., Figure], *data: Any) -> Markup:
    """A figure for a desk and for a telephone; the style sheet shows one."""
    wide, narrow = svg(chart(*data, width=WIDE)), svg(chart(*data, width=NARROW))
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')


def _one(figure: Figure) -> Markup:
    return Markup(svg(figure))


def _of_images(data: RunData) -> dict[str, Any]:
    shown: list[dict[str, Any]] = []
    for row in [] if data.images is None else data.images.to_dict("records"):
        if len(shown) == MOST_IMAGES:
            break
        name = f"{int(row['index']):03d}.png"
        pair = {kind: inlined(RunFolder(data.path).images / kind / name, _SIDE) for kind in ("full", "searched")}
        if all(pair.values()):
            shown.append({**pair, "prompt": row["prompt"], "seed": row["seed"], "agreement": row["token_agreement"]})
    left_out = 0 if data.images is None else len(data.images) - len(shown)
    return {"images": shown, "images_left_out": left_out, "other_images": data.other_images, "shown_at_once": SHOWN_AT_ONCE}


def _of_methods(data: RunData) -> dict[str, Any]:
    """The table's rows, the full cache first, then from the least loss to the most, and the figures beside them."""
    calibration = len(data.prompts.get("calibration", []))
    searched_images = int((data.search or {}).get("images") or calibration)
    shared = {"unseen": len(data.prompts.get("unseen", [])), "searched_images": searched_images}
    if data.methods is None:
        return {"methods": [], **shared}
    rows: list[dict[str, Any]] = data.methods.sort_values("replay_kl", kind="stable").to_dict("records")
    for row in rows:
        row["variant"] = row["variant"] if isinstance(row.get("variant"), str) else ""
        timed = isinstance(row["ms_per_step"], float) and row["ms_per_step"] > 0  # nan: not timed
        free = row.get("free_kl")  # older tables have none, and controls are not measured
        row["free"] = words.nats(free) if isinstance(free, float) and free == free else ""
        row["ms"] = f"{row['ms_per_step']:.1f}" if timed else "not timed"
    return {
        "methods": sorted(rows, key=lambda row: row["method"] not in words.REFERENCES),
        "has_interval": "kl_low" in data.methods,
        "has_free": "free_kl" in data.methods,
        "has_bits": "bits" in data.methods,
        "packed": next((name for name in data.methods["method"] if str(name).endswith("+bits")), ""),
        "rounded": words.ROUNDED in set(data.methods["method"]),
        "losses_figure": _both(charts.losses, data.methods),
        "classes_verdict": "" if data.quick else words.classes_verdict(data.methods),
        "rows_figure": _rows(data.methods, data.by_row),
        **shared,
    }


def _rows(methods: pd.DataFrame, by_row: pd.DataFrame | None) -> Markup | None:
    if by_row is None:
        return None
    others = methods[~methods["method"].isin([*words.REFERENCES, "searched", *CONTROLS])].nsmallest(3, "replay_kl")["method"]
    measured = set(by_row["method"])
    shown = [name for name in ("searched", *others) if name in measured]
    return _both(charts.rows_of_image, by_row, shown) if shown else None


def _of_heads(data: RunData) -> dict[str, Any]:
    if data.heads is None:
        return {"head_map": None, "shown_heads": {}, "lags": None, "margins": "", **_trust(data)}
    table, kv_heads = data.heads.table, int(data.run["model"]["kv_heads"])
    shown = _shown_heads(data, table)
    return {
        "head_map": _one(head_charts.class_map(table)),
        "scores": _one(head_charts.scores(table)),
        "counts": table["class"].value_counts().to_dict(),
        "doubtful": int((table["confidence"] < head_charts.DOUBT).sum()),
        "doubt": head_charts.DOUBT,
        "scores_stand": head_charts.shows_scores(kv_heads),
        "shown_heads": shown,
        "lags": _lags(data, table, shown),
        "margins": _margins(data, table),
        **_trust(data),
    }


def _shown_heads(data: RunData, table: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """The heads with the lowest and the highest semantic score."""
    if data.curves is None:
        return {}
    masses = data.by_kv_head("footprint")
    ordered = table.sort_values(["semantic_score", "layer", "kv_head"])
    count = min(SHOWN_HEADS, len(ordered) // 2)  # no head stands on both sides
    shown: dict[str, list[dict[str, Any]]] = {}
    for kind, part in (("spatial", ordered.head(count)), ("semantic", ordered.tail(count)[::-1])):
        shown[kind] = []
        for row in part.to_dict("records"):
            layer, head = int(row["layer"]), int(row["kv_head"])
            label = f"layer {layer} head {head}"
            facts = {"layer": layer, "head": head, "label": label, "score": row["semantic_score"]}
            facts |= {"prefix": row.get("prefix_mass"), "words": described(masses[layer, head])}
            shown[kind].append({**facts, "figure": _one(footprint(masses[layer, head], kind, label))})
    return shown


def _lags(data: RunData, table: pd.DataFrame, shown: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    if data.curves is None or not any(shown.values()):
        return None
    chosen = [(head["layer"], head["head"], kind) for kind, heads in shown.items() for head in heads[:2]]
    labels = {kind: [head["label"] for head in heads[:2]] for kind, heads in shown.items()}
    figure = _both(head_charts.decay, data.by_kv_head("lag_mass"), table, data.geometry.row_length, chosen)
    return {"figure": figure, "labels": labels}


def _margins(data: RunData, table: pd.DataFrame) -> str:
    """What the two streams' caches say of the margin columns; empty where they were not traced, or are all alike."""
    if data.curves is None or "cache_divergence" not in data.curves or data.geometry.rows == 1:
        return ""
    found = stream_map(data.curves["cache_divergence"], table, data.geometry)
    return found.sentence() if found.by_class else ""


def _trust(data: RunData) -> dict[str, Any]:
    """How far two looks at the heads agree, and what each head needs, a figure and a sentence a budget."""
    agreement, noted = None, data.run.get("ablation", {})
    if data.stability is not None and (prompts := data.stability[data.stability["what"] == "prompts"]["value"]).any():
        told = words.prompts_needed(enough(data.stability), int(prompts.iloc[-1]))
        agreement = {"figure": _one(charts.agreement(data.stability)), "words": told}
    budgets = [] if data.ablation is None else list(data.ablation.groupby("keep", sort=False))
    ablation = [
        {"figure": _one(charts.ablation(table)), "words": sentences.ablation(str(keep), noted.get(str(keep)))}
        for keep, table in budgets
    ]
    return {"agreement": agreement, "ablation": ablation}


def _of_the_policy(data: RunData) -> dict[str, Any]:
    if data.policy is None:
        return {"policy": None, "budgets": None}
    limit = data.run.get("limit", {})
    spec = CacheSpec(
        data.policy.shape,
        data.policy.prefix,
        int(limit.get("batch", 1)),
        int(limit.get("streams", 2)),
        str(limit.get("dtype", "float32")),
    )
    return {"policy": data.policy, "budgets": _both(head_charts.kept, data.policy, spec)}


def _of_the_search(data: RunData) -> dict[str, Any]:
    search = data.search or {}
    shares = search.get("importances", {}).get("table", {})
    found = {
        "best": search.get("best"),
        "stopped": search.get("stopped") or "",
        "dropped": search.get("dropped_strides") or [],
        "importances": sorted(shares.items(), key=lambda pair: -pair[1])[:4],
        "history": None,
        "given_up": 0,
        "failed": 0,
    }
    if data.trials is None:
        return found
    state = data.trials["state"]
    found |= {"given_up": int((state == "pruned").sum()), "failed": int((state == "fail").sum())}
    if data.trials.loc[state == "complete", "kl"].notna().any():
        found["history"] = _both(charts.history, data.trials)
    return found
