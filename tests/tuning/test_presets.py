"""Presets with fewer bits stand beside the published ones, and KVTuner's bits by layer are the best there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from headscope.errors import BudgetError
from headscope.policy import CONTROLS, CacheSpec, Limit, Policy
from headscope.tuning import sweep_presets
from headscope.tuning.measure.options import Losses, Option
from headscope.tuning.propose.kvtuner import kvtuner
from headscope.tuning.propose.presets import AGAIN, COMPARED, WITH_BITS, Sweep, in_bits
from tests.tuning.landscape import LIMIT, PREFIX, SCORES, SHAPE, Landscape

SPEC, EVERYTHING = CacheSpec(SHAPE, PREFIX), SHAPE.geometry.tokens - 1


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return sweep_presets(Landscape(), LIMIT, SCORES, bits=(16, 8, 4))


def test_presets_stand_as_published_and_with_the_best_of_their_fewer_bits(sweep: Sweep) -> None:
    plain = sweep_presets(Landscape(), LIMIT, SCORES)
    assert all(sweep.best[name].same_as(policy) for name, policy in plain.best.items())
    packed = {name for name in sweep.best if name.endswith(WITH_BITS)}
    assert packed == {f"{name}{WITH_BITS}" for name in plain.best if name not in (*CONTROLS, "kivi")}
    for name in packed:
        policy, mine = sweep.best[name], sweep.table[sweep.table["method"] == name]
        least = mine.loc[mine["kl"].idxmin()]
        assert policy.fingerprint() == least["fingerprint"]
        assert least["variant"].endswith(f", {int(policy.bits.max())} bits")
        assert len(policy.bits.unique()) == 1
        assert LIMIT.bytes * 0.9 < SPEC.bytes_of(policy) <= LIMIT.bytes
        published = plain.best[name.removesuffix(WITH_BITS)]
        assert int((policy.window + policy.heavy).sum()) > int((published.window + published.heavy).sum())


def test_fewer_bits_are_tried_on_the_variants_that_lose_least(sweep: Sweep) -> None:
    table = sweep.table[sweep.table["fits"]]
    for name in ("streaming", "h2o", "ssd"):
        published = table[table["method"] == name].sort_values("at_least", kind="stable")["variant"].head(AGAIN)
        again = table.loc[table["method"] == f"{name}{WITH_BITS}", "variant"]
        assert set(again) == {f"{variant}, {bits} bits" for variant in published for bits in (8, 4)}
    few = sweep_presets(Landscape(), LIMIT, SCORES, names=("h2o",), bits=(16, 8), quick=True).table
    assert list(few["method"]) == ["h2o", f"h2o{WITH_BITS}"]


def test_presets_that_say_their_bits_have_no_others() -> None:
    large = Limit.of_share(0.9, SPEC)
    kivi = sweep_presets(Landscape(), large, SCORES, names=("kivi",), bits=(16, 8)).table
    assert list(kivi.loc[kivi["fits"], "variant"]) == ["bits 8", "bits 4"]
    assert {"kivi", "tova"} < set(COMPARED)


def test_a_preset_in_fewer_bits_keeps_more_tokens_in_the_same_bytes() -> None:
    policy = Policy.uniform(SHAPE, window=10, heavy=4, anchor=1, stride=2, prefix=PREFIX)
    fewer, more = in_bits(policy, LIMIT, 8), in_bits(policy, LIMIT, 4)
    assert bool((more.window > fewer.window).all())
    assert {*fewer.bits.flatten().tolist()} == {8}
    assert SPEC.bytes_of(fewer) <= LIMIT.bytes
    assert SPEC.bytes_of(more) <= LIMIT.bytes
    assert in_bits(policy, LIMIT, 16) is policy


def of_every_token(seed: int) -> Losses:
    """Losses of every token in 4 and 8 bits, beside options that lose nothing and that KVTuner has no use for."""
    options = (Option(3), Option(2, 4, bits=8), Option(EVERYTHING, bits=4), Option(EVERYTHING, bits=8), Option(EVERYTHING))
    loss = np.random.default_rng(seed).exponential(size=(SHAPE.layers, SHAPE.kv_heads, len(options)))
    return Losses(options, loss * [0.0, 0.0, 1.0, 0.2, 0.0], 6)


@pytest.mark.parametrize("share", [0.58, 0.65, 0.75, 0.85, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_kvtuner_finds_the_best_bits_of_all_there_are(share: float, seed: int) -> None:
    limit, losses = Limit.of_share(share, SPEC), of_every_token(seed)
    column = {4: 2, 8: 3, 16: 4}
    least = float("inf")
    for by_layer in product((16, 8, 4), repeat=SHAPE.layers):
        bits = torch.tensor(by_layer, dtype=torch.uint8)[:, None].expand(-1, SHAPE.kv_heads)
        policy = Policy.uniform(SHAPE, window=EVERYTHING, stride=1, prefix=PREFIX, bits=bits)
        lost = sum(losses.loss[layer, :, column[each]].sum() for layer, each in enumerate(by_layer))
        least = min(least, lost) if SPEC.bytes_of(policy) <= limit.bytes else least
    found = kvtuner(losses, limit)
    assert found.keeps_everything
    assert SPEC.bytes_of(found) <= limit.bytes
    assert all(len(layer.unique()) == 1 for layer in found.bits)
    lost = sum(losses.loss[layer, :, column[int(each)]].sum() for layer, each in enumerate(found.bits[:, 0]))
    assert lost == pytest.approx(least, rel=2e-3)


def test_kvtuner_is_refused_where_all_tokens_do_not_fit() -> None:
    smallest = SPEC.bytes_of(Policy.uniform(SHAPE, window=EVERYTHING, stride=1, prefix=PREFIX, bits=4))
    assert set(kvtuner(of_every_token(0), Limit.of_memory(smallest, SPEC)).bits.flatten().tolist()) == {4}
    with pytest.raises(BudgetError, match=r"^preset kvtuner: every token in the fewest bits takes more than [\d,]+ bytes\.$"):
        kvtuner(of_every_token(0), Limit.of_memory(smallest - 1, SPEC))
