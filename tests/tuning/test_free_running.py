"""A policy on its own trajectories: as a replay of the images that it generated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headscope.errors import PolicyMismatch
from headscope.models.janus import JanusModel
from headscope.policy import Policy
from headscope.runtime import Sampling, generate
from headscope.samples import Samples
from headscope.tuning import Replay, measure_free_running
from tests.tiny import tiny_model

PROMPTS = ["red apple", "a blue car on a red background", "dog"]  # of unlike lengths: rows are padded


@pytest.fixture(scope="module", params=[Sampling(3.0), Sampling(1.0, temperature=0.7, top_k=5)])
def recorded(tiny: JanusModel, request: pytest.FixtureRequest) -> Samples:
    return generate(tiny, PROMPTS, [3, 4, 5], sampling=request.param)


def policy_for(model: JanusModel, window: int, heavy: int = 0) -> Policy:
    return Policy.uniform(model.shape, window=window, heavy=heavy, decay=0.5, stride=4, prefix=12)


@pytest.mark.parametrize(("window", "heavy"), [(3, 0), (1, 3)])
def test_it_is_the_replay_of_what_the_policy_generates(tiny: JanusModel, recorded: Samples, window: int, heavy: int) -> None:
    policy = policy_for(tiny, window, heavy)
    sampling = Sampling(recorded.guidance, recorded.temperature, recorded.top_k)
    own = generate(tiny, PROMPTS, [3, 4, 5], sampling=sampling, policy=policy)
    assert not torch.equal(own.tokens, recorded.tokens)
    expected = Replay(tiny, own).measure(policy)
    for batch_size in (None, 2):
        found = measure_free_running(tiny, recorded, policy, batch_size=batch_size)
        torch.testing.assert_close(found.divergence, expected.divergence, rtol=1e-3, atol=1e-5)
        assert torch.equal(found.agreement, expected.agreement)
        assert batch_size or found.cache_bytes == expected.cache_bytes  # a batch of shorter prompts takes less
    assert found.kl > 1e-3


def test_everything_kept_loses_nothing(tiny: JanusModel, recorded: Samples) -> None:
    assert measure_free_running(tiny, recorded, policy_for(tiny, 15)).kl == pytest.approx(0, abs=1e-6)


def test_tokens_of_the_samples_do_not_matter(tiny: JanusModel, recorded: Samples) -> None:
    policy = policy_for(tiny, 2)
    other = replace(recorded, tokens=torch.zeros_like(recorded.tokens))
    found = [measure_free_running(tiny, samples, policy).divergence for samples in (recorded, other)]
    assert torch.equal(*found)


def test_another_models_policy_is_refused(tiny: JanusModel, recorded: Samples) -> None:
    with pytest.raises(PolicyMismatch):
        measure_free_running(tiny, recorded, policy_for(tiny_model(side=8), 3))
