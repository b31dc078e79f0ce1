"""Guidance and sampling by their definitions, and numbers out of range."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headscope.errors import DataError
from headscope.models.janus import JanusModel
from headscope.runtime import Sampling, generate, guide, sample


def test_guidance_is_the_unconditional_logits_and_so_many_times_the_difference() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])  # conditional, unconditional
    assert guide(logits, 3.0).tolist() == [[1.0 + 3 * (2.0 - 1.0), 3.0 + 3 * (0.0 - 3.0)]]
    assert guide(logits, 0.0).tolist() == [[1.0, 3.0]]
    assert guide(logits, 1.0) is logits  # one stream: both rows are images
    assert guide(logits.bfloat16(), 3.0).dtype == torch.float32
    of_positions = torch.randn(4, 5, 3)  # as a replay has them: [streams * n, positions, codes]
    torch.testing.assert_close(guide(of_positions, 2.0), 2 * of_positions[:2] - of_positions[2:])


def test_noise_temperature_and_top_k_decide() -> None:
    logits, noise = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.5, 9.0]])
    assert sample(logits, None, temperature=0.0)[0].tolist() == [0]
    assert sample(logits, noise)[0].tolist() == [2]
    assert sample(logits, noise, top_k=2)[0].tolist() == [1]  # 2.5 against 2
    assert sample(logits, noise, top_k=1)[0].tolist() == [0]
    assert sample(logits, noise, temperature=0.1, top_k=2)[0].tolist() == [0]  # 20 against 11.5
    assert not sample(torch.tensor([[torch.nan, 1.0]]), None, temperature=0.0)[1].any()


def test_what_is_not_given_is_the_models_own(tiny: JanusModel) -> None:
    found = Sampling(temperature=0.5).of(tiny)
    assert (found.guidance, found.temperature, found.top_k) == (tiny.guidance, 0.5, tiny.top_k)
    assert (found.guided, found.streams) == (True, 2)
    assert Sampling(guidance=1).of(tiny).streams == 1


def test_seeds_are_one_an_image() -> None:
    assert Sampling(seed=5).seeds(3) == [5, 6, 7]
    assert Sampling(seed=[9, 2]).seeds(2) == [9, 2]
    assert hash(Sampling(seed=[9, 2])) == hash(Sampling(seed=(9, 2)))
    with pytest.raises(DataError, match="2 seeds for 3 prompts"):
        Sampling(seed=[9, 2]).seeds(3)
    with pytest.raises(DataError, match="64 bits"):
        Sampling(seed=2**63 - 2).seeds(3)
    assert Sampling(seed=2**63 - 2).seeds(2) == [2**63 - 2, 2**63 - 1]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": -0.1}, "guidance"),
        ({"temperature": 101}, "temperature"),
        ({"top_k": 0}, "top-k"),
        ({"seed": 2**63}, "seed"),
        ({"seed": [0, -(2**63) - 1]}, "seed"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        Sampling(**wrong)


def test_more_codes_than_there_are_are_refused(tiny: JanusModel) -> None:
    with pytest.raises(DataError, match="top-k 17: expected 1 to 16"):
        generate(tiny, ["dog"], sampling=Sampling(top_k=17))
