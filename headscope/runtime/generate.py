"""Drawing pictures token by token, with or without a policy, so that a picture depends only on its prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from headscope.errors import DataError
from headscope.models.protocol import ImageModel
from headscope.models.tokens import warn_of_unknown_words
from headscope.policy.policy import Policy
from headscope.runtime.cache import CompressedCache, compressed
from headscope.runtime.decoders.llama_cpu import step_for
from headscope.runtime.decoders.llama_cuda import DeviceDraw, draws_on_device
from headscope.runtime.finite import finite_choice, no_numbers
from headscope.runtime.noise import Noise
from headscope.runtime.plain import PlainCache
from headscope.samples import Samples

DEFAULT_BATCH = 16
Progress = Callable[[int, int], None]


def generate(
    model: ImageModel,
    prompts: Sequence[str],
    seeds: Sequence[int] | int,
    *,
    policy: Policy | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Samples:
    """Draw one picture a prompt.

    Args:
        prompts: n texts. seeds: one a picture, or one number s for s, s + 1, ...
        policy: what the cache keeps; None draws with the model's own attention and a plain cache.
        guidance: scale s of u + s(c - u); 1 draws without the unconditional stream. The model's default unless given.
        temperature: 0 takes the most likely code. top_k: only the k most likely codes are drawn.
        batch_size: pictures drawn together (16); results do not depend on it but for the rounding of matrix products.
        progress: called with (steps done, steps in all).

    Returns:
        Samples with tokens int32 [n, N].

    Raises:
        DataError: no prompt, a prompt too long, seeds that do not match, numbers out of range.
        PolicyMismatch: a policy for another model.
        NumberError: NaN or infinite logits; names the token.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    seeds = check_seeds(prompts, seeds)
    guidance = model.guidance if guidance is None else float(guidance)
    temperature = model.temperature if temperature is None else float(temperature)
    top_k = model.top_k if top_k is None else int(top_k)
    check_settings(guidance, temperature, top_k, model.vocabulary)
    warn_of_unknown_words(model, prompts)
    length = model.encode(list(prompts)).ids.shape[1]  # one prefix length for all, so that batches are alike
    size = batch_size or DEFAULT_BATCH
    total = len(prompts) * model.shape.geometry.tokens
    tokens, texts, done = [], [], 0
    for start in range(0, len(prompts), size):
        batch = list(prompts[start : start + size])

        def report(step: int, drawn: int = len(batch), before: int = done) -> None:
            if progress is not None:
                progress(before + drawn * step, total)

        drawn_texts, drawn = _draw(
            model, batch, seeds[start : start + size], policy, guidance, temperature, top_k, length, report
        )
        texts += drawn_texts
        tokens.append(drawn)
        done += len(batch) * model.shape.geometry.tokens
    return Samples(
        prompts=list(prompts),
        texts=texts,
        seeds=torch.tensor(seeds, dtype=torch.int64),
        tokens=torch.cat(tokens).to(torch.int32).cpu(),
        guidance=guidance,
        temperature=temperature,
        top_k=top_k,
        model=model.name,
        weights=model.shape.weights,
    )


@torch.inference_mode()
def _draw(
    model: ImageModel,
    prompts: list[str],
    seeds: list[int],
    policy: Policy | None,
    guidance: float,
    temperature: float,
    top_k: int | None,
    length: int,
    report: Callable[[int], None],
) -> tuple[list[str], torch.Tensor]:
    prefix = model.encode(prompts, length)
    streams = 1 if guidance == 1.0 else 2
    ids, mask = prefix.ids, prefix.mask
    if streams == 2:
        ids = torch.cat([ids, prefix.unconditional_ids])
        mask = torch.cat([mask, prefix.unconditional_mask])
    count = model.shape.geometry.tokens
    noise = Noise(seeds, count, model.vocabulary, model.device)
    tokens = torch.empty(len(prompts), count, dtype=torch.int64, device=model.device)
    grown = torch.cat([mask, mask.new_ones(len(mask), count)], 1)
    if policy is not None and draws_on_device(model):
        terms: dict[str, Any] = {"guidance": guidance, "temperature": temperature, "top_k": top_k}
        return prefix.texts, DeviceDraw(model, policy, prefix, seeds, **terms).draw(report)
    cache: PlainCache | CompressedCache
    if policy is None:
        cache = PlainCache(model.shape.layers, length + count)
    else:
        cache = CompressedCache(policy, batch=len(ids), prefix=length, dtype=model.dtype, device=model.device)
    step = step_for(model) if policy is not None else None
    layers: list[Any] = list(cache.layers)
    with nullcontext() if policy is None else compressed(model, policy):
        hidden = model.decode(model.embed_prefix(ids), mask, cache)
        for t in range(count):
            logits = model.logits(hidden[:, -1:])[:, 0].float()
            if streams == 2:
                conditional, unconditional = logits.chunk(2)
                logits = torch.lerp(unconditional, conditional, guidance)
            tokens[:, t], found = _pick(logits, noise, t, temperature, top_k)
            if not bool(found.all()):
                raise no_numbers(model, t, (layer.kept() for layer in layers))
            report(t + 1)
            if t + 1 < count:  # nothing looks at the last token
                embeds = model.embed_tokens(tokens[:, t : t + 1]).repeat(streams, 1, 1)
                if step is not None and isinstance(cache, CompressedCache):
                    hidden = step(embeds[:, 0], length + t, cache)[:, None]
                else:
                    hidden = model.decode(embeds, grown[:, : length + t + 1], cache)
    return prefix.texts, tokens


def _pick(
    logits: torch.Tensor, noise: Noise, token: int, temperature: float, top_k: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [n, V] -> codes [n], and bool [n], whether they were chosen among numbers."""
    if temperature == 0.0:
        return finite_choice(logits)
    if top_k is not None:
        floor = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return finite_choice(logits / temperature + noise.at(token))


def check_seeds(prompts: Sequence[str], seeds: Sequence[int] | int) -> list[int]:
    """One seed a prompt, of 64 bits.

    Raises:
        DataError: not one a prompt, or a number of more bits.
    """
    if isinstance(seeds, int):
        seeds = [seeds + i for i in range(len(prompts))]
    if wrong := [seed for seed in seeds if not -(2**63) <= seed < 2**63]:
        raise DataError(f"seed {wrong[0]}: expected a number of 64 bits, from -2^63 to 2^63 - 1.")
    if len(seeds) != len(prompts):
        raise DataError(f"Found {len(seeds)} seeds for {len(prompts)} prompts: give one a prompt, or a single number.")
    return [int(seed) for seed in seeds]


def check_settings(guidance: float, temperature: float, top_k: int | None, vocabulary: int) -> None:
    """Raise a DataError for numbers out of range."""
    if not 0.0 <= guidance <= 100.0:
        raise DataError(f"guidance {guidance:g}: expected a scale from 0 to 100 (1 draws without guidance).")
    if not 0.0 <= temperature <= 100.0:
        raise DataError(f"temperature {temperature:g}: expected 0 (most likely code) to 100.")
    if top_k is not None and not 1 <= top_k <= vocabulary:
        raise DataError(f"top-k {top_k}: expected 1 to {vocabulary}, the number of image codes.")
