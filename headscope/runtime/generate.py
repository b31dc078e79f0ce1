"""Generating images token by token, with or without a policy, so that an image depends only on its prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from headscope.models import ImageModel, Prefix, expect_model, warn_of_unknown_words
from headscope.policy import Policy
from headscope.progress import Progress, of_task
from headscope.runtime.decoders.protocol import Decoder, ImageDecoder
from headscope.runtime.decoders.registry import AUTO, choose
from headscope.runtime.finite import no_numbers
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
    """Generate one image a prompt.

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
    prefix = model.tokenize(prompts)  # all at once: one length, so that batches are alike
    size, count = batch_size or DEFAULT_BATCH, model.shape.geometry.tokens
    found, tell = [], of_task(progress, "generating", len(prompts) * count)
    for start in range(0, len(prompts), size):
        rows = slice(start, min(start + size, len(prompts)))

        def report(step: int, rows: slice = rows) -> None:
            tell(rows.start * count + (rows.stop - rows.start) * step, len(prompts) * count)

        sampler = Sampler(model, asked, every[rows])
        found.append(_image_tokens(choose(model, policy, decoder), _part(prefix, rows), sampler, report))
    return Samples(
        prompts=prompts,
        texts=prefix.texts,
        seeds=torch.tensor(every, dtype=torch.int64),
        tokens=torch.cat(found).to(torch.int32).cpu(),
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


def _part(prefix: Prefix, rows: slice) -> Prefix:
    """Some prompts of a batch, padded as they are."""
    names = ("ids", "mask", "unconditional_ids", "unconditional_mask", "texts")
    return replace(prefix, **{name: getattr(prefix, name)[rows] for name in names})
