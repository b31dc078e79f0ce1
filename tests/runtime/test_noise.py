"""The noise of an image is a function of seed, token and code, and as good as a random generator's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from headscope.models import Prefix
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.runtime.decoders.transformers import TransformersDecoder
from headscope.runtime.noise import LARGEST, Noise, gumbel

BITS = (1 << 32) - 1


def slow(seed: int, token: int, code: int) -> float:
    """With Python's integers, after the two papers."""

    def splitmix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    def lowbias(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    key = splitmix((splitmix(seed % 2**64) + token * 0x9E3779B97F4A7C15) % 2**64)
    bits = lowbias(lowbias((code * 0x9E3779B1) % 2**32 ^ (key & BITS)) ^ (key >> 32))
    return -math.log(-math.log(((bits >> 8) + 0.5) / 2**24))


@given(st.integers(-(2**70), 2**70), st.integers(0, 40), st.integers(0, 299))
@settings(max_examples=80, deadline=None)
def test_the_noise_is_what_the_papers_say(seed: int, token: int, code: int) -> None:
    found = Noise([0, seed, 5], 41, 300).at(token)
    assert found.shape == (3, 300)
    assert float(found[1, code]) == pytest.approx(slow(seed, token, code), rel=1e-4, abs=1e-5)
    assert float(found.max()) <= LARGEST + 1e-3


def test_all_numbers_that_there_are_are_finite_and_the_others_stay() -> None:
    largest = 2**24 - 1
    bits = torch.arange(2**24, dtype=torch.int64)
    found = gumbel(((bits << 8) - ((bits >> 23) << 32)).to(torch.int32))
    assert found.isfinite().all()
    assert float(found[largest]) == found.max() == pytest.approx(LARGEST, abs=1e-5)
    uniform = (torch.arange(largest).float() + 0.5) * 2.0**-24
    assert torch.equal(found[:largest], -(-uniform.log()).log())


@pytest.mark.parametrize("along", ["codes", "tokens", "seeds"])
def test_neighbours_are_independent_and_gumbel(along: str) -> None:
    count = 60_000
    if along == "codes":
        found = Noise([1], 1, count).at(0)[0]
    elif along == "tokens":
        noise = Noise([1], count // 10, 10)
        found = torch.cat([noise.at(token)[0] for token in range(count // 10)])
    else:
        found = Noise(range(count), 1, 1).at(0)[:, 0]
    numbers = found.double().numpy()
    assert stats.kstest(numbers, "gumbel_r").pvalue > 0.01
    uniform = np.exp(-np.exp(-numbers))
    for lag in (1, 2, 7, 16):
        assert abs(np.corrcoef(uniform[:-lag], uniform[lag:])[0, 1]) < 4 / math.sqrt(count)


def test_codes_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    count = 40_000
    codes = (logits + Noise(range(count), 1, 5).at(0)).argmax(-1)
    expected = count * torch.softmax(logits.double(), -1).numpy()
    assert stats.chisquare(np.bincount(codes.numpy(), minlength=5), expected).pvalue > 0.01


def test_an_image_does_not_hang_on_its_place_in_the_batch(tiny: JanusModel) -> None:
    prompts = ["red apple", "dog", "blue car", "red car"]
    together = generate(tiny, prompts, [5, 6, 7, 8])
    other = generate(tiny, [prompts[i] for i in (3, 1)], [8, 6], batch_size=1)
    assert torch.equal(together.tokens[[3, 1]], other.tokens)
    assert not torch.equal(generate(tiny, prompts, [6, 7, 8, 9]).tokens, together.tokens)


def test_prompts_of_one_length_are_generated_together(tiny: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, seeds, seen = ["red apple", "dog", "blue car", "dog", "red car"], [5, 6, 7, 8, 9], []

    def prefill(self: TransformersDecoder, prefix: Prefix, guided: bool) -> torch.Tensor:
        seen.append((list(prefix.texts), prefix.mask.clone()))
        return plain(self, prefix, guided)

    plain = TransformersDecoder.prefill
    together = generate(tiny, prompts, seeds, decoder="transformers")
    monkeypatch.setattr(TransformersDecoder, "prefill", prefill)
    found = generate(tiny, prompts, seeds, batch_size=2, decoder="transformers")
    assert torch.equal(found.tokens, together.tokens)
    assert (found.texts, found.seeds.tolist()) == (together.texts, seeds)
    drawn = [[text.split("<")[0] for text in texts] for texts, _ in seen]
    assert drawn == [["dog", "dog"], ["red apple", "blue car"], ["red car"]]
    assert all(bool(mask.all()) for _, mask in seen)  # nothing is padded


def test_blocks_ahead_are_the_noise_of_their_token() -> None:
    noise, jump = Noise([3, 4], 50, 8), Noise([3, 4], 50, 8)
    walked = torch.stack([noise.at(token) for token in range(50)])
    for token in (49, 0, 33, 31):
        assert torch.equal(jump.at(token), walked[token])
