"""A run folder as the pipeline leaves it, made of drawn numbers: every file a report reads, none that needs a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

from headscope.geometry import Geometry
from headscope.heads import Heads
from headscope.policy import Policy, save_policy
from headscope.policy.shape import ModelShape
from headscope.storage import write_json

PROMPTS = ["red apple, noto style", "blue car, flat style", "<script>alert('x')</script> & \"cat\"", "a very long " * 12]
# Method: replay KL and variant. The KLs differ in every printed digit, so that a test can look for each.
METHODS = {
    "full": (0.0, ""),
    "searched": (0.01234, "table trial"),
    "h2o": (0.02345, "split 0.5, by_row False"),
    "streaming": (0.03456, "anchor 4"),
    "linear_ar": (0.04567, "recent 0.7, anchored True"),
    "pyramid": (0.05678, "slope 0.4, recent 0.75"),
    "ssd": (0.06789, "threshold 0.75, ratio 1.0, by_row True"),
}
SECTIONS = ("heads.safetensors", "trace", "search", "policy.safetensors", "methods.csv", "kl_by_row.parquet", "images")


def make_run(
    path: Path,
    *,
    side: int = 8,
    layers: int = 3,
    kv_heads: int = 4,
    group: int = 2,
    searched: float = METHODS["searched"][0],
    ms: tuple[float, float] = (10.0, 7.5),
    pixels: int = 32,
    prompts: list[str] | None = None,
    seed: int = 0,
) -> Path:
    """Write a run folder: `group` query heads a KV head, side x side tokens; ms: of a step, full and searched."""
    rng = np.random.default_rng(seed)
    prompts = PROMPTS if prompts is None else prompts
    geometry = Geometry(side, side)
    shape = ModelShape(
        name="drawn",
        layers=layers,
        query_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=16,
        geometry=geometry,
        architecture="a" * 64,
        weights="b" * 64,
    )
    _run_json(path, shape, prompts)
    scores = rng.beta(0.7, 0.5, (layers, kv_heads))
    _heads(path, shape, scores, rng)
    _trace(path, shape, scores, rng)
    _policy(path, shape, scores, rng)
    _search(path, searched, rng)
    _methods(path, shape, searched, ms)
    _images(path, prompts, pixels, rng)
    return path


def _run_json(path: Path, shape: ModelShape, prompts: list[str]) -> None:
    model = {**vars(shape), "geometry": shape.geometry.to_dict(), "source": "drawn models/one"}
    run = {
        "headscope": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "model": model,
        "settings": {"seed": 7},
        "versions": {"torch": "2.13.0"},
        "machine": {"device": "cpu", "threads": 1},
        "steps": {"trace": {"seconds": 61.0, "peak_memory_bytes": 2**30}, "heads": {"seconds": 0.5}},
        "limit": {
            "text": "20%",
            "bytes": 4321,
            "batch": 1,
            "streams": 2,
            "dtype": "float32",
            "count_prefix": True,
            "plain_bytes": 21605,
        },
        "seed": 7,
    }
    write_json(path / "run.json", run)
    write_json(path / "prompts.json", {"calibration": ["one", "two", "three", "four"], "unseen": prompts})


def _heads(path: Path, shape: ModelShape, scores: np.ndarray, rng: np.random.Generator) -> None:
    rows = [
        {
            "layer": layer,
            "kv_head": head,
            "class": "semantic" if scores[layer, head] > 0.5 else "spatial",
            "semantic_score": scores[layer, head],
            "confidence": 0.6 if abs(scores[layer, head] - 0.5) < 0.05 else 0.99,
            "stability": 1.0,
            "prefix_mass": float(rng.uniform(0, 0.4)),
        }
        for layer in range(shape.layers)
        for head in range(shape.kv_heads)
    ]
    Heads(pd.DataFrame(rows), {"model": shape.name}).save(path / "heads.safetensors")


def _trace(path: Path, shape: ModelShape, scores: np.ndarray, rng: np.random.Generator) -> None:
    rows, cols = shape.geometry.rows, shape.geometry.cols
    up, across = np.mgrid[0:rows, -(cols - 1) : cols]
    possible = (up > 0) | (across <= 0)
    footprint = np.zeros((shape.layers, shape.query_heads, rows, 2 * cols - 1), np.float32)
    lag = np.zeros((shape.layers, shape.query_heads, shape.geometry.tokens), np.float32)
    for layer in range(shape.layers):
        for head in range(shape.query_heads):
            score = scores[layer, head * shape.kv_heads // shape.query_heads]
            at = (1, 0) if rng.random() < 0.5 else (0, -1)
            near = np.exp(-3 * ((up - at[0]) ** 2 + (across - at[1]) ** 2))
            far = np.exp(-0.1 * up) * (1 + rng.random(up.shape))
            mass = ((1 - score) * near + 0.02 * score * far) * possible
            footprint[layer, head] = mass / mass.sum()
            places = up * cols - across  # tokens back
            for value, back in zip(footprint[layer, head].ravel(), places.ravel(), strict=True):
                if 0 <= back < lag.shape[-1]:
                    lag[layer, head, back] += value
    curves = {"footprint": torch.from_numpy(footprint), "lag_mass": torch.from_numpy(lag)}
    (path / "trace").mkdir()
    save_file(curves, path / "trace" / "curves.safetensors")
    meta = {
        **dict.fromkeys(("architecture", "weights", "images"), "x"),
        "model": shape.name,
        "geometry": shape.geometry.to_dict(),
        "cache": "full",
        "complete": True,
        "layers": shape.layers,
        "query_heads": shape.query_heads,
        "kv_heads": shape.kv_heads,
        "samples": 1,
        "guidance": 5.0,
        "definitions": 1,
        "selection": {},
        "streams": ["conditional"],
        "statistics": [],
    }
    write_json(path / "trace" / "trace.json", meta)


def _policy(path: Path, shape: ModelShape, scores: np.ndarray, rng: np.random.Generator) -> None:
    tokens = shape.geometry.tokens
    heavy = torch.from_numpy((0.3 * tokens * scores * (scores > 0.4)).astype(np.int32))
    window = torch.from_numpy((0.05 * tokens + 0.2 * tokens * rng.random(scores.shape)).astype(np.int32))
    policy = Policy.uniform(
        shape,
        window=window,
        heavy=heavy,
        anchor=2,
        stride=shape.geometry.cols,
        prefix=11,
        semantic_score=torch.from_numpy(scores).float(),
    )
    save_policy(policy, path / "policy.safetensors")


def _search(path: Path, best: float, rng: np.random.Generator) -> None:
    labels = [f"preset {name}" for name in METHODS if name not in ("full", "searched")]
    labels += ["classes trial"] * 10 + [f"solver stride {stride} decay 1" for stride in (1, 8, 16)] + ["table trial"] * 30
    kl: list[float | None] = [METHODS[label.split()[1]][0] for label in labels if label.startswith("preset")]
    falling = np.geomspace(0.2, best * 1.1, len(labels) - len(kl))
    kl += [float(value) for value in falling * rng.uniform(1, 1.4, len(falling))]
    kl[-1], kl[8] = best, None
    table = pd.DataFrame({"phase": "table", "number": range(len(kl)), "label": labels, "kl": kl})
    table["state"] = np.where(table["kl"].isna(), "fail", "complete")
    (path / "search").mkdir()
    table.to_parquet(path / "search" / "trials.parquet", index=False)
    importances = {"table": {"heavy": 0.55, "semantic": 0.3, "stride": 0.05, "early": 0.03, "late": 0.02}}
    summary = {"best": {"label": "table trial", "kl": best}, "importances": importances, "stopped": "", "dropped_strides": [32]}
    summary |= {"images": 3, "quick": False}
    write_json(path / "search" / "search.json", summary)


def _methods(path: Path, shape: ModelShape, searched: float, ms: tuple[float, float]) -> None:
    values = {name: (searched if name == "searched" else kl, variant) for name, (kl, variant) in METHODS.items()}
    rows = [
        {
            "method": name,
            "budget": "100%" if name == "full" else "20%",
            "kept_ratio": 1.0 if name == "full" else 0.1998,
            "replay_kl": kl,
            "top1": 1 - 2 * kl,
            "cache_bytes": 6_561_792 if name == "full" else 1_311_488,
            "ms_per_step": ms[0] if name == "full" else ms[1],
            "kl_low": kl * 0.7,
            "kl_high": kl * 1.3,
            "variant": variant,
            "difference_low": kl - searched - 0.001,
            "difference_high": kl - searched + 0.001,
        }
        for name, (kl, variant) in values.items()
    ]
    pd.DataFrame(rows).to_csv(path / "methods.csv", index=False)
    by_row = [
        {"method": name, "row": row, "kl": kl * 2 * row / max(shape.geometry.rows - 1, 1)}
        for name, (kl, _) in values.items()
        for row in range(shape.geometry.rows)
    ]
    pd.DataFrame(by_row).to_parquet(path / "kl_by_row.parquet", index=False)


def _images(path: Path, prompts: list[str], pixels: int, rng: np.random.Generator) -> None:
    for kind in ("full", "searched"):
        (path / "images" / kind).mkdir(parents=True)
        for number in range(len(prompts)):
            hue = rng.integers(40, 230, 3)
            y, x = np.mgrid[0:pixels, 0:pixels] / pixels - 0.5
            disc = ((x**2 + y**2) < 0.12)[..., None]
            image = np.where(disc, hue, 245) + rng.integers(-6, 6, (pixels, pixels, 3))
            shown = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            shown.save(path / "images" / kind / f"{number:03d}.png", compress_level=1)  # noise hardly shrinks
    count = len(prompts)
    agreement = rng.uniform(0.4, 0.9, count)
    table = pd.DataFrame({"index": range(count), "prompt": prompts, "seed": range(count), "token_agreement": agreement})
    table.to_parquet(path / "images" / "images.parquet", index=False)
