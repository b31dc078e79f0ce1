"""ModelShape: what a policy must know of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headscope.errors import HeadscopeError, PolicyMismatch
from headscope.facts import FLAG, OBJECT, TEXT, check, optional, or_null, whole
from headscope.geometry import Geometry

PROMPT_ENDS = 2  # tokens of a prompt that a head keeps which drops the rest: the first, and begin of image
# Far above every model there is, and low enough that the bytes of a head fit 64 bits.
_MOST_HEADS = 2**12
_MOST_SIZE = 2**16
MODEL = {
    "name": TEXT,
    "layers": whole(1, _MOST_HEADS),
    "query_heads": whole(1, _MOST_HEADS),
    "kv_heads": whole(1, _MOST_HEADS),
    "head_dim": whole(1, _MOST_SIZE),
    "geometry": OBJECT,  # `Geometry.from_dict` knows its fields
    "architecture": TEXT,
    "weights": or_null(TEXT),
    "folds_prefix": optional(FLAG),
}


@dataclass(frozen=True)
class ModelShape:
    """What a policy must know of a model.

    Attributes:
        name: what the model is called.
        layers: decoder layers.
        query_heads: a layer.
        kv_heads: a layer; what is cached.
        head_dim: numbers of a key or a value.
        geometry: of the image.
        architecture: fingerprint (hex); a policy of another architecture is always refused.
        weights: fingerprint (hex); "" in a policy that was made for any weights of this shape.
        folds_prefix: every query sees all of the prefix alike, for its keys are 0, so the cache keeps one entry for it.
    """

    name: str
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    geometry: Geometry
    architecture: str
    weights: str
    folds_prefix: bool = False

    def prefix_slots(self, prefix: int, whole: bool = True) -> int:
        """Entries that a head's cache keeps for a prefix of so many tokens.

        Args:
            prefix: tokens.
            whole: false for a head that keeps only the first and the last of them.
        """
        return min(prefix, 1 if self.folds_prefix else prefix if whole else PROMPT_ENDS)

    def to_dict(self) -> dict[str, Any]:
        """As policy files and run.json tell it: JSON values by attribute."""
        facts = {**vars(self), "geometry": self.geometry.to_dict()}
        return facts if self.folds_prefix else {name: value for name, value in facts.items() if name != "folds_prefix"}

    def words(self) -> str:
        """`8 layers, 8 KV heads of size 24, 16 x 16 tokens`."""
        folded = ", its prefix kept as one" if self.folds_prefix else ""
        return f"{self.layers} layers, {self.kv_heads} KV heads of size {self.head_dim}, {self.geometry} tokens{folded}"

    def check_alike(self, other: ModelShape, where: str) -> None:
        """Refuse another shape, whose policies say nothing layer by layer and head by head.

        Args:
            other: the shape that is asked for.
            where: whose this one is, such as a file; it begins the sentence.

        Raises:
            PolicyMismatch: with both.
        """
        if self.words() != other.words():
            raise PolicyMismatch(
                f"{where}: is for {self.name} ({self.words()}), expected the shape of {other.name} ({other.words()}); take "
                "policies of one model."
            )

    @classmethod
    def from_dict(cls, facts: dict[str, Any], where: str = "") -> ModelShape:
        """What `to_dict` wrote.

        Args:
            facts: JSON values by attribute, `weights` null for any; others are left alone. They may be a stranger's.
            where: the file, which begins the sentence.

        Raises:
            PolicyMismatch: a fact that is missing or impossible.
        """
        lead = f"{where}: " if where else ""
        check(facts, MODEL, where or "model", PolicyMismatch)
        queries, heads = facts["query_heads"], facts["kv_heads"]
        if queries % heads:
            raise PolicyMismatch(f"{lead}model.query_heads is {queries}, expected a multiple of model.kv_heads, {heads}.")
        kept = {name: facts[name] for name in MODEL if name in facts and name not in ("geometry", "weights")}
        try:
            geometry = Geometry.from_dict(facts["geometry"])
        except HeadscopeError as error:
            raise PolicyMismatch(f"{lead}{error}") from None
        return cls(**kept, weights=facts.get("weights") or "", geometry=geometry)
