"""The table around a policy: its pass is the policy's own replay, and it foretells what one head's exchange changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headscope.models.janus import JanusModel
from headscope.pipeline import default_prompts
from headscope.policy import Policy
from headscope.runtime import generate
from headscope.tuning import HeadOutputs, Option, ParallelPass, Replay, fisher_table, table_around
from headscope.tuning.measure.head_outputs import before


@pytest.fixture(scope="module")
def replay(stickers: JanusModel) -> Replay:
    return Replay(stickers, generate(stickers, default_prompts("stickers")[:2], 0), by_stream=False)


@pytest.fixture(scope="module")
def policy(replay: Replay) -> Policy:
    """Windows, heavy tokens, anchors and bits mixed by head."""
    numbers, size = torch.Generator().manual_seed(0), (8, 8)
    heavy = torch.randint(0, 2, size, generator=numbers) * 48
    return Policy.uniform(
        replay.model.shape,
        window=torch.randint(20, 60, size, generator=numbers),
        heavy=heavy,
        anchor=1,
        bits=torch.tensor([16, 8, 4])[torch.randint(0, 3, size, generator=numbers)],
        stride=4,
        prefix=replay.prefix,
    )


@pytest.mark.parametrize(("packed", "apart"), [(False, 1e-3), (True, 0.03)])  # rounding to 4 bits is not smooth
def test_the_parallel_pass_is_the_replay(replay: Replay, policy: Policy, packed: bool, apart: float) -> None:
    policy = policy if packed else policy.replace(bits=torch.full_like(policy.bits, 16))
    once, batch = ParallelPass(replay, policy, 0), replay.batches[0]
    with torch.inference_mode():
        wanted = once.logs(replay.full(batch))
        found = once.logs(once.hidden(batch, torch.arange(len(batch.prefix))))
    loss = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert loss == pytest.approx(replay.measure(policy).kl, rel=apart)


@pytest.mark.parametrize(("layer", "head"), [(0, 1), (3, 6)])
def test_the_gradient_is_the_slope_of_the_loss(replay: Replay, policy: Policy, layer: int, head: int) -> None:
    """What one head writes is moved a little, and the loss follows."""
    policy = policy.replace(bits=torch.full_like(policy.bits, 16))
    once, batch, sites = ParallelPass(replay, policy, 0), replay.batches[0], HeadOutputs(replay, policy.stride).sites
    part, wanted = slice(24 * head, 24 * head + 24), once.logs(replay.full(batch)).detach()
    slope = once.gradients(1, 0)[0][layer][0, ..., part].flatten(0, 1)  # [rows, N - 1, 24]
    step = slope / slope.norm()

    def loss(times: float) -> float:
        def moved(at: int, heads: torch.Tensor) -> torch.Tensor | None:
            heads = heads.clone()
            heads[:, replay.prefix :, part] += times * step
            return heads if at == layer else None

        with torch.inference_mode(), before(sites.projections, moved):
            found = once.logs(once.hidden(batch, torch.arange(len(batch.prefix))))
        return float((wanted.exp() * (wanted - found)).sum(dtype=torch.float64))

    assert (loss(0.05) - loss(-0.05)) / 0.1 == pytest.approx(float(slope.norm()), rel=0.02)


def test_around_the_full_cache_it_is_the_table_by_gradients(tiny: JanusModel) -> None:
    replay = Replay(tiny, generate(tiny, ["red apple", "dog", "a blue car"], 0), by_stream=False)
    options = [Option(1), Option(2, 3), Option(15, bits=4)]
    whole = Policy.uniform(tiny.shape, window=15, stride=4, prefix=replay.prefix)
    around, table = table_around(replay, whole, options, samples=2), fisher_table(replay, options, 4, samples=2)
    losses = table["loss"].to_numpy().reshape(len(options), *around.shape[:2])
    np.testing.assert_allclose(around.transpose(2, 0, 1), losses, rtol=1e-3, atol=1e-8)


def test_the_option_that_a_head_has_changes_nothing(replay: Replay) -> None:
    same = Policy.uniform(replay.model.shape, window=40, heavy=0, anchor=1, bits=8, stride=4, prefix=replay.prefix)
    assert not table_around(replay, same, [Option(40, bits=8)], anchor=1, samples=1).any()
