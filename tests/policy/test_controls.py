"""The controls of a comparison of methods: SSD with its classes exchanged, and dealt at random."""

from __future__ import annotations

import torch

from headscope.geometry import Geometry
from headscope.policy import CacheSpec, Limit, ModelShape, Policy
from headscope.policy.methods import SSD, RandomHeads, Swapped

SHAPE = ModelShape("toy", 3, 4, 4, 8, Geometry(6, 6), "a", "w")
SCORES = torch.tensor([[0.1, 0.2, 0.9, 0.3], [0.8, 0.1, 0.2, 0.1], [0.2, 0.3, 0.1, 0.7]])
LIMIT = Limit.of_share(0.6, CacheSpec(SHAPE, 5))


def built(preset: SSD) -> Policy:
    return preset.build(LIMIT, SCORES)


def test_swapped_gives_each_head_the_other_class_at_no_more_bytes() -> None:
    for ratio in (0.5, 1.0, 2.0):
        real, swapped = built(SSD(ratio=ratio)), built(Swapped(ratio=ratio))
        assert ((real.heavy > 0) == (SCORES > 0.5)).all()
        assert ((swapped.heavy > 0) == (SCORES <= 0.5)).all()
        assert ((swapped.window > 0) == (SCORES > 0.5)).all()
        assert 0.9 * LIMIT.bytes < LIMIT.spec.bytes_of(swapped) <= LIMIT.bytes
        assert (swapped.semantic_score == SCORES).all()  # what the heads are is told as it is


def test_random_heads_deals_as_many_semantic_heads_by_its_seed() -> None:
    made = [built(RandomHeads(seed=seed)).heavy > 0 for seed in range(6)]
    assert all(int(semantic.sum()) == 3 for semantic in made)
    assert (made[0] == (built(RandomHeads(seed=0)).heavy > 0)).all()
    assert len({tuple(semantic.flatten().tolist()) for semantic in made}) > 1
    assert LIMIT.spec.bytes_of(built(RandomHeads())) <= LIMIT.bytes
