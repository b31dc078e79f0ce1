"""Generating images token by token, with or without a policy, so that an image depends only on its prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count as count_up
from pathlib import Path

import torch

from headscope.models import ImageModel, Prefix, expect_model, warn_of_unknown_words
from headscope.policy import Policy
from headscope.progress import Progress, of_task
from headscope.runtime.decoders.protocol import Decoder, ImageDecoder
from headscope.runtime.decoders.registry import AUTO, choose
from headscope.runtime.decoders.transformers import TransformersDecoder
from headscope.runtime.finite import no_numbers
from headscope.runtime.rows_at_once import unfilled
from headscope.runtime.sampling import Sampler, Sampling
from headscope.samples import Samples

DEFAULT_BATCH = 16


def generate(
    model: ImageModel,
    prompts: Sequence[str] | str,
    seeds: Sequence[int] | int | None = None,
    *,
    sampling: Sampling | None = None,
    policy: Policy | str | Path | None = None,
    batch_size: int | None = None,
    decoder: str = AUTO,
    progress: Progress | None = None,
) -> Samples:
    """Generate one image a prompt, prompts of one length together, so that padding takes as little as it can.

    Args:
        model: the image model.
        prompts: n texts, or one.
        seeds: in place of the sampling's: one an image, or one number s for s, s + 1, ...
        sampling: guidance, temperature, top-k and seed; the model's own where they are not given, and seed 0.
        policy: what the cache keeps, or the name or file of a policy; None keeps everything.
        batch_size: images generated together (16); results do not depend on it but for the rounding of matrix products.
        decoder: "auto", or the name of the one to use: "transformers", "llama_cpu", "llama_cuda".
        progress: told of image tokens, see `headscope.progress`.

    Returns:
        Samples with tokens int32 [n, N].

    Raises:
        ModelError: no image model, but a network, say.
        DataError: no prompt, a prompt too long, seeds that do not match, numbers out of range, a decoder that cannot run here.
        PolicyMismatch: a policy for another model.
        CacheError: a prompt too long for the policy's limit.
        NumberError: NaN or infinite logits; names the token.
    """
    expect_model(model, "generate")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    policy = Policy.load(policy, model.shape) if isinstance(policy, (str, Path)) else policy
    asked = sampling or Sampling()
    asked = (asked if seeds is None else replace(asked, seed=seeds)).of(model)
    every = asked.seeds(len(prompts))
    warn_of_unknown_words(model, prompts)
    prefix = model.tokenize(prompts)  # all at once: what is wrong with any is said first
    size, count = batch_size or DEFAULT_BATCH, model.shape.geometry.tokens
    tokens, tell = torch.empty(len(prompts), count, dtype=torch.int32), of_task(progress, "generating", len(prompts) * count)
    for start, rows in by_length(prefix, size):

        def report(step: int, start: int = start, images: int = len(rows)) -> None:
            tell(start * count + images * step, len(prompts) * count)

        sampler = Sampler(model, asked, [every[row] for row in rows])
        some = model.tokenize([prompts[row] for row in rows]) if len(rows) < len(prompts) else prefix
        tokens[rows] = _image_tokens(choose(model, policy, decoder), some, sampler, report).int().cpu()
    return Samples(
        prompts=prompts,
        texts=prefix.texts,
        seeds=torch.tensor(every, dtype=torch.int64),
        tokens=tokens,
        guidance=sampler.guidance,
        temperature=sampler.temperature,
        top_k=sampler.top_k,
        model=model.name,
        weights=model.shape.weights,
        cfg_interval=sampler.cfg_interval,
    )


@torch.inference_mode()
def _image_tokens(decoder: Decoder, prefix: Prefix, sampler: Sampler, report: Callable[[int], None]) -> torch.Tensor:
    """Tokens int64 [n, N] of one batch; `report` is told how many of them every image has."""
    model = decoder.model
    hidden = decoder.prefill(prefix, sampler.guided)
    if isinstance(decoder, ImageDecoder) and sampler.cfg_interval < 0:  # which its device does not know
        return decoder.image_tokens(hidden, sampler, report)
    if isinstance(decoder, TransformersDecoder) and decoder.plan is not None:
        drawn = count_up(1)
        return sample_rows(decoder, len(prefix.ids), hidden, sampler, lambda *_: report(next(drawn)))
    count = model.shape.geometry.tokens
    tokens = torch.empty(len(prefix.ids), count, dtype=torch.int64, device=model.device)
    for t in range(count):
        tokens[:, t], found = sampler.after(hidden, t)
        if not bool(found.all()):
            raise no_numbers(model, t, decoder.kept())
        report(t + 1)
        if t + 1 < count:  # nothing looks at the last token
            hidden = decoder.step(tokens[:, t], t)
    return tokens


def sample_rows(
    decoder: Decoder, images: int, hidden: torch.Tensor, sampler: Sampler, told: Callable[[int, torch.Tensor], None]
) -> torch.Tensor:
    """Sample and feed all tokens of rows that are generated at once, after `prefill` -> int64 [images, N].

    Args:
        decoder: of a policy with a lead.
        images: of the batch.
        hidden: what `prefill` gave, [streams * images, C].
        sampler: of the batch.
        told: called with each token's number and the hidden states that it was drawn from, in the order of drawing.

    Raises:
        NumberError: NaN or infinite logits; names the token.
    """
    assert isinstance(decoder, TransformersDecoder)
    tokens = unfilled(decoder.model, images)
    for token, before in chain([(0, hidden)], decoder.feed(tokens)):
        tokens[:, token], found = sampler.after(before, token, alone=True)
        if not bool(found.all()):
            raise no_numbers(decoder.model, token, decoder.kept())
        told(token, before)
    return tokens


def by_length(prefix: Prefix, size: int) -> Iterator[tuple[int, list[int]]]:
    """Batches of prompts in order of their length, those of one length, and a single batch, as they come: how many came
    before, and which.

    Args:
        prefix: of all prompts.
        size: prompts of a batch.
    """
    lengths = prefix.mask.sum(1)
    order = lengths.argsort(stable=True).tolist() if len(lengths) > size else list(range(len(lengths)))
    for start in range(0, len(order), size):
        yield start, order[start : start + size]
