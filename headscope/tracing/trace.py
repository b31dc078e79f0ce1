"""`trace`: recorded images in, a trace dataset out."""

from __future__ import annotations

import hashlib
import json
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from headscope.errors import DataError
from headscope.facts import shown
from headscope.models import ImageModel, expect_model
from headscope.progress import Progress, of_task
from headscope.reading import is_there
from headscope.samples import Samples
from headscope.storage import write_json
from headscope.tracing import (
    curves as _curves,  # noqa: F401 - registers the curves
    statistics as _statistics,  # noqa: F401 - registers the statistics
)
from headscope.tracing.accumulated import Accumulated
from headscope.tracing.catalogue import DEFINITIONS, chosen_curves, chosen_statistics
from headscope.tracing.dataset import WHOLE_IMAGE, TraceDataset, compact
from headscope.tracing.files import BY_TOKEN, read_meta
from headscope.tracing.hooks import Layer, streams_of, watch, watch_live
from headscope.tracing.live import Live
from headscope.tracing.parts import Parts
from headscope.tracing.selection import Selection

TOGETHER = 4  # images in one pass unless told; one to eight took 6 to 9 s of one core for 16 images of 256 tokens


def trace(
    model: ImageModel,
    samples: Samples,
    out: str | Path,
    *,
    selection: Selection | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    live: Live | None = None,
) -> TraceDataset:
    """Trace heads over recorded images, into the folder `out`.

    Queries are the image tokens that the model is fed, t = 0 .. N - 2: they predict tokens 1 .. N - 1. The last prefix
    position, which predicts token 0, is no query, and neither is the rest of the prefix. Keys are the prefix without
    its padding, the image tokens before the query, and the query itself. Without guidance (scale 1) there is one stream.

    Args:
        model: the model that generated the images.
        samples: recorded images.
        out: folder of the trace.
        selection: layers, heads, rows, streams, sampling, bands and the full set; everything of the default set unless given.
        batch_size: images in one pass, None for TOGETHER.
        progress: told of images, see `headscope.progress`.
        resume: go on with a stopped trace, or return a finished one; what is not as it was written is named in a warning
            and traced again. Other files may then lie in `out`, and stay there.
        live: attention as the steps of generating see it, not that of a parallel pass.

    Raises:
        ModelError: no image model, but a network, say.
        DataError: `out` holds a trace already and `resume` is False, or one of another model or other images, or
            files that are no trace; no images; a selection of what the model does not have.
    """
    expect_model(model, "trace")
    out, selection = Path(out), selection or Selection()
    batch_size = TOGETHER if batch_size is None else batch_size
    if batch_size < 1:
        raise DataError(f"batch_size {batch_size}: expected at least one image in a pass.")
    if len(samples) == 0:
        raise DataError("There is no image to trace: give at least one prompt.")
    if samples.weights != model.shape.weights:
        raise DataError(f"The images are of other weights than {model.name} has: generate them with this model.")
    _check_tokens(model, samples)
    selection.check(model.shape.layers, model.shape.query_heads, model.shape.geometry.rows)
    if live is not None and selection.streams != Selection().streams:
        raise DataError("A live trace sees the streams that are generated: leave the choice of streams to parallel traces.")
    streams = streams_of(samples.guidance, selection)
    meta = _meta(model, samples, selection, streams, "full" if live is None else live.cache)
    _claim(out, meta, resume)
    if read_meta(out)["complete"]:
        finished = TraceDataset(out)
        if (damage := finished.damage()) is None:
            return finished
        warnings.warn(f"{damage} It is traced again.", stacklevel=2)
        write_json(out / "trace.json", meta)
    samples.save(out / "samples.parquet")
    parts = Parts(out, len(samples))
    todo = parts.missing()
    for damaged in parts.damaged:
        warnings.warn(f"{damaged}: not as it was written, traced again", stacklevel=2)
    tell = of_task(progress, "tracing", len(samples))
    for start in range(0, len(todo), batch_size):
        numbers = todo[start : start + batch_size]
        writer = _Writer(model, samples.select(numbers), numbers, selection, streams)
        if live is None:
            watch(model, writer.samples, selection, each=writer.take)
        else:
            with watch_live(model.decoder, model.shape.geometry, selection, streams, writer.prefix) as seen:
                live.play(writer.samples)
            for number, layer in seen.layers.items():
                writer.take(number, layer)
        parts.write(*writer.finished())
        tell(len(samples) - len(todo) + start + len(numbers), len(samples))
    compact(out, parts)
    return TraceDataset(out)


def _check_tokens(model: ImageModel, samples: Samples) -> None:
    """Raises DataError for images whose tokens are no codes of the model, or too few or many for its image."""
    expected, found = (len(samples), model.shape.geometry.tokens), tuple(samples.tokens.shape)
    if found != expected:
        raise DataError(f"The images have tokens {found}, expected {expected} for {model.name}.")
    if (most := int(samples.tokens.max())) >= model.vocabulary:
        raise DataError(f"The images have the code {most}, expected 0 to {model.vocabulary - 1} for {model.name}.")


class _Writer:
    """Turns layers, as they come, into the tables and curves of a batch of images."""

    def __init__(
        self, model: ImageModel, samples: Samples, numbers: list[int], selection: Selection, streams: tuple[str, ...]
    ) -> None:
        self.samples, self.numbers, self.selection, self.streams = samples, numbers, selection, streams
        self._statistics, self._kinds = chosen_statistics(selection.full), chosen_curves(selection.full)
        self._tables: dict[int, list[pd.DataFrame]] = {number: [] for number in numbers}
        self._curves: dict[int, list[dict[str, torch.Tensor]]] = {number: [] for number in numbers}
        prefix = model.tokenize(samples.prompts)
        self.prefix = int(prefix.ids.shape[1])
        self._real = prefix.mask.bool().cpu()
        self._pieces = [model.token_strings(row[real]) for row, real in zip(prefix.ids.cpu(), self._real, strict=True)]
        heads = range(model.shape.query_heads)
        self._heads = list(heads if selection.heads is None else selection.heads)

    def take(self, number: int, layer: Layer) -> None:
        """One layer of the batch."""
        whole = layer.whole
        bands = [(WHOLE_IMAGE, whole)]
        if self.selection.band_count:
            bands += list(enumerate(layer.bands))
        for band, sums in bands:
            values = {name: one(sums).float().cpu() for name, one in self._statistics.items()}
            for s, stream in enumerate(self.streams):
                for place, image in enumerate(self.numbers):
                    row = s * len(self.numbers) + place
                    table = self._rows(number, band, stream, image, {name: v[row] for name, v in values.items()})
                    if self.selection.full and layer.attention_divergence is not None:
                        table["attention_divergence"] = layer.attention_divergence[place].cpu().numpy()
                    self._add_prefix(table, sums, row, place, first=band == WHOLE_IMAGE and s == 0)
                    self._tables[image].append(table)
        curves = {name: one(whole).float().cpu() for name, one in self._kinds.items() if name != "window_coverage"}
        for place, image in enumerate(self.numbers):
            mine = {name: value[place] for name, value in curves.items()}
            if layer.cache_divergence is not None:
                mine["cache_divergence"] = layer.cache_divergence[place].float().cpu()
            self._curves[image].append(mine)

    def finished(self) -> tuple[dict[int, pd.DataFrame], dict[int, dict[str, torch.Tensor]]]:
        """The tables and the curves of each image."""
        tables = {image: pd.concat(parts, ignore_index=True) for image, parts in self._tables.items()}
        curves = {
            image: {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}
            for image, layers in self._curves.items()
        }
        return tables, curves

    def _rows(self, layer: int, band: int, stream: str, image: int, values: dict[str, torch.Tensor]) -> pd.DataFrame:
        keys: dict[str, Any] = {"sample": image, "stream": stream, "layer": layer, "head": self._heads, "band": band}
        return pd.DataFrame(keys | {name: value.numpy() for name, value in values.items()})

    def _add_prefix(self, table: pd.DataFrame, sums: Accumulated, row: int, place: int, *, first: bool) -> None:
        """Attention to each token of the prompt, in the first stream's rows."""
        masses: list[Any] = [None] * len(table)
        if first:
            to_prefix = (sums.columns[row, :, : sums.prefix] / sums.count).cpu()[:, self._real[place]]
            masses = list(to_prefix.numpy())
        table[BY_TOKEN] = pd.Series(masses, dtype=object)
        pieces: list[Any] = [None] * len(table)
        if first:
            pieces[0] = self._pieces[place]
        table["pieces"] = pd.Series(pieces, dtype=object)


def _meta(model: ImageModel, samples: Samples, selection: Selection, streams: tuple[str, ...], cache: str) -> dict[str, Any]:
    shape = model.shape
    divergence = ["attention_divergence"] if selection.full and len(streams) == 2 and cache == "full" else []
    return {
        "model": shape.name,
        "architecture": shape.architecture,
        "weights": shape.weights,
        "geometry": shape.geometry.to_dict(),
        "layers": shape.layers,
        "query_heads": shape.query_heads,
        "kv_heads": shape.kv_heads,
        "samples": len(samples),
        "guidance": samples.guidance,
        "images": images_hash(samples),
        "definitions": DEFINITIONS,
        "selection": selection.to_dict(),
        "streams": list(streams),
        "statistics": [*chosen_statistics(selection.full), *divergence],
        "cache": cache,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "complete": False,
    }


def images_hash(samples: Samples) -> str:
    """Of the tokens, prompts and guidance."""
    images = hashlib.sha256(samples.tokens.contiguous().numpy().tobytes())
    images.update(json.dumps([samples.prompts, samples.guidance]).encode())
    return images.hexdigest()


def _difference(before: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What another selection had, in words."""
    other = [name for name, value in wanted.items() if before.get(name) != value]
    return " and ".join(f"{name} {_choice(before.get(name))}, not {_choice(wanted[name])}" for name in other)


def _choice(value: Any) -> str:
    return shown(value) if value else "all"


def _claim(out: Path, meta: dict[str, Any], resume: bool) -> None:
    """Write trace.json, or check that the one that is there is of this trace."""
    file = out / "trace.json"
    if not is_there(file):
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: is a file, expected a folder to make; choose another one for `out`.")
        try:
            # What starts with a dot is the temporary file of a run that was killed at once.
            others = sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) if out.exists() else []
        except PermissionError as error:
            raise DataError(
                f"{out}: what it holds is not readable by this user ({error.strerror}); choose another one."
            ) from None
        if others and not resume:
            raise DataError(f"{out}: holds other files ({others[0]}) and no trace; choose another folder for `out`.")
        write_json(file, meta)
        return
    found = read_meta(out)
    for name in ("architecture", "weights", "images", "definitions", "selection", "statistics", "cache"):
        if found.get(name) != meta[name]:
            if name == "selection":
                raise DataError(
                    f"{out}: holds a trace of {_difference(found[name], meta[name])}; choose another folder for `out`."
                )
            raise DataError(
                f"{out}: holds a trace of other {name} ({shown(found[name], 40)}, now {shown(meta[name], 40)}); choose "
                "another folder for `out`."
            )
    if not resume:
        raise DataError(f"{out}: holds a trace already; go on with `resume` or choose another folder for `out`.")
