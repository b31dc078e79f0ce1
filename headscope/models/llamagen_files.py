"""A folder with a LlamaGen: which file is what, and the sizes of the network, most of them by the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headscope.errors import ModelError
from headscope.facts import FLAG, check, optional, or_null, shown, whole
from headscope.models.checkpoint import Checkpoint, Shapes, weight_files
from headscope.models.loading import read_object, some
from headscope.models.ranges import GUIDANCE, TEMPERATURE

SIDE_FILE = "llamagen.json"
# Heads by width: the shapes of B, L, XL, XXL, 1B, 3B, XXXL and 7B do not tell them.
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}
FEATURE_FILE = "features.safetensors"  # of captions
ENCODER = "flan-t5-xl"  # a folder in the model's, as transformers saves it
PIXELS = 16  # of a token's side
# Rows of tokens that the published models were trained on, by what they are asked for.
TRAINED = {"class": (16, 24), "text": (16, 32)}
SUFFIX = {"class": "c2i", "text": "t2i"}  # as the published files name the two
_SETTINGS = {
    "heads": optional(whole(1, 1024)),
    "grid": optional(whole(1, 1024)),
    "guidance": GUIDANCE,
    "temperature": TEMPERATURE,
    "top_k": or_null(whole(1)),
    "cfg_interval": optional(whole(-1)),
    "fold_prefix": optional(FLAG),
}
_TRANSFORMER, _VQ = "tok_embeddings.weight", "quantize.embedding.weight"  # a tensor that only these have
_SIZE = re.compile(r"(?<!\d)(256|384|512)(?!\d)")
_PUBLISHED = re.compile(r"[ct]2i_.*\.pt")
_FUSED = re.compile(r"layers\.\d+\.attention\.wqkv\.weight")


@dataclass(frozen=True)
class Sizes:
    """What makes the network.

    Attributes:
        kind: what it is asked for, "class" or "text".
        layers: of the decoder.
        heads: query heads a layer.
        kv_heads: a layer.
        width: of the decoder.
        inner: width of its feed-forward part.
        codes: image codes.
        side: rows and columns of the image's tokens.
        prefix: tokens before the image.
        classes: that it knows, 0 for text.
        features: width of a caption's features, 0 for classes.
    """

    kind: str
    layers: int
    heads: int
    kv_heads: int
    width: int
    inner: int
    codes: int
    side: int
    prefix: int
    classes: int = 0
    features: int = 0

    @property
    def head_dim(self) -> int:
        """Numbers of a head."""
        return self.width // self.heads


class LlamaGenCheckpoint(Checkpoint):
    """The transformer's weights, with wqkv as three matrices, named `...wqkv.weight[q]`, `[k]` and `[v]`.

    Rows of the first two are in the order of transformers: LlamaGen turns neighbours, (0, 1), (2, 3) ... of a head of D
    numbers, transformers a number of the first half and one of the second, so the first of all pairs come first.

    Args:
        folder: where it lies.
        files: that hold it.
        sizes: of heads.
    """

    def __init__(self, folder: Path, files: list[Path], sizes: Sizes) -> None:
        super().__init__(folder, files)
        self.sizes = sizes
        for name in [name for name in self.shapes if _FUSED.fullmatch(name)]:
            columns = self.shapes.pop(name)[1:]
            self.shapes |= {f"{name}[{part}]": (rows, *columns) for part, rows in self._rows().items()}

    def tensors(self, wanted: Container[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Checkpoint.tensors`."""
        fused = {name.partition("[")[0] for name in self.shapes if name in wanted}
        for name, tensor in super().tensors(fused):
            if not _FUSED.fullmatch(name):
                yield name, tensor
                continue
            for part, rows in zip("qkv", tensor.split(list(self._rows().values())), strict=True):
                yield f"{name}[{part}]", rows if part == "v" else _halves(rows, self.sizes.head_dim)

    def _rows(self) -> dict[str, int]:
        sizes = self.sizes
        return {part: heads * sizes.head_dim for part, heads in zip("qkv", (sizes.heads, *[sizes.kv_heads] * 2), strict=True)}


def _halves(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows [H * D, C] of heads whose numbers stand in pairs -> with the first of every pair before the second of every pair."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def is_llamagen_folder(folder: Path) -> bool:
    """Whether a folder says that it holds a LlamaGen, has checkpoints by the names of LlamaGen's, or any and no config.json."""
    if (folder / SIDE_FILE).is_file() or any(_PUBLISHED.fullmatch(file.name) for file in folder.glob("*.pt")):
        return True
    return not (folder / "config.json").is_file() and any(folder.glob("*.pt"))


def read_settings(folder: Path) -> dict[str, Any]:
    """llamagen.json, which gives what shapes and names do not; nothing where there is none.

    Raises:
        ModelError: it can't be read, names what is not known, or another kind of value.
    """
    file = folder / SIDE_FILE
    if not file.is_file():
        return {}
    settings = check(read_object(file), _SETTINGS, str(file), ModelError)
    if unknown := sorted(set(settings) - set(_SETTINGS)):
        raise ModelError(f"{file}: {shown(unknown[0])}: no such setting; known are {', '.join(_SETTINGS)}.")
    return settings


def feature_file(folder: Path, sizes: Sizes, named: str = "") -> Path | None:
    """The file of captions' features: the one that is named, or features.safetensors where it is there.

    Raises:
        ModelError: one is named for a model that takes classes.
    """
    if named and not sizes.features:
        raise ModelError(f"{folder}: takes classes and reads no captions: leave the features {named} out.")
    file = Path(named) if named else folder / FEATURE_FILE
    return file if named or file.is_file() else None


def find_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of the transformer, and those of VQ models, told apart by their tensors.

    Raises:
        ModelError: no transformer, several, or a part of one is missing.
    """
    found: dict[str, list[Path]] = {_TRANSFORMER: [], _VQ: []}
    for file in sorted([*folder.glob("*.pt"), *folder.glob("vq*.safetensors")]):
        shapes = Checkpoint(folder, [file]).shapes
        for tensor in found:
            if tensor in shapes:
                found[tensor].append(file)
    if any(folder.glob("model*.safetensors")):
        found[_TRANSFORMER] += weight_files(folder)
    elif len(found[_TRANSFORMER]) > 1:
        names = some([file.name for file in found[_TRANSFORMER]], "files")
        raise ModelError(f"{folder}: holds several transformers, {names}: give each a folder of its own.")
    if not found[_TRANSFORMER]:
        raise ModelError(
            f"{folder}: has no transformer of LlamaGen's (looked for {_TRANSFORMER} in *.pt and model.safetensors): copy its "
            "checkpoint."
        )
    return found[_TRANSFORMER], found[_VQ]


def sizes_of(folder: Path, files: list[Path], settings: dict[str, Any]) -> Sizes:
    """Sizes by the shapes of the transformer's tensors; heads and grid by `settings`, or as published.

    Raises:
        ModelError: a tensor that tells a size is missing, or a size is not known or was not trained.
    """
    shapes = Checkpoint(folder, files).shapes
    width, codes = _shape(folder, shapes, _TRANSFORMER)[1], _shape(folder, shapes, "output.weight")[0]
    published = "heads" not in settings
    heads = settings.get("heads") or HEADS.get(width)
    if heads is None:
        raise ModelError(
            f"{folder}: a width of {width} is none of LlamaGen's ({', '.join(map(str, HEADS))}), and shapes do not tell the "
            f'number of heads: write it into {SIDE_FILE}, such as {{"heads": 8, "grid": 16}}.'
        )
    if width % heads or width // heads % 4:
        raise ModelError(
            f"{folder}: {heads} heads of a width of {width}: expected a multiple of 4 numbers a head, for half of its pairs "
            f"turn by the row; set the number right in {SIDE_FILE}."
        )
    kind, prefix, classes, features = _asked(folder, shapes)
    return Sizes(
        kind=kind,
        layers=sum(name.endswith(".attention_norm.weight") for name in shapes),
        heads=heads,
        kv_heads=(_shape(folder, shapes, "layers.0.attention.wqkv.weight")[0] // (width // heads) - heads) // 2,
        width=width,
        inner=_shape(folder, shapes, "layers.0.feed_forward.w1.weight")[0],
        codes=codes,
        side=_side(folder, files[0].stem, settings.get("grid"), kind, published),
        prefix=prefix,
        classes=classes,
        features=features,
    )


def _shape(folder: Path, shapes: Shapes, name: str) -> tuple[int, ...]:
    """Of a matrix."""
    if len(found := shapes.get(name, ())) != 2:
        raise ModelError(f"{folder}: lacks the matrix {name}, which a size is told by: copy the whole checkpoint.")
    return found


def _asked(folder: Path, shapes: Shapes) -> tuple[str, int, int, int]:
    """What it is asked for: kind, tokens of the prefix, classes and width of a caption's features."""
    table, caption = "cls_embedding.embedding_table.weight", "cls_embedding.uncond_embedding"
    if (table in shapes) == (caption in shapes):
        raise ModelError(
            f"{folder}: has {'both' if table in shapes else 'neither'} of {table} and {caption}, expected one: the first is a "
            "model's that takes classes, the other one's that takes captions."
        )
    if table in shapes:
        return "class", 1, _shape(folder, shapes, table)[0] - 1, 0
    tokens, features = _shape(folder, shapes, caption)
    return "text", tokens, 0, features


def _side(folder: Path, stem: str, stated: int | None, kind: str, published: bool) -> int:
    """Rows and columns of the grid, by llamagen.json or the size in a file's name."""
    found = _SIZE.search(stem)
    named = int(found[1]) // PIXELS if found else None
    if stated is not None and named is not None and stated != named:
        raise ModelError(
            f"{folder}: {stem} was trained on images of {named * PIXELS} pixels ({named} x {named} tokens), {SIDE_FILE} asks "
            f"for {stated} x {stated}, which come out as noise: take the grid out of {SIDE_FILE}."
        )
    side = stated or named
    if side is None:
        raise ModelError(
            f"{folder}: neither the name {stem} (256, 384 or 512) nor {SIDE_FILE} says how large images are: write "
            f'{{"grid": 24}} into {SIDE_FILE} for 24 x 24 tokens, 384 pixels.'
        )
    if published and side not in TRAINED[kind]:
        known = " and ".join(f"{one * PIXELS} ({one} x {one})" for one in TRAINED[kind])
        raise ModelError(
            f"{folder}: {side} x {side} tokens, but LlamaGen's {kind}-conditional models were trained on images of {known} "
            f'pixels and give noise at other sizes; for one of your own write its "heads" into {SIDE_FILE} too.'
        )
    return side
