"""Bytes by hand, limits with their sentences, and the projection's promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.errors import BudgetError
from headscope.policy import PRESETS, CacheSpec, Limit, Policy, fit, make_preset, project
from headscope.policy.footprint import parse_share, parse_size
from tests.policy.shapes import SHAPE

PREFIX = 5
TOKEN = 2 * 8 * 2  # keys and values of one token in one head, two bytes a number


def test_bytes_by_hand() -> None:
    policy = Policy.uniform(SHAPE, window=4, heavy=3, anchor=1, stride=6, prefix=PREFIX)
    head = (5 + 1 + 4 + 3 + 6) * TOKEN + (4 + 3 + 6) * 8
    assert CacheSpec(policy.shape, policy.prefix, batch=3).bytes_of(policy) == 3 * 2 * 12 * head
    assert CacheSpec(policy.shape, policy.prefix, dtype="float32").bytes_of(policy) == 2 * 12 * (
        (5 + 1 + 4 + 3 + 6) * 2 * TOKEN + 13 * 8
    )
    assert CacheSpec(policy.shape, policy.prefix, count_prefix=False).bytes_of(policy) == 2 * 12 * (head - 5 * TOKEN)
    assert CacheSpec(SHAPE, PREFIX).full_bytes == 2 * 12 * 41 * TOKEN
    assert CacheSpec(SHAPE, PREFIX, count_prefix=False).full_bytes == 2 * 12 * 36 * TOKEN
    full = Policy.uniform(SHAPE, window=35, stride=1, prefix=PREFIX)
    assert CacheSpec(full.shape, full.prefix).share_of(full) == 1.0


@pytest.mark.parametrize(("text", "share"), [("20%", 0.2), ("0.2", 0.2), (0.2, 0.2), (" 100% ", 1.0), ("12.5%", 0.125)])
def test_shares_are_read(text: str | float, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "size"), [("12MiB", 12 * 2**20), ("300MB", 300_000_000), ("1.5GiB", 3 * 2**29), ("4096", 4096), ("2kb", 2000)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["twenty", "", "-5%", "0%", "120%", "nan"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match=r"^keep "):
        parse_share(text)


@pytest.mark.parametrize("text", ["12 apples", "", "-4", "1.2.3MB", "MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match=r"^memory "):
        parse_size(text)


def test_a_limit_below_the_smallest_says_what_that_is() -> None:
    smallest = CacheSpec(SHAPE, PREFIX).smallest_bytes
    four_bits = 2 * (4 + 4)  # of a key and a value, with scale and zero
    assert smallest == 2 * 12 * (2 * TOKEN + four_bits)
    assert CacheSpec(SHAPE, PREFIX).smallest_of((16, 4), whole_prompt=True) == 2 * 12 * (5 * TOKEN + four_bits)
    assert CacheSpec(SHAPE, PREFIX).smallest_of((16,), whole_prompt=True) == 2 * 12 * 6 * TOKEN
    with pytest.raises(BudgetError, match=r"the smallest possible is 6\.1% \(1,920 bytes\)"):
        Limit.of_share("6%", CacheSpec(SHAPE, PREFIX))
    with pytest.raises(BudgetError, match="the smallest possible is 1,920 bytes"):
        Limit.of_memory(1_900, CacheSpec(SHAPE, PREFIX))
    assert Limit.of_memory(smallest, CacheSpec(SHAPE, PREFIX)).bytes == smallest
    with pytest.raises(BudgetError, match="more than the full cache"):
        Limit.of_memory("1MiB", CacheSpec(SHAPE, PREFIX))


@pytest.mark.parametrize(("text", "nbytes"), [("50%", 15744), ("0.5", 15744), (0.5, 15744), ("15KiB", 15360), (10_000, 10_000)])
def test_a_limit_is_a_share_or_a_size(text: str | float, nbytes: int) -> None:
    limit = Limit.parse(text, CacheSpec(SHAPE, PREFIX))
    assert limit.bytes == nbytes
    assert limit.share == (0.5 if nbytes == 15744 else None)
    assert Limit.from_dict(limit.to_dict(), SHAPE) == limit


@pytest.mark.parametrize(("dtype", "number"), [("float32", 4), ("float64", 8), ("bfloat16", 2), ("float16", 2)])
def test_a_share_counts_two_bytes_a_number_and_a_size_those_of_the_run(dtype: str, number: int) -> None:
    spec = CacheSpec(SHAPE, PREFIX, batch=3, dtype=dtype, count_prefix=False)
    plain = 3 * 2 * 12 * 36 * 2 * 8  # numbers of a plain cache: images, streams, heads, tokens, keys and values
    share, size = Limit.of_share("50%", spec), Limit.of_memory(plain * number // 2, spec)
    assert share.bytes == plain
    assert share.spec == spec.replace(dtype=dtype if number == 2 else "bfloat16")
    assert size.spec == spec
    policy = make_preset("streaming", share)
    assert share.bytes * 0.9 < share.spec.bytes_of(policy) <= share.bytes
    assert make_preset("streaming", size).same_as(policy)


@pytest.mark.parametrize("text", ["120%", "half", "0.1%", "1GiB"])
def test_a_limit_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(BudgetError):
        Limit.parse(text, CacheSpec(SHAPE, PREFIX))


@pytest.mark.parametrize(("name", "value"), [("prefix", -1), ("batch", 0), ("streams", 0), ("dtype", "int4")])
def test_what_no_cache_is_counted_for_is_refused(name: str, value: object) -> None:
    with pytest.raises(BudgetError, match=f"^{name} "):
        CacheSpec(SHAPE, PREFIX).replace(**{name: value})


weights = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), min_size=12, max_size=12)
strides = st.sampled_from([1, 3, 6, 12])


def spent(window: torch.Tensor, heavy: torch.Tensor, stride: int, limit: Limit, anchor: int) -> int:
    anchors = np.where((window + heavy).numpy() >= 35, 0, anchor)
    return int(limit.spec.head_bytes(window.numpy(), heavy.numpy(), anchors, stride).sum())


@given(weights, weights, strides, st.floats(0.2, 1.0), st.sampled_from([0, 2]))
@settings(max_examples=150, deadline=None)
def test_a_projection_fits_and_wastes_less_than_a_step(
    window: list[float], heavy: list[float], stride: int, keep: float, anchor: int
) -> None:
    limit = Limit.of_share(keep, CacheSpec(SHAPE, PREFIX))
    ww, wh = torch.tensor(window).view(3, 4), torch.tensor(heavy).view(3, 4)
    try:
        kept_window, kept_heavy = project(ww, wh, limit, stride=stride, anchor=anchor)
    except BudgetError:
        least = spent(torch.zeros(3, 4, dtype=torch.int32), (wh > 0).int(), stride, limit, anchor)
        assert least > limit.per_row
        return
    assert spent(kept_window, kept_heavy, stride, limit, anchor) <= limit.per_row
    assert bool((kept_window[ww == 0] == 0).all())
    assert bool((kept_heavy[wh == 0] == 0).all())
    for layer in range(3):
        proposed = len(set(zip(ww[layer].tolist(), wh[layer].tolist(), strict=True)))
        assert len(set(zip(kept_window[layer].tolist(), kept_heavy[layer].tolist(), strict=True))) <= proposed
    full = (kept_window + kept_heavy >= 35) | ((ww == 0) & (wh == 0))
    if not bool(full.all()):
        largest_step = 4 * 2 * (TOKEN + 8)  # a group of four heads takes one window and one heavy token each
        assert limit.per_row - spent(kept_window, kept_heavy, stride, limit, anchor) < largest_step


@given(weights, weights, strides, st.lists(st.floats(0.2, 1.0), min_size=2, max_size=2))
@settings(max_examples=150, deadline=None)
def test_a_larger_limit_never_takes_a_token_away(
    window: list[float], heavy: list[float], stride: int, keeps: list[float]
) -> None:
    ww, wh = torch.tensor(window).view(3, 4), torch.tensor(heavy).view(3, 4)
    small, large = sorted(keeps)
    try:
        less = project(ww, wh, Limit.of_share(small, CacheSpec(SHAPE, PREFIX)), stride=stride)
    except BudgetError:
        return
    more = project(ww, wh, Limit.of_share(large, CacheSpec(SHAPE, PREFIX)), stride=stride)
    assert bool((more[0] + more[1] >= less[0] + less[1]).all())


@given(weights, weights, strides, st.floats(0.2, 1.0), st.sampled_from([0, 2]))
@settings(max_examples=300, deadline=None)
def test_projecting_a_projection_changes_nothing(
    window: list[float], heavy: list[float], stride: int, keep: float, anchor: int
) -> None:
    limit = Limit.of_share(keep, CacheSpec(SHAPE, PREFIX))
    ww, wh = torch.tensor(window).view(3, 4), torch.tensor(heavy).view(3, 4)
    try:
        once = project(ww, wh, limit, stride=stride, anchor=anchor)
    except BudgetError:
        return
    twice = project(*once, limit, stride=stride, anchor=anchor)
    assert torch.equal(twice[0], once[0])
    assert torch.equal(twice[1], once[1])


def test_whole_tokens_grow_where_the_limit_leaves_more_than_a_step() -> None:
    counts = torch.full((3, 4), 2), torch.ones(3, 4)
    window, heavy = project(*counts, Limit.of_share(0.9, CacheSpec(SHAPE, PREFIX)), stride=3)
    assert int(window.min()) > 10
    assert int((heavy - window // 2).abs().max()) <= 1


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("full", "kivi", "tova")])
@pytest.mark.parametrize("keep", [0.35, 0.5, 0.8])
def test_presets_fill_their_limit(name: str, keep: float) -> None:
    scores = torch.linspace(0, 1, 12).view(3, 4)
    limit = Limit.of_share(keep, CacheSpec(SHAPE, PREFIX))
    variants = PRESETS[name].sweep(SHAPE.geometry)
    assert len(variants) >= 5
    fitting = 0
    for variant in variants:
        try:
            policy = variant.build(limit, scores)
        except BudgetError:
            continue
        fitting += 1
        assert 0.9 * limit.bytes < CacheSpec(policy.shape, policy.prefix).bytes_of(policy) <= limit.bytes
        assert policy.provenance["method"] == name
    assert fitting >= 2


def test_kivi_keeps_everything_at_its_own_size_and_is_refused_below() -> None:
    limit = Limit.of_share(0.7, CacheSpec(SHAPE, PREFIX))
    eight, four = PRESETS["kivi"].sweep(SHAPE.geometry)
    policy = four.build(limit)
    assert policy.keeps_everything
    assert (policy.bits == 4).all()
    with pytest.raises(BudgetError, match=r"preset kivi: takes .* expected keep \d+.* or more"):
        eight.build(limit)


def test_bits_are_counted_and_projected() -> None:
    spec = CacheSpec(SHAPE, PREFIX)
    size = SHAPE.head_dim
    assert spec.head_bytes(5, 0, 2, 6, 8) == (PREFIX + 2) * 4 * size + 6 * (2 * size + 8)
    assert spec.head_bytes(5, 3, 0, 6, 4) == PREFIX * 4 * size + 14 * (size + 8 * -(-size // 32) + 8)
    one, limit = torch.ones(3, 4), Limit.of_share(0.6, spec)
    for bits in (16, 8, 4, torch.tensor([[16, 8, 4, 4]] * 3, dtype=torch.uint8)):
        window, heavy = project(one, one, limit, stride=3, bits=bits)
        assert 0 <= limit.per_row - spec.head_bytes(window, heavy, 0, 3, bits).sum() < 12 * 4 * size * 2
    sizes = [int(project(one, 0 * one, limit, stride=3, bits=bits)[0].sum()) for bits in (16, 8, 4)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_prompts_are_counted_and_projected() -> None:
    spec = CacheSpec(SHAPE, 10)
    size, prompt = SHAPE.head_dim, torch.tensor([[1, 0, 0, 1]] * 3)
    assert spec.head_bytes(5, 3, 1, 6, 8, prompt[0].numpy()).tolist() == [
        (kept + 1) * 4 * size + 14 * (2 * size + 8 + 8) for kept in (10, 2, 2, 10)
    ]
    for other, kept in ((spec.replace(prefix=2), 2), (spec.replace(prefix=0), 0), (spec.replace(count_prefix=False), 0)):
        assert other.head_bytes(5, 0, 0, 1, 16, 0) == (kept + 6) * 4 * size
    folds = CacheSpec(replace(SHAPE, folds_prefix=True), 10)
    assert folds.head_bytes(5, 0, 0, 1, 16, 0) == folds.head_bytes(5, 0, 0, 1) == 7 * 4 * size
    limit, one = Limit.of_share(0.6, spec), torch.ones(3, 4)
    window, heavy = project(one, one, limit, stride=3, prompt=prompt)
    assert 0 <= limit.per_row - spec.head_bytes(window, heavy, 0, 3, 16, prompt).sum() < 12 * 4 * size * 2
    assert window.sum() > project(one, one, limit, stride=3)[0].sum()
    policy = fit(one, one, limit, stride=3, prompt=prompt)
    assert policy.prompt.tolist() == prompt.tolist()
    assert spec.bytes_of(policy) <= limit.bytes


def test_presets_are_what_their_papers_say() -> None:
    scores = torch.linspace(0, 1, 12).view(3, 4)
    limit = Limit.of_share(0.6, CacheSpec(SHAPE, PREFIX))
    made = {name: make_preset(name, limit, scores) for name in PRESETS if name not in ("full", "kivi")}
    assert made["streaming"].heavy.sum() == 0
    assert (made["streaming"].anchor == 4).all()
    assert (made["h2o"].window == made["h2o"].heavy).all()
    assert made["h2o"].stride == 1
    assert (made["h2o"].decay == 1).all()
    assert (made["linear_ar"].decay == 0).all()
    assert made["linear_ar"].stride == 6
    assert (made["tova"].window == 0).all()
    assert (made["tova"].decay == 0).all()
    assert made["tova"].stride == 1
    by_layer = (made["pyramid"].window + made["pyramid"].heavy).float().mean(1)
    assert by_layer[0] > by_layer[1] > by_layer[2]
    semantic = scores > 0.5
    assert (made["ssd"].window[semantic] == 0).all()
    assert (made["ssd"].heavy[~semantic] == 0).all()
    full = make_preset("full", replace(limit, bytes=CacheSpec(SHAPE, PREFIX).full_bytes))
    assert full.keeps_everything
    with pytest.raises(BudgetError, match="preset full: takes"):
        make_preset("full", limit)
