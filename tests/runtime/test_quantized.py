"""Numbers in 8 and 4 bits: written as the definition says, packed as accounted, attended to as read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.errors import NumberError
from headscope.geometry import Geometry
from headscope.models import observe
from headscope.models.attention import attend_through_cache
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec, ModelShape, Policy, load_policy, save_policy
from headscope.runtime import CompressedCache, Sampling, compressed, generate
from headscope.runtime.quantized import BLOCK, QuantizedSlots, dequantize, quantize
from headscope.tuning import Replay
from tests.runtime.oracle import OracleHead, read_back, written
from tests.runtime.test_cache_meaning import Module

SIZES = (1, 2, 7, 24, 31, 32, 33, 64, 100, 128)
ROWS, COLS, SIZE = 4, 4, 36  # two groups at 4 bits, the second shorter
TOKENS = ROWS * COLS
SHAPE = ModelShape("toy", 1, 6, 3, SIZE, Geometry(ROWS, COLS), "a", "w")


def numbers(draw: st.DrawFn, size: int) -> list[float]:
    kind = draw(st.sampled_from(["plain", "constant", "huge", "zeros", "tiny", "mixed"]))
    if kind == "constant":
        return [draw(st.floats(-100, 100, width=32))] * size
    if kind == "zeros":
        return [draw(st.sampled_from([0.0, -0.0])) for _ in range(size)]
    if kind == "tiny":  # scales and zeros below what float16 holds as a normal number
        return [draw(st.floats(-(2.0**-20), 2.0**-20, width=32)) for _ in range(size)]
    found = [draw(st.floats(-8, 8, width=32)) for _ in range(size)]
    if kind == "huge":
        found[draw(st.integers(0, size - 1))] = draw(st.sampled_from([60_000.0, -60_000.0]))
    return found


@st.composite
def rows(draw: st.DrawFn) -> list[float]:
    return numbers(draw, draw(st.sampled_from(SIZES)))


@given(rows(), st.sampled_from([8, 4]))
@settings(max_examples=300, deadline=None)
def test_numbers_are_written_as_the_definition_says(row: list[float], bits: int) -> None:
    codes, scale, zero = quantize(torch.tensor(row), bits)
    expected, scales, zeros = written(row, bits)
    assert scale.tolist() == scales
    assert zero.tolist() == zeros
    one_by_one = codes.tolist() if bits == 8 else [byte >> 4 * half & 15 for byte in codes.tolist() for half in (0, 1)]
    assert one_by_one[: len(row)] == expected
    assert codes.numel() == (len(row) * bits + 7) // 8
    found = dequantize(codes, scale, zero, len(row), torch.float32)
    torch.testing.assert_close(found, torch.tensor(read_back(row, bits), dtype=torch.float32), rtol=1e-6, atol=1e-9)


@given(rows(), st.sampled_from([8, 4]))
@settings(max_examples=200, deadline=None)
def test_what_is_read_back_is_within_a_step(row: list[float], bits: int) -> None:
    codes, scale, zero = quantize(torch.tensor(row), bits)
    found = dequantize(codes, scale, zero, len(row), torch.float64).numpy()
    width = len(row) if bits == 8 else 32
    for begin in range(0, len(row), width):
        group, back = np.array(row[begin : begin + width]), found[begin : begin + width]
        # Half a step, and what float16 rounds off the zero, the scale and with it the largest number.
        room = 0.5 * (group.max() - group.min()) / (2**bits - 1) + 2e-3 * np.abs(group).max() + 2e-5
        assert np.abs(back - group).max() <= room


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4])
def test_half_precision_is_written_from_its_own_numbers(dtype: torch.dtype, bits: int) -> None:
    given_numbers = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    for row, found in zip(given_numbers, quantize(given_numbers, bits)[1], strict=True):
        assert found.tolist() == written(row.float().tolist(), bits)[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e6])
def test_numbers_that_no_scale_holds_are_refused(bad: float) -> None:
    slots = QuantizedSlots(torch.zeros(1, 2, 1, 8), 2, 4, 8)
    row = torch.zeros(1, 2, 1, 8)
    row[0, 1, 0, 3] = bad
    with pytest.raises(NumberError, match="beyond what a scale in float16 holds"):
        slots.write(0, row)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    def per_head(element: st.SearchStrategy) -> torch.Tensor:
        return torch.tensor([draw(st.lists(element, min_size=3, max_size=3))])

    return Policy.uniform(
        SHAPE,
        window=per_head(st.sampled_from([0, 1, 2, 3, 5, 8, TOKENS - 1])),
        heavy=per_head(st.sampled_from([0, 0, 1, 2, 6, TOKENS])),
        anchor=per_head(st.sampled_from([0, 0, 1, 3, 6])),
        decay=per_head(st.sampled_from([0.0, 0.5, 1.0])),
        per_visit=per_head(st.sampled_from([0, 1])),
        bits=per_head(st.sampled_from([16, 8, 4])),
        stride=draw(st.sampled_from([1, 2, 4, 8, 16])),
        prefix=3,
    )


def states(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, h, 3 + TOKENS, SIZE, generator=generator, dtype=torch.float64) for h in (6, 3, 3))


def run_cache(policy: Policy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    cache, outputs, at = CompressedCache(policy), [], 0
    for length in [3, *lengths]:
        part = slice(at, at + length)
        keys, values = cache.update(k[:, :, part], v[:, :, part], 0)
        outputs.append(attend_through_cache(Module(2), q[:, :, part], keys, values, None, scaling=0.2)[0])
        at += length
    assert cache.nbytes() == CacheSpec(SHAPE, 3, batch=2, streams=1, dtype="float64").bytes_of(policy)
    return torch.cat(outputs[1:], 1)


@given(policies(), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_every_head_attends_to_what_the_oracle_says(policy: Policy, seed: int) -> None:
    q, k, v = states(seed)
    found = run_cache(policy, q, k, v, [1] * TOKENS)
    expected = torch.zeros_like(found)
    for b in range(2):
        for h in range(3):
            head = OracleHead(
                prefix_keys=k[b, h, :3].tolist(),
                prefix_values=v[b, h, :3].tolist(),
                window=int(policy.window[0, h]),
                heavy=int(policy.heavy[0, h]),
                anchor=int(policy.anchor[0, h]),
                decay=float(policy.decay[0, h]),
                per_visit=bool(policy.per_visit[0, h]),
                stride=policy.stride,
                bits=int(policy.bits[0, h]),
            )
            for t in range(TOKENS):
                asked = q[b, 2 * h : 2 * h + 2, 3 + t].tolist()
                outputs, _ = head.step(asked, k[b, h, 3 + t].tolist(), v[b, h, 3 + t].tolist(), 0.2)
                expected[b, t, 2 * h : 2 * h + 2] = torch.tensor(outputs, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@given(policies(), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_chunks_give_what_single_tokens_give(policy: Policy, seed: int) -> None:
    q, k, v = states(seed)
    single = run_cache(policy, q, k, v, [1] * TOKENS)
    stride = min(policy.stride, TOKENS)
    torch.testing.assert_close(run_cache(policy, q, k, v, [stride] * (TOKENS // stride)), single, rtol=1e-5, atol=1e-5)


def mixed(tiny: JanusModel, bits: int | torch.Tensor = 8) -> Policy:
    window, heavy = torch.tensor([[5, 1], [0, 3]]), torch.tensor([[0, 3], [4, 0]])
    return Policy.uniform(tiny.shape, window=window, heavy=heavy, anchor=1, decay=0.9, bits=bits, stride=4, prefix=12)


def test_every_decoder_generates_the_same(tiny: JanusModel) -> None:
    policy = mixed(tiny, torch.tensor([[8, 4], [4, 16]]))
    fast, plain = (
        generate(tiny, ["red apple", "a blue car"], 3, policy=policy, decoder=name) for name in ("auto", "transformers")
    )
    assert torch.equal(fast.tokens, plain.tokens)
    alone = generate(tiny, ["red apple", "a blue car"], 3, policy=policy, batch_size=1)
    assert (alone.tokens == fast.tokens).float().mean() > 0.9  # rounding of other batches may tip a step of a number


def test_eight_bits_of_everything_lose_less_than_four(tiny: JanusModel) -> None:
    replay = Replay(tiny, generate(tiny, ["red apple", "dog"], 0))
    whole = Policy.uniform(tiny.shape, window=15, stride=4, prefix=12)
    losses = [replay.measure(whole.replace(bits=torch.full_like(whole.bits, bits))).kl for bits in (16, 8, 4)]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert 0 < losses[1] < losses[2]


def test_beams_and_observers_see_what_is_read_back(tiny: JanusModel) -> None:
    policy, prefix = mixed(tiny), tiny.tokenize(["dog"])
    seen: list[torch.Tensor] = []
    with (
        torch.inference_mode(),
        compressed(tiny, policy),
        observe(tiny.decoder, lambda layer, groups: seen.append(groups[0].k)),
    ):
        cache = CompressedCache(policy)
        tiny.forward(tiny.embed_prefix(prefix.ids), prefix.mask, cache)
        token = tiny.embed_tokens(torch.tensor([[3]]))
        mask = torch.ones(1, prefix.ids.shape[1] + 1, dtype=torch.long)
        tiny.forward(token, mask, cache)
        tiny.forward(token, torch.ones(1, prefix.ids.shape[1] + 2, dtype=torch.long), cache)
        before = cache.nbytes()
        cache.reorder_cache(torch.tensor([0, 0]))
    shown = seen[-2][0, 0, -2]  # the first layer's key of image token 1 of 2: an anchor is token 0
    assert cache.nbytes() == 2 * before
    assert torch.isfinite(shown).all()


def test_nan_in_a_layer_names_the_layer(tiny: JanusModel) -> None:
    policy = mixed(tiny).replace(anchor=torch.zeros(2, 2, dtype=torch.int32))
    cache = CompressedCache(policy)
    keys = torch.zeros(1, 2, 3, 8)
    with compressed(tiny, policy):
        for length, fill in ((3, 0.0), (1, float("nan"))):
            made, values = cache.update(keys[:, :, :length] + fill, keys[:, :, :length], 1)
            if length == 3:
                attend_through_cache(Module(2), torch.zeros(1, 4, length, 8), made, values, None, scaling=1.0)
                continue
            with pytest.raises(NumberError, match="Layer 1: keys or values of image token 0 are NaN"):
                attend_through_cache(Module(2), torch.zeros(1, 4, length, 8), made, values, None, scaling=1.0)


def test_a_file_says_what_it_needs_and_comes_back(tiny: JanusModel, tmp_path) -> None:
    policy = mixed(tiny, torch.tensor([[8, 4], [4, 16]]))
    again = load_policy(save_policy(policy, tmp_path / "p.safetensors"), tiny.shape)
    assert again.same_as(policy)
    assert not again.same_as(mixed(tiny, 16))
    assert again.accounting()["bytes"] == policy.spec().bytes_of(policy) < mixed(tiny, 16).accounting()["bytes"]


def test_no_more_than_a_block_is_read_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ModelShape("wide", 1, 2, 2, SIZE, Geometry(16, 16), "a", "w")
    policy = Policy.uniform(shape, window=255, bits=8, stride=16, prefix=3)
    read: list[int] = []
    whole = QuantizedSlots._groups

    def counted(self: QuantizedSlots, start: int, stop: int) -> object:
        read.append(stop - start)
        return whole(self, start, stop)

    monkeypatch.setattr(QuantizedSlots, "_groups", counted)
    monkeypatch.setattr(QuantizedSlots, "read", None)
    generator = torch.Generator().manual_seed(0)
    cache = CompressedCache(policy)
    for layer in cache.compressed_layers:
        layer.lazy_initialization(torch.randn(1, 2, 3, SIZE, generator=generator), torch.zeros(1, 2, 3, SIZE))
        layer.seen = 3
        for _ in range(200):
            layer.step(*(torch.randn(1, 2, SIZE, generator=generator) for _ in range(3)), 0.2)
    assert max(read) == BLOCK


def test_greedy_tokens_differ_in_few_places_from_sixteen_bits(tiny: JanusModel) -> None:
    whole = Policy.uniform(tiny.shape, window=15, stride=4, prefix=12)
    one, other = (
        generate(tiny, ["dog"], 0, policy=policy, sampling=Sampling(temperature=0.0)).tokens
        for policy in (whole, whole.replace(bits=torch.full_like(whole.bits, 8)))
    )
    assert (one == other).float().mean() > 0.5
