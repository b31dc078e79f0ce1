"""A compact reference: the divergence it gives is too low by no more than it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from headscope.models.janus import JanusModel
from headscope.policy import Policy
from headscope.runtime import generate
from headscope.tuning import Replay
from headscope.tuning.measure.full_cache import FullCachePredictions, kl_divergence


def generated(seed: int, sharp: float, apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [3, 5, 40] of two distributions."""
    random = torch.Generator().manual_seed(seed)
    p = sharp * torch.randn(3, 5, 40, generator=random)
    q = p + apart * torch.randn(3, 5, 40, generator=random)
    return torch.log_softmax(p, -1), torch.log_softmax(q, -1)


@given(st.integers(0, 10_000), st.floats(0.0, 6.0), st.floats(0.0, 3.0), st.integers(1, 19))
@example(7597, 5.5, 1.25, 18)  # the rest is a millionth
@settings(max_examples=100, deadline=None)
def test_the_error_is_within_the_bound(seed: int, sharp: float, apart: float, codes: int) -> None:
    p, q = generated(seed, sharp, apart)
    table = FullCachePredictions(3, 5, 40, room=3 * 5 * 8 * codes)
    assert table.compact
    assert table.codes == codes
    table.add(p[:2])
    table.add(p[2:])
    found, bound = table.divergence(q[1:], slice(1, 3))
    true = kl_divergence(p[1:], q[1:])
    assert bool((found <= true + 2e-6).all())
    assert bool((true <= found + bound + 1e-5).all())
    assert table.nbytes() == 3 * 5 * (8 * codes + 4)


def test_the_whole_has_no_error() -> None:
    p, q = generated(0, 2.0, 1.0)
    table = FullCachePredictions(3, 5, 40)
    table.add(p)
    found, bound = table.divergence(q, slice(0, 3))
    torch.testing.assert_close(found, kl_divergence(p, q))
    assert not bound.any()
    assert table.nbytes() == p.numel() * 4


def test_a_replay_in_little_memory_measures_nearly_the_same(tiny: JanusModel) -> None:
    samples = generate(tiny, ["red apple", "a blue car"], 3)
    policy = Policy.uniform(tiny.shape, window=3, stride=4, prefix=10)
    whole = Replay(tiny, samples).measure(policy)
    few = Replay(tiny, samples, reference_bytes=2 * 15 * 8 * 3 * 6)  # six codes of sixteen, three tables
    assert few.references[0].codes == 6
    compact = few.measure(policy)
    assert whole.bound == 0.0
    assert compact.bound > 0
    assert compact.kl <= whole.kl + 1e-6 <= compact.kl + compact.bound + 2e-6
    assert compact.top1 == whole.top1
    assert compact.extra_nats == pytest.approx(whole.extra_nats)
