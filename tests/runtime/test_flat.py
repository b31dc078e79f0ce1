"""The GPU's cache, in Triton's interpreter where there is no GPU: the CPU's cache is the reference."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

pytest.importorskip("triton")

from headscope.geometry import Geometry
from headscope.policy.policy import Policy
from headscope.policy.shape import ModelShape
from headscope.runtime.cache import CompressedCache
from headscope.runtime.decoders.flat_attention import KernelScratch, attend_flat, choose_flat
from headscope.runtime.decoders.flat_cache import FlatLayer
from tests.runtime.test_cache_meaning import SIZE, TOKENS, Module, policies, random_states, shape_of
from tests.runtime.test_quantized import SHAPE, policies as policies_with_bits, states

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PREFIX = 3


def run_reference(
    policy: Policy, q, k, v, mask=None, tokens: int = TOKENS, prefix: int = PREFIX
) -> tuple[torch.Tensor, CompressedCache]:
    from headscope.models.attention import attend_through_cache

    cache, outputs, at = CompressedCache(policy), [], 0
    for length in [prefix] + [1] * tokens:
        part = slice(at, at + length)
        keys, values = cache.update(k[:, :, part], v[:, :, part], 0)
        module = Module(q.shape[1] // k.shape[1])
        out, _ = attend_through_cache(module, q[:, :, part], keys, values, mask if at == 0 else None, scaling=0.7)
        outputs.append(out)
        at += length
    return torch.cat(outputs[1:], 1), cache


def unturned(positions: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles of no rotary embedding."""
    shape = (positions, size)
    return torch.ones(shape, dtype=dtype, device=DEVICE), torch.zeros(shape, dtype=dtype, device=DEVICE)


def run_flat(
    policy: Policy, q, k, v, splits: int, padding: list[int], tokens: int = TOKENS, prefix: int = PREFIX
) -> tuple[torch.Tensor, FlatLayer]:
    q, k, v = (tensor.to(DEVICE) for tensor in (q, k, v))
    angles = unturned(prefix + tokens, q.shape[-1], q.dtype)
    layer = FlatLayer(policy, 0, k[:, :, :prefix], torch.tensor(padding, dtype=torch.int32, device=DEVICE))
    layer.fill_prefix(k[:, :, :prefix], v[:, :, :prefix])
    scratch, outputs = KernelScratch([layer], splits), []
    for t in range(tokens):
        now = torch.tensor([t], dtype=torch.int32, device=DEVICE)
        qkv = torch.cat([tensor[:, :, prefix + t].flatten(1) for tensor in (q, k, v)], 1)
        outputs.append(attend_flat(layer, scratch, qkv, angles, now, 0.7).view(len(q), -1, q.shape[-1]))
        if (t + 1) % layer.stride == 0:
            choose_flat(layer, scratch, now)
    return torch.stack(outputs, 1).cpu(), layer


@pytest.mark.triton
@given(policies(), st.integers(0, 2**16), st.sampled_from([1, 3]))
@settings(max_examples=8, deadline=None)
def test_it_gives_what_the_cpu_gives(policy: Policy, seed: int, splits: int) -> None:
    q, k, v = (tensor.float() for tensor in random_states(seed, 2, 6, 3, PREFIX + TOKENS))
    expected, cache = run_reference(policy, q, k, v)
    found, layer = run_flat(policy, q, k, v, splits, [0, 0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert layer.nbytes() == cache.nbytes()


@pytest.mark.triton
@given(policies_with_bits(), st.integers(0, 2**16), st.sampled_from([1, 3]))
@settings(max_examples=8, deadline=None)
def test_fewer_bits_are_what_the_cpu_writes_and_reads(policy: Policy, seed: int, splits: int) -> None:
    compare_with_bits(policy, seed, splits)


def test_heads_of_unlike_bits_share_a_layer() -> None:
    bits = torch.tensor([[16, 8, 4]])
    for window, heavy in ((torch.tensor([[3, 0, 2]]), torch.tensor([[0, 4, 3]])), (torch.tensor([[2, 5, 4]]), 0)):
        compare_with_bits(Policy.uniform(SHAPE, window=window, heavy=heavy, anchor=1, bits=bits, stride=4, prefix=3), 5, 2)


def compare_with_bits(policy: Policy, seed: int, splits: int) -> None:
    q, k, v = (tensor.float() for tensor in states(seed))
    expected, cache = run_reference(policy, q, k, v)
    found, layer = run_flat(policy, q, k, v, splits, [0, 0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert layer.nbytes() == cache.nbytes()


def test_numbers_that_are_none_stay_so_in_fewer_bits() -> None:
    for bits in (8, 4):
        policy = Policy.uniform(SHAPE, window=TOKENS - 1, bits=bits, stride=4, prefix=3)
        for none in (float("nan"), float("inf")):
            q, k, v = (tensor.float() for tensor in states(1))
            k[0, 0, PREFIX + 1, 5] = none
            found, layer = run_flat(policy, q, k, v, 1, [0, 0], tokens=3)
            assert found[0, 0].isfinite().all()
            assert found[0, 1, :2].isnan().all()
            assert found[1].isfinite().all()
            assert not layer.kept()[2 if bits == 8 else 3].isfinite().all()


@pytest.mark.parametrize(("groups", "splits"), [(1, 1), (1, 3), (2, 2)])  # the first token leaves one of three parts empty
def test_padding_is_never_seen_and_groups_share(groups: int, splits: int) -> None:
    shape = shape_of(2 * groups, 2)
    policy = Policy.uniform(shape, window=torch.tensor([[3, 2]]), heavy=torch.tensor([[0, 2]]), stride=4, prefix=PREFIX)
    q, k, v = (tensor.float() for tensor in random_states(1, 2, 2 * groups, 2, PREFIX + TOKENS))
    mask = torch.ones(2, 1, PREFIX, PREFIX, dtype=torch.bool).tril()
    mask[1, :, :, :2] = False
    for row in range(2):
        mask[1, :, row, row] = True
    expected, _ = run_reference(policy, q, k, v, mask)
    found, _ = run_flat(policy, q, k, v, splits, [0, 2])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "size", "dtype"),
    [
        (20, 8, "float32"),
        (7, 100, "float32"),
        (32, 24, "float16"),
        (1, 256, "float32"),
        (2, 64, "float32"),
        (2, 96, "float32"),
        (1, 128, "float32"),
    ],
)
def test_groups_and_heads_of_other_sizes(groups: int, size: int, dtype: str) -> None:
    """All 32 query heads of a group are written, and heads whose size is no power of two."""
    shape = ModelShape("toy", 1, 3 * groups, 3, size, Geometry(4, 4), "a", "w")
    heavy, bits = torch.tensor([[0, 3, 2]]), torch.tensor([[16, 8, 4]])
    policy = Policy.uniform(shape, window=2, heavy=heavy, anchor=1, bits=bits, stride=4, prefix=PREFIX)
    generator = torch.Generator().manual_seed(groups)
    q, k, v = (torch.randn(1, h, PREFIX + TOKENS, size, generator=generator) * size**-0.25 for h in (3 * groups, 3, 3))
    q, k, v = (tensor.to(getattr(torch, dtype)) for tensor in (q, k, v))
    expected, _ = run_reference(policy, *(tensor.float() for tensor in (q, k, v)))
    found, _ = run_flat(policy, q, k, v, 1, [0])
    room = 2e-3 if dtype == "float16" else 1e-4
    torch.testing.assert_close(found.float(), expected, rtol=room, atol=room)


def test_bfloat16_is_near_float32() -> None:
    policy = Policy.uniform(shape_of(4, 2), window=2, heavy=torch.tensor([[0, 5]]), stride=4, prefix=PREFIX)
    q, k, v = (tensor.bfloat16() for tensor in random_states(3, 2, 4, 2, PREFIX + TOKENS))
    expected, _ = run_reference(policy, *(tensor.float() for tensor in (q, k, v)))
    found, layer = run_flat(policy, q, k, v, 1, [0, 0])
    assert found.dtype == layer.keys.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.01
    assert layer.size == SIZE


def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "headscope", "bench", "kernels", "--few", "-o", str(tmp_path / "kernels.csv")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    rows = list(csv.DictReader((tmp_path / "kernels.csv").read_text().splitlines()))
    assert {row["kernel"] for row in rows} == KERNELS
    plain = next(
        row for row in rows if row["kernel"] == "attend" and row["constants"].endswith("eight=False four=False exact=False")
    )
    assert int(plain["instructions"]) < 400
    assert int(plain["barriers"]) < 12
    assert not [row for row in rows if int(row["spilled"])]


KERNELS = {"attend", "combine", "choose", "rms_norm", "silu_times_up", "floor_of", "draw", "settle"}
