"""Whether a model is what headscope takes it for: a conformance report in sentences.

A nearly right adapter draws images without an error, and everything measured with it is wrong. So each thing that headscope
relies on is tried here on the model itself, on random codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from headscope.errors import DataError
from headscope.facts import said
from headscope.models import Group, ImageModel, Placed, Prefix, check_members, observe, random_codes
from headscope.policy import Policy
from headscope.runtime import PlainCache
from headscope.samples import Samples
from headscope.tuning import Replay

PROMPTS = 2
# Relative to the largest number: two ways to the same numbers, in the dtypes of weights.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
LOOSE = 0.05  # of 16 bits
SAME_WAY = 0.01  # share of these for the same numbers twice by the same way
MOST_KL = {torch.float32: 1e-5, torch.float64: 1e-8}
LOOSE_KL = 0.02
MOST_END = 1e-6  # probability of a row's end in a cell


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        what: it is.
        wrong: what was found in place of what was expected, and what to look at; None: it is as it should be.
        known: whether it could be tried at all.
    """

    what: str
    wrong: str | None
    known: bool = True

    def sentence(self) -> str:
        """For the terminal."""
        if self.wrong is not None:
            return f"WRONG  {self.what}: {self.wrong}"
        return f"{'ok' if self.known else '-':6} {self.what}"


def check_model(model: ImageModel, prompts: list[str], name: str | None = None) -> Iterator[Finding]:
    """Try what headscope relies on, one thing after the other.

    Args:
        model: any image model.
        prompts: two that it takes, of unlike lengths where it can be.
        name: for messages.

    Raises:
        ModelError: it is no image model.
        DataError: it does not take these prompts.
    """
    check_members(model, name or str(getattr(model, "name", "the model")))
    yield _placed(model)
    trial = _Trial(model, prompts[:PROMPTS])
    for what, look in trial.looks():
        try:
            wrong = look()
        except Exception as error:  # somebody else's code may fail in any way
            if what == _PROMPTS and isinstance(error, DataError):
                raise  # the prompts are none of the model's
            wrong = f"failed with {type(error).__name__} ({said(error)})"
        yield Finding(what, wrong)
        if wrong is not None and what == _PROMPTS:
            return  # nothing else can be tried


def _placed(model: ImageModel) -> Finding:
    """Where the tensors of the checkpoint went; loading has refused what was missing, of another shape or foreign."""
    placed: Placed | None = getattr(model, "placed", None)
    if placed is None:
        return Finding(
            "its own code loaded the weights; load_state_dict(..., strict=True) leaves none fresh", None, known=False
        )
    beside = f", {placed.aside:,} are of parts that draw nothing" if placed.aside else ""
    return Finding(f"every tensor of the checkpoint has its place, none is left fresh: {placed.tensors:,}{beside}", None)


_ROW_ENDS = "a token ends each row, and is drawn nowhere else"
_PROMPTS = "prompts become one length, padded on the left, in both streams"


class _Trial:
    """Random codes after some prompts, and what the model makes of them."""

    def __init__(self, model: ImageModel, prompts: list[str]) -> None:
        self.model, self.prompts = model, prompts
        shape = model.shape
        self.codes = random_codes(model, len(prompts))
        self.steps = min(shape.geometry.row_length + 2, shape.geometry.tokens - 1)  # past the end of a row
        self.tolerance = TOLERANCE.get(model.dtype, LOOSE)

    def looks(self) -> list[tuple[str, Callable[[], str | None]]]:
        """What is tried, and how."""
        shape = self.model.shape
        heads = f"{shape.layers} layers of {shape.query_heads} query and {shape.kv_heads} KV heads of {shape.head_dim}"
        return [
            (_PROMPTS, self.prefix),
            (f"logits are of {self.model.vocabulary} codes, and finite", self.numbers),
            (f"attention is seen: {heads}", self.attention),
            ("a later token changes nothing before it", self.causal),
            ("token by token gives what one parallel pass gives", self.step_by_step),
            ("padding changes nothing", self.padding),
            ("a policy that keeps everything loses nothing", self.everything),
            *([(_ROW_ENDS, self.row_ends)] if shape.geometry.row_end else []),
            ("codes become images", self.images),
        ]

    @torch.inference_mode()
    def prefix(self) -> str | None:
        found: Prefix = self.model.tokenize(self.prompts)
        for ids, mask in ((found.ids, found.mask), (found.unconditional_ids, found.unconditional_mask)):
            if ids.shape != found.ids.shape or mask.shape != ids.shape or len(ids) != len(self.prompts) or ids.dim() != 2:
                return f"shapes {tuple(ids.shape)} and {tuple(mask.shape)}, expected [{len(self.prompts)}, P] for ids and mask"
            if not bool((mask[:, 1:] >= mask[:, :-1]).all()) or not bool(mask[:, -1:].all()):
                return "the mask hides tokens that are not padding on the left"
        if found.ids.shape[1] > self.model.max_prefix:
            return f"{found.ids.shape[1]} tokens, more than max_prefix {self.model.max_prefix}"
        return None

    @torch.inference_mode()
    def numbers(self) -> str | None:
        logits = self.model.logits(self._parallel()[0])
        if logits.shape[-1] != self.model.vocabulary:
            return f"logits of {logits.shape[-1]} codes, expected `vocabulary`, {self.model.vocabulary}"
        return None if bool(logits.isfinite().all()) else "NaN or infinite logits"

    @torch.inference_mode()
    def attention(self) -> str | None:
        shape, seen = self.model.shape, dict[int, tuple[int, int, int]]()

        def note(layer: int, groups: list[Group]) -> None:
            seen[layer] = (groups[0].q.shape[1], groups[0].k.shape[1], groups[0].k.shape[3])

        with observe(self.model.decoder, note):
            self._parallel()
        if not seen:
            return (
                "none; `decoder` has to attend through transformers' attention interface (config._attn_implementation, and "
                "layer_idx and config on its attention parts)"
            )
        expected = dict.fromkeys(range(shape.layers), (shape.query_heads, shape.kv_heads, shape.head_dim))
        if seen != expected:
            return f"layers {min(seen)} to {max(seen)} of {seen[min(seen)]} query heads, KV heads and numbers a head"
        return None

    @torch.inference_mode()
    def causal(self) -> str | None:
        first, _ = self._parallel()
        changed = self.codes.clone()
        changed[:, -1] = (changed[:, -1] + 1) % self.model.vocabulary
        other, _ = self._parallel(changed)
        return self._apart(first[:, :-1], other[:, :-1], "hidden states before it", SAME_WAY)

    @torch.inference_mode()
    def step_by_step(self) -> str | None:
        model, (whole, _) = self.model, self._parallel()
        ids, mask = model.tokenize(self.prompts).stacked(False)
        cache = PlainCache(model.shape.layers, ids.shape[1] + model.shape.geometry.tokens)
        found = [model.forward(model.embed_prefix(ids), mask, cache)[:, -1:]] if ids.shape[1] else []
        for t in range(self.steps):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            found.append(model.forward(model.embed_tokens(self.codes[:, t : t + 1]), mask, cache))
        steps = torch.cat(found, 1)
        return self._apart(
            whole[:, : steps.shape[1]],
            steps,
            f"hidden states of the first {self.steps} tokens; look at positions (they go on from cache.get_seq_length()) and "
            "whether `forward` hands its cache on",
        )

    @torch.inference_mode()
    def padding(self) -> str | None:
        together, _ = self._parallel()
        for row, prompt in enumerate(self.prompts):
            ids, mask = self.model.tokenize([prompt]).stacked(False)
            alone, _ = self._run(ids, mask, self.codes[row : row + 1])
            if wrong := self._apart(alone, together[row : row + 1], f"hidden states of {prompt!r}, alone and beside another"):
                return wrong
        return None

    def everything(self) -> str | None:
        model, geometry = self.model, self.model.shape.geometry
        samples = Samples(
            prompts=self.prompts,
            texts=self.prompts,
            seeds=torch.zeros(len(self.prompts), dtype=torch.int64),
            tokens=self.codes.to(torch.int32).cpu(),
            guidance=model.guidance,
            temperature=model.temperature,
            top_k=model.top_k,
            model=model.name,
            weights=model.shape.weights,
        )
        length = model.tokenize(self.prompts).ids.shape[1]
        half = geometry.tokens // 2
        whole = Policy.uniform(
            model.shape, window=half, heavy=geometry.tokens - half, stride=geometry.row_length, prefix=length
        )
        loss = Replay(model, samples, by_stream=False).measure(whole).kl
        if abs(loss) <= MOST_KL.get(model.dtype, LOOSE_KL):
            return None
        return f"{loss:.2g} nats a token; the cache that `forward` is given does not reach every layer's attention as it should"

    @torch.inference_mode()
    def row_ends(self) -> str | None:
        """By the logits, which are of cells: sampling forces the last code where a row ends, and nowhere else may it come."""
        likely = float(self.model.logits(self._parallel()[0]).float().softmax(-1)[..., -1].max())
        if likely <= MOST_END:
            return None
        return f"code {self.model.vocabulary - 1} gets up to {likely:.2g} in a cell; `logits` has to give it -1e4"

    @torch.inference_mode()
    def images(self) -> str | None:
        found: Any = self.model.to_images(self.codes[:1])
        if found.dtype != torch.uint8 or found.dim() != 4 or found.shape[0] != 1 or found.shape[3] != 3:
            return f"{found.dtype} of shape {tuple(found.shape)}, expected uint8 [B, height, width, 3]"
        return None

    def _parallel(self, codes: torch.Tensor | None = None) -> tuple[torch.Tensor, int]:
        """Hidden states from the last token of the prefix, if there is one, on, [n, 1 + N, C], and the length of the prefix."""
        return self._run(*self.model.tokenize(self.prompts).stacked(False), self.codes if codes is None else codes)

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, int]:
        model = self.model
        embeds = torch.cat([model.embed_prefix(ids), model.embed_tokens(codes)], 1)
        mask = torch.cat([mask, mask.new_ones(codes.shape)], 1)
        return model.forward(embeds, mask, None)[:, max(ids.shape[1] - 1, 0) :], ids.shape[1]

    def _apart(self, expected: torch.Tensor, found: torch.Tensor, what: str, times: float = 1.0) -> str | None:
        """Whether they are further apart than `times` the tolerance."""
        largest = expected.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        off = float((found.float() - expected.float()).abs().max() / largest)
        return None if off <= times * self.tolerance else f"{off:.2g} of the largest number apart in the {what}"
