"""The report: one HTML file that opens without a network."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup
from PIL import Image

from headscope.reporting import figures
from headscope.reporting.data import RunData, read_run
from headscope.storage import write_text

SHOWN_AT_ONCE = 8  # pairs of pictures above the fold; the others are behind a click
DRAWN_HEADS = 4  # most spatial and most semantic heads


def write_report(run_folder: str | Path) -> Path:
    """Write report.html from the files of a run; a step that has not run is said to be missing.

    Raises:
        DataError: no run folder, or a damaged file in it.
    """
    data = read_run(run_folder)
    folder = files("headscope.reporting")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((folder / "report.html.jinja").read_text(encoding="utf-8"))
    style = Markup((folder / "report.css").read_text(encoding="utf-8"))
    return write_text(data.path / "report.html", template.render(style=style, **content(data)))


def content(data: RunData) -> dict[str, Any]:
    """What the template shows."""
    return {
        "run": data.run,
        "model": data.run["model"],
        "headline": headline(data),
        "verdict": verdict(data),
        "pictures": _pictures(data),
        "shown_at_once": SHOWN_AT_ONCE,
        "methods": [] if data.methods is None else data.methods.to_dict("records"),
        "unseen": len(data.prompts.get("unseen", [])),
        "calibration": len(data.prompts.get("calibration", [])),
        "losses_figure": _svg(None if data.methods is None else figures.losses(data.methods)),
        "rows_figure": _svg(_rows(data)),
        "head_map": _svg(None if data.heads is None else figures.head_map(data.heads.table)),
        "counts": {} if data.heads is None else data.heads.table["class"].value_counts().to_dict(),
        "drawn": _drawn_heads(data),
        "lags": _svg(_lags(data)),
        "budgets": _svg(None if data.policy is None else figures.budgets(data.policy)),
        "policy": data.policy,
        "history": _svg(None if data.trials is None or not data.trials["kl"].notna().any() else figures.history(data.trials)),
        "search": data.search,
        "importances": _importances(data),
        "accepted": data.run.get("settings", {}).get("quick", False),
    }


def headline(data: RunData) -> str:
    """One sentence from the numbers."""
    if data.methods is None or "searched" not in set(data.methods["method"]):
        done = "heads classified" if data.heads is not None else "run begun"
        return f"{data.run['model']['name']}: {done}, nothing searched yet."
    row = data.methods.set_index("method").loc["searched"]
    parts = [f"{row['kept_ratio']:.0%} of the cache", f"{row['replay_kl']:.3f} nats a token lost"]
    if data.pictures is not None:
        parts.append(f"{data.pictures['token_agreement'].mean():.0%} of the drawn tokens the same")
    return ", ".join(parts) + "."


def verdict(data: RunData) -> str:
    """Whether the searched policy is better than the known methods, plainly."""
    if data.run.get("settings", {}).get("quick"):
        return "This was a dry run: no sensitivity table, presets not swept. The comparison means little."
    if data.methods is None or "searched" not in set(data.methods["method"]):
        return "No policy has been searched in this run yet."
    table = data.methods.set_index("method")
    searched, presets = table.loc["searched"], table.drop(["full", "searched"], errors="ignore")
    if presets.empty:
        return "No preset was measured beside the searched policy."
    best = presets["replay_kl"].idxmin()
    less = 1 - float(searched["replay_kl"]) / float(presets.loc[best, "replay_kl"])
    if less <= 0:
        return (
            f"The searched policy does not win here: {best}, with its best setting, loses "
            f"{presets.loc[best, 'replay_kl']:.4f} nats a token against {searched['replay_kl']:.4f} on prompts that "
            "the search did not see."
        )
    sentence = (
        f"At the same bytes the searched policy loses {less:.0%} less than the best known method, {best}, on prompts that the "
        "search did not see."
    )
    if "difference_low" in presets and float(presets.loc[best, "difference_low"]) <= 0:
        sentence += " With so few pictures the difference is within the noise."
    return sentence


def _pictures(data: RunData) -> list[dict[str, Any]]:
    if data.pictures is None:
        return []
    shown = []
    for row in data.pictures.itertuples():
        name = f"{row.index:03d}.png" if isinstance(row.index, int) else f"{int(row[1]):03d}.png"
        pair = {kind: _inlined(data.path / "pictures" / kind / name) for kind in ("full", "searched")}
        if all(pair.values()):
            shown.append({**pair, "prompt": row.prompt, "seed": row.seed, "agreement": row.token_agreement})
    return shown


def _inlined(path: Path, side: int = 192) -> str:
    """A picture as a data URL; large ones are made smaller, so that the page stays light."""
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    if max(small.size) > side:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    lossless = max(small.size) <= 96
    small.save(buffer, "WEBP", lossless=lossless, quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rows(data: RunData) -> str | None:
    if data.by_row is None or data.methods is None:
        return None
    presets = data.methods[~data.methods["method"].isin(["full", "searched"])].nsmallest(3, "replay_kl")["method"]
    return figures.rows_of_image(data.by_row, ["searched", *presets])


def _drawn_heads(data: RunData) -> dict[str, list[dict[str, Any]]]:
    """The heads with the lowest and the highest semantic score, drawn."""
    if data.heads is None or data.curves is None:
        return {}
    group = int(data.run["model"]["query_heads"]) // int(data.run["model"]["kv_heads"])
    ordered = data.heads.table.sort_values(["semantic_score", "layer", "kv_head"])
    chosen = {"spatial": ordered.head(DRAWN_HEADS), "semantic": ordered.tail(DRAWN_HEADS)[::-1]}
    drawn: dict[str, list[dict[str, Any]]] = {}
    for kind, part in chosen.items():
        drawn[kind] = []
        for row in part.itertuples():
            heads = slice(row.kv_head * group, (row.kv_head + 1) * group)
            mass: torch.Tensor = data.curves["footprint"][row.layer, heads].mean(0)
            label = f"layer {row.layer} head {row.kv_head}"
            drawn[kind].append(
                {
                    "label": label,
                    "figure": _svg(figures.footprint(mass, f"Footprint of {label}")),
                    "score": row.semantic_score,
                    "prefix": row.prefix_mass,
                    "layer": row.layer,
                    "head": row.kv_head * group,
                }
            )
    return drawn


def _lags(data: RunData) -> str | None:
    drawn = _drawn_heads(data)
    if not drawn or data.curves is None:
        return None
    geometry = data.run["model"]["geometry"]
    chosen = [(head["layer"], head["head"], kind) for kind, heads in drawn.items() for head in heads[:2]]
    return figures.lags(data.curves, chosen, int(geometry["cols"]) + int(geometry.get("row_end", 0)))


def _importances(data: RunData) -> list[tuple[str, float]]:
    shares = (data.search or {}).get("importances", {}).get("table", {})
    return sorted(shares.items(), key=lambda pair: -pair[1])[:4]


def _svg(drawing: str | None) -> Markup | None:
    """A figure is made of escaped parts by headscope.reporting.svg."""
    return None if drawing is None else Markup(drawing)
