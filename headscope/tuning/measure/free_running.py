"""Free running: what a policy loses on its own trajectories, where every token that it sampled leads to the next.

Replay follows images of the full cache, so a policy is never seen where its own tokens lead it, and a small loss there does not
exclude drift. Here images are generated with the policy, and the full cache sees them afterwards, in one parallel pass:
KL(full || policy) of the guided distribution after temperature and before top-k, as in replay.py, at each token of the
policy's own images.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from headscope.models import ImageModel
from headscope.policy import Policy
from headscope.runtime import Decoder, Sampler, Sampling, choose, no_numbers, sample_rows
from headscope.samples import Samples
from headscope.tuning.measure.measurement import ReplayResult
from headscope.tuning.measure.replay import Replay


@torch.inference_mode()
def measure_free_running(model: ImageModel, samples: Samples, policy: Policy, *, batch_size: int | None = None) -> ReplayResult:
    """Generate with a policy what `samples` were generated from, and compare it with the full cache token by token.

    Prompts, seeds, guidance, temperature and top-k are those of the samples, so the first tokens are theirs until the policy
    makes a difference.

    Args:
        model: the model.
        samples: recorded under the full cache; only what they were made from is used.
        policy: what each head keeps.
        batch_size: images that run together; by default as many as a replay takes.

    Returns:
        As of `Replay.measure`, on the policy's own images.

    Raises:
        CacheError: a prompt too long for the policy's limit.
        NumberError: NaN or infinite logits; names the token.
        PolicyMismatch: the policy is for another model.
    """
    began = time.perf_counter()
    size = min(batch_size or Replay(model, samples.first(1), by_stream=False).fitting_batch(), len(samples))
    parts: list[tuple[torch.Tensor | None, ...]] = []
    for start in range(0, len(samples), size):
        some = samples.select(range(start, min(start + size, len(samples))))
        decoder = choose(model, policy)
        tokens, hidden = _generated(decoder, policy, some)
        replay = Replay(model, replace(some, tokens=tokens.to(torch.int32).cpu()), batch_size=size, by_stream=False)
        parts.append(replay.compare(hidden, slice(0, len(some))))
        nbytes = decoder.nbytes() // len(some)
    return ReplayResult.of(parts, model.shape.geometry, cache_bytes=nbytes, seconds=time.perf_counter() - began)


def _generated(decoder: Decoder, policy: Policy, samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [n, N] of a policy's own, and the hidden states [rows, N - 1, C] after each but the last."""
    model, count = decoder.model, decoder.model.shape.geometry.tokens
    sampling = Sampling.of_samples(samples)
    sampler = Sampler(model, sampling, samples.seeds.tolist())
    hidden = decoder.prefill(model.tokenize(list(samples.prompts)), sampler.guided)
    states: list[torch.Tensor] = []
    if policy.rows_at_once:
        before: dict[int, torch.Tensor] = {}
        tokens = sample_rows(decoder, len(samples), hidden, sampler, before.__setitem__)
        return tokens, torch.stack([before[token] for token in range(1, count)], 1)
    tokens = torch.empty(len(samples), count, dtype=torch.int64, device=model.device)
    for t in range(count):
        tokens[:, t], found = sampler.after(hidden, t)
        if not bool(found.all()):
            raise no_numbers(model, t, decoder.kept())
        if t + 1 < count:
            hidden = decoder.step(tokens[:, t], t)
            states.append(hidden)
    return tokens, torch.stack(states, 1)
