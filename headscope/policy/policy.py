"""Policy: for each layer and KV head, what its cache keeps.

Long, because every number of a policy is said where it is a field and where it is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from headscope.errors import HeadscopeError, PolicyMismatch
from headscope.policy.bucket import Bucket
from headscope.policy.files import check_fits, read_file, write_file
from headscope.policy.footprint import CacheSpec, Limit, image_slots
from headscope.policy.metadata import PolicyFile
from headscope.policy.rule import Rule
from headscope.policy.score_table import ScoreTable
from headscope.policy.scores import BUILT_IN, RECEIVED, SCORES
from headscope.policy.shape import PROMPT_ENDS, ModelShape
from headscope.policy.shipped import policy_file
from headscope.policy.tensors import (
    DTYPES,
    FEATURES,
    HEAD_TENSORS,
    KEPT,
    LEAD,
    SCORE,
    check_bits,
    check_range,
    check_scores,
    check_tensor,
)


@dataclass(frozen=True, eq=False)
class Policy:
    """What to keep, per layer and KV head; see `headscope.runtime` for what the numbers do.

    Attributes:
        window: int32 [layers, kv_heads], tokens before the query that are always kept.
        heavy: int32 [layers, kv_heads], older tokens kept by score.
        anchor: int32 [layers, kv_heads], first image tokens that are always kept.
        decay: float32 [layers, kv_heads] in [0, 1], what a score is multiplied by at the end of each stride.
        per_visit: uint8 [layers, kv_heads], 1 where a score is divided by the number of queries that could see its token.
        semantic_score: float32 [layers, kv_heads] in [0, 1], 1 is semantic; information for readers.
        bits: uint8 [layers, kv_heads]: 16 keeps numbers in the model's dtype, 8 and 4 write those of image tokens behind the
            anchors as integers of so many bits (runtime/quantized.py); all 16 unless given.
        prompt: uint8 [layers, kv_heads]: 1 keeps the whole prompt, 0 of it only the first valid token and the last, begin of
            image, once it was read in full; all 1 unless given.
        score: uint8 [layers, kv_heads], by which kind of score heavy tokens are chosen, a place in `scores`; all 0, attention
            received, unless given.
        stride: tokens between two choices of the heavy set.
        lead: columns between the newest tokens of two rows that are generated at once (policy/lead.py); a row's whole length,
            row after row, unless given.
        prefix: prompt length in tokens that the byte accounting assumes.
        shape: the model.
        limit: the byte limit that it was made for, or None.
        provenance: JSON values, where it came from.
        results: JSON values, what was measured.
        rule: what the heads of the model lost by what they look at, for `headscope.transfer`; None where it is not known.
        scores: kinds of scores by name, see `headscope.policy.SCORES`.
        tables: weights of heads whose kind of score needs them; a policy can be made without, but not used or saved.

    Raises:
        PolicyMismatch: on construction; names the tensor, layer and head, what was found and what was expected.
    """

    window: torch.Tensor
    heavy: torch.Tensor
    anchor: torch.Tensor
    decay: torch.Tensor
    per_visit: torch.Tensor
    semantic_score: torch.Tensor
    stride: int
    prefix: int
    shape: ModelShape
    limit: Limit | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    bits: torch.Tensor = field(default=None)  # type: ignore[assignment]
    prompt: torch.Tensor = field(default=None)  # type: ignore[assignment]
    rule: Rule | None = None
    score: torch.Tensor = field(default=None)  # type: ignore[assignment]
    scores: tuple[str, ...] = BUILT_IN
    tables: ScoreTable | None = None
    lead: int = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.lead is None:
            object.__setattr__(self, "lead", self.shape.geometry.row_length)
        for name, usual in FEATURES.items():
            if getattr(self, name) is None:
                heads = (self.shape.layers, self.shape.kv_heads)
                object.__setattr__(self, name, torch.full(heads, usual, dtype=DTYPES[name]))
        for name in HEAD_TENSORS:
            check_tensor(name, tuple(getattr(self, name).shape), getattr(self, name).dtype, self.shape)
        if self.rule is not None:
            self.rule.check_heads(self.shape)
        tokens, image = self.shape.geometry.tokens, f"the {self.shape.geometry} image ({self.shape.geometry.tokens} tokens"
        check_range("window", self.window, 0, tokens - 1, f"exceeds {image}; largest window {tokens - 1})")
        for name in ("heavy", "anchor"):
            check_range(name, getattr(self, name), 0, tokens, f"exceeds {image})")
        for name in ("decay", "per_visit", "prompt", "semantic_score"):
            check_range(name, getattr(self, name), 0, 1, "is above 1")
        check_bits(self.bits)
        check_scores(self.score, self.scores)
        if self.tables is not None:
            self.tables.check(self.shape)
        try:
            self.shape.geometry.check_stride(self.stride)
            self.shape.geometry.check_lead(self.lead)
        except HeadscopeError as error:
            raise PolicyMismatch(str(error)) from None
        if self.prefix < 0:
            raise PolicyMismatch(f"prefix {self.prefix}: expected a number of tokens, 0 or more.")

    @classmethod
    def uniform(
        cls,
        shape: ModelShape,
        *,
        window: int | torch.Tensor,
        heavy: int | torch.Tensor = 0,
        anchor: int | torch.Tensor = 0,
        decay: float | torch.Tensor = 1.0,
        per_visit: int | torch.Tensor = 0,
        bits: int | torch.Tensor = 16,
        prompt: int | torch.Tensor = 1,
        score: int | torch.Tensor = 0,
        stride: int,
        prefix: int,
        lead: int | None = None,
        semantic_score: torch.Tensor | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Policy:
        """A policy from numbers (the same for all heads) or tensors [layers, kv_heads].

        A head that keeps everything is given no anchors, which would only take slots.

        Args:
            shape: the model.
            window: tokens before the query that are always kept.
            heavy: older tokens kept by score.
            anchor: first image tokens that are always kept.
            decay: what a score is multiplied by at the end of each stride, in [0, 1].
            per_visit: 1 where a score is divided by the number of queries that could see its token, else 0.
            bits: of a kept number of image tokens behind the anchors: 16 (the model's dtype), 8 or 4.
            prompt: 1 where the whole prompt is kept, 0 where of it only the first and the last token are.
            score: kind of score by which heavy tokens are chosen, a place in `BUILT_IN`.
            stride: tokens between two choices of the heavy set.
            prefix: prompt length in tokens that the byte accounting assumes.
            lead: columns between the newest tokens of two rows that are generated at once; None: row after row.
            semantic_score: float32 [layers, kv_heads] in [0, 1], 1 is semantic; by default 0.5 everywhere, for not known.
            provenance: JSON values, where it came from.

        Raises:
            PolicyMismatch: see `Policy`.
        """
        given: dict[str, float | torch.Tensor] = {"window": window, "heavy": heavy, "anchor": anchor, "bits": bits}
        given |= {"decay": decay, "per_visit": per_visit, "prompt": prompt, "score": score}
        given["semantic_score"] = 0.5 if semantic_score is None else semantic_score
        full = (shape.layers, shape.kv_heads)
        tensors: dict[str, Any] = {
            name: value.detach().cpu().to(DTYPES[name]).clone()
            if isinstance(value, torch.Tensor)
            else torch.full(full, value, dtype=DTYPES[name])
            for name, value in given.items()
        }
        everything = tensors["window"] + tensors["heavy"] >= shape.geometry.tokens - 1
        tensors["anchor"] = torch.where(everything, 0, tensors["anchor"]) if everything.shape == full else tensors["anchor"]
        facts: dict[str, Any] = {
            "provenance": dict(provenance or {}),
            "lead": shape.geometry.row_length if lead is None else lead,
        }
        return cls(**tensors, stride=stride, prefix=prefix, shape=shape, **facts)

    def slots(self) -> torch.Tensor:
        """int64 [layers, kv_heads]: tokens a head has room for.

        Example: prefix 10, window 24 and no heavy tokens: 10 + 24 + 1 for the query itself. With heavy 8 and stride 24:
        10 + 24 + 8 + a buffer of 24. With prompt 0 the 10 are 2.
        """
        prompt = torch.where(self.drops_prompt, min(self.prefix, PROMPT_ENDS), self.prefix)
        image = image_slots(self.window.numpy(), self.heavy.numpy(), self.stride, self.shape.geometry, self.lead)
        return prompt + self.anchor.long() + torch.from_numpy(image)

    @property
    def rows_at_once(self) -> bool:
        """Whether a row begins before the one above it is done."""
        return self.lead < self.shape.geometry.row_length

    def buckets(self, layer: int) -> list[Bucket]:
        """The distinct kinds of heads of a layer, ordered by their first head.

        Args:
            layer: its number, from 0.
        """
        found: dict[tuple[int, int, int, float, bool, int, bool, str], list[int]] = {}
        short = self.drops_prompt[layer].tolist()
        for head in range(self.shape.kv_heads):
            kind = (
                int(self.window[layer, head]),
                int(self.heavy[layer, head]),
                int(self.anchor[layer, head]),
                float(self.decay[layer, head]),
                bool(self.per_visit[layer, head]),
                int(self.bits[layer, head]),
                not short[head],
                self.scores[int(self.score[layer, head])],
            )
            if kind[1] == 0:  # without heavy tokens no score is kept
                kind = (*kind[:3], 1.0, False, *kind[5:7], RECEIVED)
            found.setdefault(kind, []).append(head)
        made = [Bucket(tuple(heads), *kind) for kind, heads in found.items()]
        return made if self.tables is None else [self._with_table(bucket, layer) for bucket in made]

    def _with_table(self, bucket: Bucket, layer: int) -> Bucket:
        """The bucket with the tables of its heads, where its kind of score needs them and all have one."""
        assert self.tables is not None
        heads = torch.tensor(bucket.heads, dtype=torch.int32) + layer * self.shape.kv_heads
        if not SCORES[bucket.score].by_table or not bool(self.tables.has(heads).all()):
            return bucket
        return replace(bucket, table=self.tables.of(heads))

    @property
    def needs_table(self) -> torch.Tensor:
        """bool [layers, kv_heads]: heads whose kind of score needs a table."""
        by_table = torch.tensor([SCORES[name].by_table for name in self.scores])
        return by_table[self.score.long()] & (self.heavy > 0)

    @property
    def other_scores(self) -> list[str]:
        """Kinds of scores that heads with heavy tokens have beside attention received, by name."""
        names = {self.scores[place] for place in self.score[self.heavy > 0].unique().tolist()}
        return sorted(names - {RECEIVED})

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of scores: once, whatever the batch, and beside the cache."""
        return 0 if self.tables is None else self.tables.nbytes

    def check_tables(self) -> None:
        """Refuse heads whose kind of score needs a table that is not there.

        Raises:
            PolicyMismatch: names the first one.
        """
        heads = self.needs_table.flatten().nonzero().flatten().to(torch.int32)
        there = torch.zeros_like(heads, dtype=torch.bool) if self.tables is None else self.tables.has(heads)
        if bool(there.all()):
            return
        layer, head = divmod(int(heads[~there][0]), self.shape.kv_heads)
        raise PolicyMismatch(
            f"layer {layer} head {head}: score {self.score_of(layer, head)} needs a table, which the policy has not; search it "
            "anew, or choose another score."
        )

    def score_of(self, layer: int, head: int) -> str:
        """The kind of score of a head, by name.

        Args:
            layer: its number, from 0.
            head: of the KV heads.
        """
        return self.scores[int(self.score[layer, head])]

    @property
    def keeps_everything(self) -> bool:
        """Whether no head ever drops a token."""
        everything = self.window + self.heavy >= self.shape.geometry.tokens - 1
        return bool((everything & ~self.drops_prompt).all())

    @property
    def drops_prompt(self) -> torch.Tensor:
        """bool [layers, kv_heads]: heads that keep two tokens of the prompt; none where it is kept as one entry."""
        return (self.prompt == 0) & (not self.shape.folds_prefix)

    def spec(self) -> CacheSpec:
        """What the policy's bytes are counted for: as its limit is, or one guided image in bfloat16 without one."""
        spec = CacheSpec(self.shape, self.prefix) if self.limit is None else self.limit.spec
        return spec.replace(shape=self.shape, prefix=self.prefix)

    def accounting(self) -> dict[str, Any]:
        """Bytes of the policy and of the plain cache, and what they are counted for."""
        spec = self.spec()
        sizes = {"bytes": spec.bytes_of(self), "plain_bytes": spec.full_bytes, "kept_ratio": spec.share_of(self)}
        return {**sizes, **spec.to_dict()}

    def save(self, path: str | Path, overwrite: bool = True) -> Path:
        """Write a policy file, whole or not at all.

        Args:
            path: of the file.
            overwrite: replace a file that stands there.

        Raises:
            DataError: the place cannot be written, or holds a file and `overwrite` is False.
            PolicyMismatch: its provenance or results are no JSON values, or such that `load` would refuse them; or a table of a
                score is missing.
        """
        self.check_tables()
        return write_file(self.as_file(), path, self.accounting(), overwrite=overwrite)

    def as_file(self) -> PolicyFile:
        """What a policy file holds of it."""
        tensors = {name: getattr(self, name) for name in HEAD_TENSORS}
        facts = (self.stride, self.prefix, self.shape, self.limit, self.provenance, self.results, self.rule)
        return PolicyFile(tensors, *facts, self.scores, self.tables, self.lead)

    @classmethod
    def load(cls, path: str | Path, shape: ModelShape | None = None, accept_other_weights: bool = False) -> Policy:
        """Read a policy file, or a shipped policy by its name.

        Args:
            path: of the file, or a name such as "stickers-20".
            shape: the model that it has to fit, None for any.
            accept_other_weights: use it on other weights of the same architecture, and record that in the provenance.

        Raises:
            DataError: missing, not readable, or not a policy file.
            PolicyMismatch: a fact or a tensor that is missing or impossible, a later schema, another architecture, or other
                weights unless they are accepted.
        """
        path = policy_file(path)
        facts = dict(vars(read_file(path)))
        try:
            policy = cls(**facts.pop("tensors"), **facts)
            policy.check_tables()
        except HeadscopeError as error:
            raise PolicyMismatch(f"{path}: {error}") from None
        return policy if shape is None else policy._for_model(shape, path, accept_other_weights)

    def _for_model(self, shape: ModelShape, path: Path, accept_other_weights: bool) -> Policy:
        """The same policy, of the model that it is used on; see `load`."""
        check_fits(self.shape, shape, path)
        fitted = self.replace(shape=shape, limit=None if self.limit is None else self.limit.for_model(shape))
        made = self.shape.weights
        if made in ("", shape.weights):
            return fitted
        if not accept_other_weights:
            raise PolicyMismatch(
                f"{path}: made for other weights of this architecture ({self.shape.name}, {made[:12]}) than {shape.name} "
                f"({shape.weights[:12]}): search again, or use it as it is with `accept_other_weights`."
            )
        noted = {**self.provenance, "accepted_other_weights": {"made_for": made, "used_on": shape.weights}}
        return fitted.replace(provenance=noted)

    @property
    def quantized(self) -> bool:
        """Whether any head keeps numbers in less than 16 bits."""
        return bool((self.bits != 16).any())

    def replace(self, **changes: Any) -> Policy:
        """A copy with some fields changed, checked as a new policy is.

        Args:
            changes: new values by attribute, such as `stride=4`.
        """
        return replace(self, **changes)

    def fingerprint(self) -> str:
        """sha256 of everything that changes what is kept."""
        digest = hashlib.sha256(f"{self.shape.geometry.to_dict()} {self.stride} {self.prefix}".encode())
        if self.rows_at_once:
            digest.update(f"{LEAD} {self.lead}".encode())
        for name in KEPT:
            tensor = getattr(self, name)
            if name == SCORE:
                digest.update(self._score_digest())
            elif name not in FEATURES or bool((tensor != FEATURES[name]).any()):  # as before there were such features
                digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _score_digest(self) -> bytes:
        """Of kinds of scores, wherever they stand in the list, and of tables; nothing where all are `received`."""
        kinds = [self.scores[place] for place in self.score.flatten().tolist()]
        if set(kinds) == {RECEIVED}:
            return b""
        return f"{SCORE}{kinds}".encode() + (b"" if self.tables is None else self.tables.digest())

    def same_as(self, other: Policy) -> bool:
        """Whether both keep the same."""
        return self.fingerprint() == other.fingerprint()


def save_policy(policy: Policy, path: str | Path, overwrite: bool = True) -> Path:
    """`Policy.save`, by another name.

    Args:
        policy: to write.
        path: of the file.
        overwrite: replace a file that stands there.
    """
    return policy.save(path, overwrite)


def load_policy(path: str | Path, shape: ModelShape | None = None, accept_other_weights: bool = False) -> Policy:
    """`Policy.load`, by another name.

    Args:
        path: of the file, or the name of a shipped policy, such as "stickers-20".
        shape: the model that it has to fit, None for any.
        accept_other_weights: use it on other weights of the same architecture, and record that in the provenance.
    """
    return Policy.load(path, shape, accept_other_weights)
