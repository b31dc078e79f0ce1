"""One batch of images, timed: by our decoder, or by transformers' `generate`. Both get texts and give tokens, on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, StaticCache

from headscope.benchmarks.gpu import faults
from headscope.benchmarks.gpu.clock import waited
from headscope.benchmarks.gpu.context import Context
from headscope.benchmarks.gpu.roofline import image_seconds
from headscope.benchmarks.gpu.variants import GENERATE, decoder_of
from headscope.benchmarks.shapes import SIZES
from headscope.models.cache_name import cache_name
from headscope.models.janus import JanusModel
from headscope.policy import Policy
from headscope.runtime import Sampling
from headscope.runtime.decoders import Decoder
from headscope.runtime.decoders.gpu_work import release
from headscope.runtime.decoders.llama_cuda import LlamaCudaDecoder
from headscope.runtime.sampling import Sampler

GUIDANCE = 5.0


@dataclass(frozen=True)
class Turn:
    """A variant and a batch.

    Attributes:
        context: where results go.
        model: on the device.
        variant: a name of `policies`, or of GENERATE.
        policy: of the variant; of those of GENERATE that which keeps everything.
        batch: images.
        repeat: number of the turn.
        label: the variant's name in the results, where it is another.
    """

    context: Context
    model: JanusModel
    variant: str
    policy: Policy
    batch: int
    repeat: int = 0
    label: str = ""

    @property
    def tokens(self) -> int:
        """Of an image."""
        return self.model.shape.geometry.tokens

    def record(self, seconds: float, tokens: int, **more: Any) -> None:
        """Append one batch's time and what follows from it."""
        least = image_seconds(self.context.roofline(), SIZES[self.model.name], self.policy, self.batch, self.context.itemsize)
        shown = {
            "shape": self.model.name,
            "variant": self.label or self.variant,
            "batch": self.batch,
            "repeat": self.repeat,
            "tokens": tokens,
            "tokens_s": self.batch * tokens / seconds,
            "ms_step": 1e3 * seconds / tokens,
            "predicted": None if least is None else least * tokens / self.tokens,
            "peak_bytes": torch.cuda.max_memory_allocated() if self.context.cuda else None,
        }
        self.context.record("batch of images", seconds, "s", **shown, **more)


def ours(turn: Turn, batches: int = 2) -> float:
    """Time batches through one new decoder: the first pays for construction and capture, the later ones find its graph.

    Returns:
        Seconds of all batches.

    Raises:
        ModelError: the decoder lacks something for this variant.
    """
    context, total = turn.context, 0.0
    release(turn.model)
    faults.forget()
    began = waited(context.device)
    decoder = decoder_of(context, turn.model, turn.policy)
    assert decoder.name == LlamaCudaDecoder.name
    for number in range(batches):
        image_tokens(decoder, turn.batch, seed=turn.batch * number)
        ended = waited(context.device)
        turn.record(ended - began, turn.tokens, first=not number, decoder=decoder.name, cache_bytes=decoder.nbytes())
        total += ended - began
        began = waited(context.device)  # writing results is nobody's time
    return total


def image_tokens(decoder: Decoder, batch: int, seed: int, report: Callable[[int], None] = lambda count: None) -> torch.Tensor:
    """Tokens int64 [batch, N], on the host, of the same text again and again.

    Args:
        decoder: of a Janus of random weights.
        batch: images.
        seed: of the first.
        report: told of tokens.
    """
    assert isinstance(decoder, LlamaCudaDecoder)
    model = decoder.model
    with torch.inference_mode():
        sampling = Sampling(guidance=GUIDANCE, seed=seed).of(model)
        sampler = Sampler(model, sampling, sampling.seeds(batch))
        hidden = decoder.prefill(model.tokenize(["a"] * batch), sampler.guided)
        return decoder.image_tokens(hidden, sampler, report).cpu()


def theirs(turn: Turn, tokens: int, note: str = "") -> float:
    """Time one batch through transformers' own `generate`.

    Args:
        turn: a variant of GENERATE.
        tokens: that each image gets; fewer than an image has are said in the record.
        note: said in the record.

    Returns:
        Seconds.
    """
    release(turn.model)
    faults.forget()
    began = waited(turn.context.device)
    cache = generated(turn.model, turn.variant, turn.batch, tokens)
    seconds = waited(turn.context.device) - began
    turn.record(
        seconds, tokens, first=turn.repeat == 0, decoder=f"transformers {turn.variant}", cache_bytes=held(cache), note=note
    )
    return seconds


def generated(model: JanusModel, variant: str, batch: int, tokens: int) -> Cache:
    """Generate with a new cache, without top-k as ours -> the cache.

    Args:
        model: on the device.
        variant: of GENERATE.
        batch: images.
        tokens: of each image.
    """
    prefix, network = model.tokenize(["a"] * batch), model.network
    room = prefix.ids.shape[1] + model.shape.geometry.tokens  # of a whole image, as a static cache must have
    config = network.config.get_text_config(decoder=True)
    cache: Cache = DynamicCache(config=config) if variant == GENERATE[1] else StaticCache(config=config, max_cache_len=room)
    with _images_of(model, tokens):
        network.generate(
            prefix.ids,
            attention_mask=prefix.mask,
            generation_mode="image",
            do_sample=True,
            top_k=0,
            guidance_scale=GUIDANCE,
            max_length=room,
            **{cache_name(): cache},
        ).cpu()
    return cache


@contextmanager
def _images_of(model: JanusModel, tokens: int) -> Iterator[None]:
    """Let `generate` end after so many tokens."""
    config: Any = model.network.model.vision_model.config
    before, config.num_image_tokens = config.num_image_tokens, tokens
    try:
        yield
    finally:
        config.num_image_tokens = before


def held(cache: Cache) -> int:
    """Bytes of the keys and values of a cache."""
    layers: list[Any] = list(cache.layers)
    return sum(each.numel() * each.element_size() for layer in layers for each in (layer.keys, layer.values))
