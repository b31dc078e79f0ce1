"""Tables of a score kind: a weight for every head, row of the grid that is being generated, and place of a token.

Weights are written as the product of two small matrices of 8 bits, in powers of two:

    weight[row, place] = 2 ** sum over k of scale[k] * rows[k, row] * places[k, place]

Example, rank 1: scale .001, rows 100 in row 3, places 50 at place 7: a weight of 2 ** (.001 * 100 * 50) = 32. Weights are
kept within 2 ** -20 and 2 ** 20. All images share a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headscope.errors import PolicyMismatch
from headscope.facts import clipped
from headscope.policy.shape import ModelShape

PREFIX = "score."
MOST = 20.0  # of the exponent
MOST_RANK = 64
# By name in a policy file: the type, and what its sizes are.
PARTS = {
    "heads": ("I32", "heads"),
    "scale": ("F16", "heads, rank"),
    "rows": ("I8", "heads, rank, rows"),
    "places": ("I8", "heads, rank, tokens"),
}
_CODES = {torch.int32: "I32", torch.float16: "F16", torch.int8: "I8"}
DTYPES = {code: dtype for dtype, code in _CODES.items()}


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Weights of some heads.

    Attributes:
        heads: int32 [n], layer * kv_heads + head, rising.
        scale: float16 [n, rank].
        rows: int8 [n, rank, rows of the grid].
        places: int8 [n, rank, image tokens].
    """

    heads: torch.Tensor
    scale: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor

    @classmethod
    def written(cls, heads: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> ScoreTable:
        """Tables whose weights are 2 ** (the product of two matrices), each term in 8 bits of its largest number.

        Args:
            heads: int32 [n], rising.
            rows: [n, rank, rows of the grid].
            places: [n, rank, image tokens].
        """
        steps = [part.abs().amax(2).clamp(min=1e-6) / 127 for part in (rows, places)]
        codes = [(part / step[..., None]).round().to(torch.int8) for part, step in zip((rows, places), steps, strict=True)]
        return cls(heads, (steps[0] * steps[1]).half(), *codes)

    @property
    def nbytes(self) -> int:
        """Of all tensors; once, however many images there are."""
        return sum(part.numel() * part.element_size() for part in self.tensors().values())

    def tensors(self) -> dict[str, torch.Tensor]:
        """As a policy file has them, by name."""
        return {f"{PREFIX}{name}": getattr(self, name).contiguous() for name in PARTS}

    def check(self, shape: ModelShape) -> None:
        """Refuse tables of another model or grid.

        Args:
            shape: of the policy.

        Raises:
            PolicyMismatch: a tensor of another type or size, a head that there is not, or a scale that is no number.
        """
        check_headers({name: (_CODES.get(part.dtype, ""), tuple(part.shape)) for name, part in self.tensors().items()}, shape)
        known = shape.layers * shape.kv_heads
        rising = bool((self.heads[1:] > self.heads[:-1]).all())
        if not (rising and int(self.heads[0]) >= 0 and int(self.heads[-1]) < known):
            raise PolicyMismatch(f"{PREFIX}heads: expected rising numbers from 0 to {known - 1}, the KV heads of {shape.name}.")
        if not bool(self.scale.isfinite().all()):
            raise PolicyMismatch(f"{PREFIX}scale: holds a number that is not finite; make the tables anew.")

    def of(self, heads: Sequence[int] | torch.Tensor) -> ScoreTable:
        """The tables of some heads, in this order, each of which has one.

        Args:
            heads: layer * kv_heads + head.
        """
        places = torch.searchsorted(self.heads, torch.as_tensor(heads, dtype=torch.int32))
        return ScoreTable(*(getattr(self, name)[places] for name in PARTS))

    def has(self, heads: torch.Tensor) -> torch.Tensor:
        """Bool: which heads have a table, of int32 numbers of heads."""
        return torch.isin(heads, self.heads)

    def to(self, device: torch.device) -> ScoreTable:
        """The same on a device."""
        return ScoreTable(*(getattr(self, name).to(device) for name in PARTS))

    def row_of(self, t: int) -> int:
        """The row of the grid, row end included, in which an image token is."""
        return t * self.rows.shape[2] // self.places.shape[2]

    def weights(self, row: int) -> torch.Tensor:
        """float32 [n, tokens]: what places are worth while a row of the grid is generated.

        Args:
            row: its number, from 0.
        """
        factor = self.scale.float() * self.rows[:, :, row].float()
        return torch.einsum("nk,nkp->np", factor, self.places.float()).clamp_(-MOST, MOST).exp2_()

    def digest(self) -> bytes:
        """sha256 of all of it."""
        found = hashlib.sha256()
        for part in self.tensors().values():
            found.update(str(tuple(part.shape)).encode() + part.cpu().numpy().tobytes())
        return found.digest()


def check_headers(found: Mapping[str, tuple[str, tuple[int, ...]]], shape: ModelShape) -> None:
    """Refuse tables whose tensors are not of the types and sizes that those of a model have.

    Args:
        found: type, as safetensors calls it, and sizes of each, by name in a policy file.
        shape: of the policy.

    Raises:
        PolicyMismatch: names the first one.
    """
    scale = found[f"{PREFIX}scale"][1]
    heads, rank = scale if len(scale) == 2 else (0, 0)
    most = {"heads": shape.layers * shape.kv_heads, "rank": MOST_RANK}
    grid = {"heads": heads, "rank": rank, "rows": shape.geometry.rows, "tokens": shape.geometry.tokens}
    for name, (code, sizes) in PARTS.items():
        kind, size = found[f"{PREFIX}{name}"]
        expected = tuple(grid[each] for each in sizes.split(", "))
        if kind != code or size != expected or not all(0 < grid[each] <= limit for each, limit in most.items()):
            raise PolicyMismatch(
                f"{PREFIX}{name}: is {kind or 'no such type'} {clipped(str(size))}, expected {code} ({sizes}) of "
                f"{shape.geometry.rows} rows, {shape.geometry.tokens} tokens, at most {most['heads']} heads and rank "
                f"{MOST_RANK} for {shape.name}; make the tables for this model."
            )


def joined(first: ScoreTable | None, second: ScoreTable | None, from_second: torch.Tensor) -> ScoreTable | None:
    """Tables of a policy whose heads come from two.

    Args:
        first: of one policy, or None.
        second: of the other, or None.
        from_second: bool [layers, kv_heads], heads that come from the other.

    Returns:
        None where no head has a table. The lower rank is filled with zeros.
    """
    chosen = from_second.flatten()
    parts = []
    for table, wanted in ((first, ~chosen), (second, chosen)):
        if table is not None:
            kept = table.heads[wanted[table.heads.long()]]
            parts += [table.of(kept)] if len(kept) else []
    if not parts:
        return None
    rank = max(part.scale.shape[1] for part in parts)
    every = {name: torch.cat([_ranked(getattr(part, name), name, rank) for part in parts]) for name in PARTS}
    order = every["heads"].argsort()
    return ScoreTable(**{name: part[order] for name, part in every.items()})


def _ranked(part: torch.Tensor, name: str, rank: int) -> torch.Tensor:
    """A part of a table with more terms, which are 0."""
    if name == "heads" or part.shape[1] == rank:
        return part
    return torch.cat([part, part.new_zeros(len(part), rank - part.shape[1], *part.shape[2:])], 1)


def table_of(parts: Mapping[str, torch.Tensor]) -> ScoreTable:
    """A table from its tensors as `ScoreTable.tensors` gives them, by name."""
    return ScoreTable(**{name: parts[f"{PREFIX}{name}"] for name in PARTS})
