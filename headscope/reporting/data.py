"""Everything a report shows, read from the files of a run folder; what is missing is None and its section says so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.heads import Heads
from headscope.policy import Policy, load_policy
from headscope.run_folder import RunFolder, check_version
from headscope.storage import read_json, read_parquet, read_table
from headscope.tracing import TraceDataset

# What the page reads of each table; more columns are welcome.
COLUMNS = {
    "methods.csv": ("method", "kept_ratio", "replay_kl", "top1", "cache_bytes", "ms_per_step"),
    "kl_by_row.parquet": ("method", "row", "kl"),
    "trials.parquet": ("label", "state", "kl"),
    "images.parquet": ("index", "prompt", "seed", "token_agreement"),
    "stability.csv": ("what", "value", "rand", "rand_low", "rand_high", "rank", "rank_low", "rank_high"),
    "ablation.csv": ("keep", "layer", "kv_head", "class", "semantic_score", "window", "heavy", "both", "heavy_preference"),
}
TEXTS = ("method", "label", "state", "prompt", "what", "value", "keep", "class")  # the others hold numbers
HEAD_COLUMNS = ("layer", "kv_head", "class", "semantic_score", "confidence")


@dataclass(frozen=True)
class RunData:
    """The run folder, read.

    Attributes:
        path: the folder.
        run: run.json.
        prompts: prompts.json.
        heads: the classes.
        curves: of the trace, by name: lag_mass, float32 [layers, query heads, lags], footprint and what else it holds.
        policy: the searched one.
        methods: a row a method that was compared.
        by_row: a row a method and row of the image.
        trials: a row a trial of the search.
        search: search.json.
        images: a row an image that was generated with that policy.
        stability: of `headscope heads --stability`, which a run need not have.
        ablation: of `headscope sensitivity`, likewise.
        other_images: images that stand there and are of another policy; they are not among `images`.
    """

    path: Path
    run: dict[str, Any]
    prompts: dict[str, list[str]]
    heads: Heads | None
    curves: dict[str, torch.Tensor] | None
    policy: Policy | None
    methods: pd.DataFrame | None
    by_row: pd.DataFrame | None
    trials: pd.DataFrame | None
    search: dict[str, Any] | None
    images: pd.DataFrame | None
    stability: pd.DataFrame | None = None
    ablation: pd.DataFrame | None = None
    other_images: int = 0

    @property
    def quick(self) -> bool:
        """Whether the run was a dry run, whose comparison means little."""
        return bool((self.search or {}).get("quick"))

    @property
    def geometry(self) -> Geometry:
        """Of the model's images."""
        return Geometry(**{name: int(value) for name, value in self.run["model"]["geometry"].items()})

    def by_kv_head(self, name: str) -> torch.Tensor:
        """A curve, float32 [layers, KV heads, ...]: the mean over a group of query heads; what overflowed counts as none."""
        assert self.curves is not None
        curves, kv_heads = self.curves[name], int(self.run["model"]["kv_heads"])
        return curves.nan_to_num(0.0).unflatten(1, (kv_heads, curves.shape[1] // kv_heads)).mean(2)


def read_run(path: str | Path) -> RunData:
    """Read a run folder.

    Raises:
        DataError: run.json is missing or damaged, or a file that is there cannot be read or is of another run.
    """
    path = Path(path)
    run, folder = _run(path), RunFolder(path)
    prompts = _dictionary(path / "prompts.json") or {}
    if not all(isinstance(texts, list) for texts in prompts.values()):
        raise DataError(
            f"{path / 'prompts.json'}: holds something that is no list of prompts; start the run anew with `overwrite`."
        )
    trace = _dictionary(folder.trace / "trace.json") or {}
    data = RunData(
        path=path,
        run=run,
        prompts=prompts,
        heads=Heads.load(folder.heads) if folder.heads.is_file() else None,
        curves=TraceDataset(folder.trace).curves() if trace.get("complete") and not _partial(trace) else None,
        policy=load_policy(folder.policy) if folder.policy.is_file() else None,
        methods=_table(path / "methods.csv"),
        by_row=_table(path / "kl_by_row.parquet"),
        trials=_table(folder.search / "trials.parquet"),
        search=_dictionary(folder.search / "search.json"),
        images=_table(folder.images / "images.parquet"),
        stability=_table(folder.stability),
        ablation=_table(folder.ablation),
    )
    _check_shapes(data)
    return _of_this_policy(replace(data, ablation=_with_classes(data)))


def _with_classes(data: RunData) -> pd.DataFrame | None:
    """The ablation beside the classes that stand now: heads may have been classified anew since."""
    if data.ablation is None or data.heads is None:
        return data.ablation
    now = data.heads.table[["layer", "kv_head", "class", "semantic_score"]]
    return data.ablation.drop(columns=["class", "semantic_score"]).merge(now, on=["layer", "kv_head"])


def _of_this_policy(data: RunData) -> RunData:
    """Without images and comparisons of a policy that stood there before: it may have been searched anew since."""
    policy = data.policy
    if policy is None:
        return data
    if policy.results and "unseen" not in policy.results:
        data = replace(data, methods=None, by_row=None)
    if data.images is None or "policy" not in data.images:  # of before the column was written
        return data
    mine = data.images["policy"].astype(str) == policy.fingerprint()
    return replace(data, images=data.images[mine] if mine.any() else None, other_images=int((~mine).sum()))


def _partial(trace: dict[str, Any]) -> bool:
    """Whether a trace holds a choice of layers or heads, from which nothing can be drawn head by head."""
    selection = trace.get("selection")
    return isinstance(selection, dict) and any(selection.get(name) is not None for name in ("layers", "heads"))


def _run(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    if not file.is_file():
        raise DataError(f"{path}: no run.json here, so this is no run folder; make one with `headscope run`.")
    run = read_json(file)
    again = "expected a run.json as `headscope run` writes it"
    if not isinstance(run, dict) or not isinstance(run.get("model"), dict) or not isinstance(run["model"].get("name"), str):
        raise DataError(f"{file}: names no model; {again}.")
    check_version(run, file)
    model = run["model"]
    for name in ("layers", "query_heads", "kv_heads"):
        if not isinstance(model.get(name), int) or model[name] < 1:
            raise DataError(f"{file}: found {name} {model.get(name)!r} of the model, expected a number; {again}.")
    geometry = model.get("geometry")
    if not isinstance(geometry, dict) or not all(isinstance(geometry.get(side), int) for side in ("rows", "cols")):
        raise DataError(f"{file}: the model's geometry lacks rows and cols; {again}.")
    for name in ("settings", "versions", "machine", "steps", "limit"):
        if not isinstance(run.get(name, {}), dict):
            raise DataError(f"{file}: {name} is no table of names and values; {again}.")
    if missing := [name for name in ("bytes", "dtype") if run.get("limit") and name not in run["limit"]]:
        raise DataError(f"{file}: the limit lacks {', '.join(missing)}; {again}.")
    return run


def _check_shapes(data: RunData) -> None:
    """Files of another model in the same folder would be drawn wrong, or not at all."""
    model = data.run["model"]
    expected = (model["layers"], model["kv_heads"])
    if data.heads is not None:
        if missing := [name for name in HEAD_COLUMNS if name not in data.heads.table]:
            raise DataError(f"{data.path / 'heads.safetensors'}: lacks {', '.join(missing)}, which a classification has.")
        found = (int(data.heads.table["layer"].max()) + 1, int(data.heads.table["kv_head"].max()) + 1)
        if found != expected:
            raise DataError(
                f"{data.path / 'heads.safetensors'}: has {found} layers and KV heads, run.json {expected}: "
                "it is of another model."
            )
    if data.policy is not None and (data.policy.shape.layers, data.policy.shape.kv_heads) != expected:
        raise DataError(
            f"{data.path / 'policy.safetensors'}: is for {data.policy.shape.name}, whose layers and KV heads are not those of "
            f"run.json {expected}: it is of another model."
        )
    if data.curves is not None and tuple(data.curves["footprint"].shape[:2]) != (model["layers"], model["query_heads"]):
        raise DataError(f"{data.path / 'trace'}: the curves are of another model than run.json's.")


def _dictionary(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: no table of names and values.")
    return content


def _table(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    wanted = {column: object if column in TEXTS else float for column in COLUMNS[path.name]}
    table = (read_table if path.suffix == ".csv" else read_parquet)(path, wanted)
    return table if len(table) else None
