"""The report: one HTML file that opens without a network."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.policy import CONTROLS
from headscope.reporting import figures, head_figures, words
from headscope.reporting.data import RunData, read_run
from headscope.reporting.streams import stream_map
from headscope.storage import write_text

SHOWN_AT_ONCE = 8  # pairs of pictures at once; the others are behind a click
MOST_PICTURES = 64  # pairs in the page, so that it stays light
DRAWN_HEADS = 4  # most spatial and most semantic heads


def write_report(run_folder: str | Path) -> Path:
    """Write report.html from the files of a run; a step that has not run is said to be missing.

    Raises:
        DataError: no run folder, or a damaged file in it.
    """
    data = read_run(run_folder)
    folder = files("headscope.reporting")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "percent": words.percent,
        "nats": words.nats,
        "size": words.size,
        "shell": lambda value: shlex.quote(str(value)),
        "python": lambda value: repr(str(value)).replace("'", '"') if "'" not in str(value) else repr(str(value)),
    }
    template = environment.from_string((folder / "report.html.jinja").read_text(encoding="utf-8"))
    style = Markup((folder / "report.css").read_text(encoding="utf-8"))
    return write_text(data.path / "report.html", template.render(style=style, **content(data)))


def content(data: RunData) -> dict[str, Any]:
    """What the template shows."""
    pictures = _pictures(data)
    calibration = len(data.prompts.get("calibration", []))
    return {
        "run": data.run,
        "model": data.run["model"],
        "source": data.run["model"].get("source") or data.run["model"]["name"],
        "headline": words.headline(data),
        "verdict": words.verdict(data),
        "cost": words.cost(data),
        "key_figures": words.key_figures(data),
        "pictures": pictures,
        "pictures_left_out": 0 if data.pictures is None else len(data.pictures) - len(pictures),
        "shown_at_once": SHOWN_AT_ONCE,
        "methods": _methods(data),
        "has_interval": data.methods is not None and "kl_low" in data.methods,
        "unseen": len(data.prompts.get("unseen", [])),
        "searched_pictures": min(calibration, int(data.run.get("settings", {}).get("searched_pictures") or calibration)),
        "losses_figure": _drawn(None if data.methods is None else _both(figures.losses, data.methods)),
        "classes_verdict": "" if data.methods is None or words.quick(data) else words.classes(data.methods),
        "rows_figure": _drawn(_rows(data)),
        "head_map": _drawn(None if data.heads is None else head_figures.head_map(data.heads.table)),
        "scores": _drawn(None if data.heads is None else figures.scores(data.heads.table)),
        "counts": {} if data.heads is None else data.heads.table["class"].value_counts().to_dict(),
        "doubtful": 0 if data.heads is None else int((data.heads.table["confidence"] < head_figures.DOUBT).sum()),
        "doubt": head_figures.DOUBT,
        "scores_stand": head_figures.cell_side(int(data.run["model"]["kv_heads"])) >= head_figures.SPACIOUS,
        "drawn": _drawn_heads(data),
        "lags": _lags(data),
        "margins": _margins(data),
        "agreement": _agreement(data),
        "needs": _needs(data),
        "budgets": _drawn(_budgets(data)),
        "policy": data.policy,
        "history": _drawn(_history(data)),
        "given_up": 0 if data.trials is None else int((data.trials["state"] == "pruned").sum()),
        "failed": 0 if data.trials is None else int((data.trials["state"] == "fail").sum()),
        "best": (data.search or {}).get("best"),
        "stopped": (data.search or {}).get("stopped") or "",
        "dropped": (data.search or {}).get("dropped_strides") or [],
        "importances": _importances(data),
        "facts": _facts(data),
    }


def _both(figure: Callable[..., str], *data: Any) -> str:
    """A figure drawn for a desk and for a telephone; the style sheet shows one."""
    wide, narrow = figure(*data, width=figures.WIDE), figure(*data, width=figures.NARROW)
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def _drawn(drawing: str | None) -> Markup | None:
    """A figure is made of escaped parts by headscope.reporting.svg."""
    return None if drawing is None else Markup(drawing)


def _methods(data: RunData) -> list[dict[str, Any]]:
    """The table's rows, the full cache first, then from the least loss to the most."""
    if data.methods is None:
        return []
    rows: list[dict[str, Any]] = data.methods.sort_values("replay_kl", kind="stable").to_dict("records")
    for row in rows:
        variant = row.get("variant")
        row["variant"] = variant if isinstance(variant, str) else ""
        timed = isinstance(row["ms_per_step"], float) and row["ms_per_step"] > 0  # nan: not timed
        row["ms"] = f"{row['ms_per_step']:.1f}" if timed else "not timed"
    return sorted(rows, key=lambda row: row["method"] != "full")


def _pictures(data: RunData) -> list[dict[str, Any]]:
    if data.pictures is None:
        return []
    shown: list[dict[str, Any]] = []
    for row in data.pictures.to_dict("records"):
        if len(shown) == MOST_PICTURES:
            break
        name = f"{int(row['index']):03d}.png"
        pair = {kind: _inlined(data.path / "pictures" / kind / name) for kind in ("full", "searched")}
        if all(pair.values()):
            shown.append({**pair, "prompt": row["prompt"], "seed": row["seed"], "agreement": row["token_agreement"]})
    return shown


def _inlined(path: Path, side: int = 192) -> str:
    """A picture as a data URL; large ones are made smaller, so that the page stays light. Empty where there is none."""
    if not path.is_file():
        return ""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        raise DataError(f"{path}: not a readable picture ({error}); delete it, and the report is written without it.") from None
    if max(small.size) > side:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=max(small.size) <= 96, quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rows(data: RunData) -> str | None:
    if data.by_row is None or data.methods is None:
        return None
    others = data.methods[~data.methods["method"].isin(["full", "searched", *CONTROLS])].nsmallest(3, "replay_kl")["method"]
    measured = set(data.by_row["method"])
    shown = [name for name in ("searched", *others) if name in measured]
    return _both(figures.rows_of_image, data.by_row, shown) if shown else None


def _drawn_heads(data: RunData) -> dict[str, list[dict[str, Any]]]:
    """The heads with the lowest and the highest semantic score, drawn."""
    if data.heads is None or data.curves is None:
        return {}
    footprints = data.by_kv_head("footprint")
    ordered = data.heads.table.sort_values(["semantic_score", "layer", "kv_head"])
    count = min(DRAWN_HEADS, len(ordered) // 2)  # no head stands on both sides
    drawn: dict[str, list[dict[str, Any]]] = {}
    for kind, part in (("spatial", ordered.head(count)), ("semantic", ordered.tail(count)[::-1])):
        drawn[kind] = []
        for row in part.to_dict("records"):
            layer, head = int(row["layer"]), int(row["kv_head"])
            mass = footprints[layer, head]
            label = f"layer {layer} head {head}"
            drawn[kind].append(
                {
                    "label": label,
                    "figure": _drawn(head_figures.footprint(mass, f"Footprint of {label}")),
                    "words": head_figures.described(mass),
                    "score": row["semantic_score"],
                    "prefix": row.get("prefix_mass"),
                    "layer": layer,
                    "head": head,
                }
            )
    return drawn


def _lags(data: RunData) -> dict[str, Any] | None:
    drawn = _drawn_heads(data)
    if data.curves is None or not any(drawn.values()):
        return None
    geometry = data.run["model"]["geometry"]
    row_length = int(geometry["cols"]) + int(geometry.get("row_end", 0))
    chosen = [(head["layer"], head["head"], kind) for kind, heads in drawn.items() for head in heads[:2]]
    labels = {kind: [f"layer {head['layer']} head {head['head']}" for head in heads[:2]] for kind, heads in drawn.items()}
    figure = _both(head_figures.lags, data.by_kv_head("lag_mass"), chosen, row_length)
    return {"figure": _drawn(figure), "labels": labels}


def _margins(data: RunData) -> str:
    """What the two streams' caches say of the margin columns; empty where they were not traced, or are all alike."""
    geometry = Geometry(**{name: int(value) for name, value in data.run["model"]["geometry"].items()})
    if data.heads is None or data.curves is None or "cache_divergence" not in data.curves or geometry.rows == 1:
        return ""
    found = stream_map(data.curves["cache_divergence"], data.heads.table, geometry)
    return found.sentence() if found.by_class else ""


def _agreement(data: RunData) -> dict[str, Any] | None:
    if data.stability is None or not (data.stability["what"] == "prompts").any():
        return None
    return {"figure": _drawn(figures.agreement(data.stability)), "words": words.agreement(data.stability)}


def _needs(data: RunData) -> list[dict[str, Any]]:
    """A figure and a sentence a budget."""
    if data.needs is None:
        return []
    noted = data.run.get("needs", {})
    return [
        {"figure": _drawn(figures.needs(table)), "words": words.needs(str(keep), noted.get(str(keep)))}
        for keep, table in data.needs.groupby("keep", sort=False)
    ]


def _budgets(data: RunData) -> str | None:
    if data.policy is None:
        return None
    limit = data.run.get("limit", {})
    sequences = int(limit.get("batch", 1)) * int(limit.get("streams", 2))
    return _both(head_figures.budgets, data.policy, str(limit.get("dtype", "float32")), sequences)


def _history(data: RunData) -> str | None:
    if data.trials is None or not data.trials.loc[data.trials["state"] == "complete", "kl"].notna().any():
        return None
    return _both(figures.history, data.trials)


def _importances(data: RunData) -> list[tuple[str, float]]:
    shares = (data.search or {}).get("importances", {}).get("table", {})
    return sorted(shares.items(), key=lambda pair: -pair[1])[:4]


def _facts(data: RunData) -> list[tuple[str, str]]:
    """What the figures belong to: name and value, only what run.json says."""
    run, facts = data.run, []
    model = run["model"]
    weights = f", weights {str(model['weights'])[:16]}" if model.get("weights") else ""
    facts.append(("model", f"{model.get('source') or model['name']}{weights}"))
    if limit := run.get("limit"):
        pictures, streams = int(limit.get("batch", 1)), int(limit.get("streams", 1))
        terms = f"{pictures} picture{'s' * (pictures != 1)} × {streams} stream{'s' * (streams != 1)}"  # noqa: RUF001
        plain = f"; the plain cache takes {int(limit['plain_bytes']):,}" if "plain_bytes" in limit else ""
        of = ", prompt not counted" if limit.get("of") == "image" else ""
        facts.append(
            ("limit", f"{limit.get('text', '')}{of} = {int(limit['bytes']):,} bytes for {terms} in {limit['dtype']}{plain}")
        )
    if "seed" in run:
        facts.append(("seed", str(run["seed"])))
    if run.get("created"):
        facts.append(("begun", f"{run['created']}, headscope {run.get('headscope', 'unknown')}"))
    listed = [(name, run.get(name, {})) for name in ("machine", "versions")]
    facts += [(name, ", ".join(f"{key} {value}" for key, value in table.items())) for name, table in listed if table]
    steps = {name: step for name, step in run.get("steps", {}).items() if isinstance(step, dict) and "seconds" in step}
    if steps:
        told = ", ".join(f"{name} {words.duration(step['seconds'])}" for name, step in steps.items())
        facts.append(("time", f"{told}; {words.duration(sum(step['seconds'] for step in steps.values()))} in all"))
        if peak := max(int(step.get("peak_memory_bytes", 0)) for step in steps.values()):
            facts.append(("memory", f"{words.size(peak)} at most"))
    return facts
