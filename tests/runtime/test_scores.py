"""Kinds of scores: against the slow oracle at every setting, with tables, in bits, token by token and in chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.errors import PolicyMismatch
from headscope.geometry import Geometry
from headscope.models.attention import attend_through_cache
from headscope.models.janus import JanusModel
from headscope.policy import SCORES, ModelShape, Policy, ScoreTable, register_score
from headscope.runtime import CompressedCache, Sampling, generate
from headscope.tuning import Replay
from tests.runtime.oracle import OracleHead
from tests.runtime.test_cache_meaning import Module

SIZE, ROWS, COLS, PREFIX = 8, 3, 4, 2
TOKENS = ROWS * (COLS + 1)
SHAPE = ModelShape("toy", 1, 6, 3, SIZE, Geometry(ROWS, COLS, row_end=1), "a", "w")
SCALE = 0.4


def tables(shape: ModelShape, seed: int = 0, rank: int = 2) -> ScoreTable:
    """Of all heads, weights of 2 ** -6 to 2 ** 6 or so."""
    generator, count = torch.Generator().manual_seed(seed), shape.layers * shape.kv_heads

    def codes(length: int) -> torch.Tensor:
        return torch.randint(-127, 128, (count, rank, length), generator=generator).to(torch.int8)

    scale = torch.rand(count, rank, generator=generator) * 4e-4
    grid = shape.geometry
    return ScoreTable(torch.arange(count, dtype=torch.int32), scale.half(), codes(grid.rows), codes(grid.tokens))


def weights_by_hand(table: ScoreTable, head: int) -> list[list[float]]:
    """By row and place, as the definition says."""
    scale, rows, places = (part[head].tolist() for part in (table.scale, table.rows, table.places))
    rank = range(len(scale))
    return [
        [2.0 ** sum(scale[k] * rows[k][row] * places[k][place] for k in rank) for place in range(len(places[0]))]
        for row in range(len(rows[0]))
    ]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    def per_head(*some: float) -> torch.Tensor:
        return torch.tensor([draw(st.lists(st.sampled_from(some), min_size=3, max_size=3))])

    return Policy.uniform(
        SHAPE,
        window=per_head(0, 1, 2, 5),
        heavy=per_head(0, 1, 3, 3, 5),
        anchor=per_head(0, 0, 2),
        decay=per_head(0.0, 0.5, 1.0),
        per_visit=per_head(0, 0, 1),
        bits=per_head(16, 16, 8, 4),
        score=per_head(0, 1, 2, 2),
        stride=draw(st.sampled_from([1, 5, 15])),
        prefix=PREFIX,
    ).replace(tables=tables(SHAPE, draw(st.integers(0, 99))))


def states(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, h, PREFIX + TOKENS, SIZE, generator=generator, dtype=torch.float64) for h in (6, 3, 3))
    return q, k, v * torch.rand(2, 3, PREFIX + TOKENS, 1, generator=generator, dtype=torch.float64) * 3


def run_cache(policy: Policy, lengths: list[int], seed: int) -> torch.Tensor:
    """Outputs of the image [2, N, Hq, D]."""
    cache, outputs, at, (q, k, v) = CompressedCache(policy, prefix=PREFIX), [], 0, states(seed)
    for length in [PREFIX, *lengths]:
        part = slice(at, at + length)
        keys, values = cache.update(k[:, :, part], v[:, :, part], 0)
        outputs.append(attend_through_cache(Module(2), q[:, :, part], keys, values, None, scaling=SCALE)[0])
        at += length
    return torch.cat(outputs[1:], 1)


def run_oracle(policy: Policy, seed: int) -> torch.Tensor:
    q, k, v = states(seed)
    out = torch.zeros(2, TOKENS, 6, SIZE, dtype=torch.float64)
    assert policy.tables is not None
    for b in range(2):
        for h in range(3):
            head = OracleHead(
                prefix_keys=k[b, h, :PREFIX].tolist(),
                prefix_values=v[b, h, :PREFIX].tolist(),
                **{name: int(getattr(policy, name)[0, h]) for name in ("window", "heavy", "anchor", "bits")},
                decay=float(policy.decay[0, h]),
                per_visit=bool(policy.per_visit[0, h]),
                stride=policy.stride,
                kind=policy.score_of(0, h),
                weights=weights_by_hand(policy.tables, h),
            )
            for t in range(TOKENS):
                asked = q[b, 2 * h : 2 * h + 2, PREFIX + t].tolist()
                outputs, _ = head.step(asked, k[b, h, PREFIX + t].tolist(), v[b, h, PREFIX + t].tolist(), SCALE)
                out[b, t, 2 * h : 2 * h + 2] = torch.tensor(outputs, dtype=torch.float64)
    return out


@given(policies(), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_every_head_chooses_as_the_oracle_does(policy: Policy, seed: int) -> None:
    single = run_cache(policy, [1] * TOKENS, seed)
    torch.testing.assert_close(single, run_oracle(policy, seed), rtol=1e-5, atol=1e-5)
    in_chunks = run_cache(policy, [policy.stride] * (TOKENS // policy.stride), seed)
    torch.testing.assert_close(in_chunks, single, rtol=1e-5, atol=1e-5)


def test_heads_of_one_size_and_two_scores_are_two_buckets_unless_nothing_is_chosen() -> None:
    policy = Policy.uniform(SHAPE, window=1, heavy=2, score=torch.tensor([[0, 2, 2]]), stride=5, prefix=PREFIX)
    buckets = policy.replace(tables=tables(SHAPE)).buckets(0)
    assert [(bucket.heads, bucket.score) for bucket in buckets] == [((0,), "received"), ((1, 2), "expected")]
    assert buckets[0].table is None
    assert buckets[1].table is not None
    assert buckets[1].table.heads.tolist() == [1, 2]
    assert len(policy.replace(heavy=torch.zeros_like(policy.heavy)).buckets(0)) == 1


def test_a_score_of_ones_own_chooses() -> None:
    register_score("oldest", lambda seen: -seen.positions.float())
    try:
        policy = Policy.uniform(SHAPE, window=1, heavy=2, stride=5, prefix=PREFIX).replace(scores=("oldest",))
        cache = CompressedCache(policy, prefix=PREFIX)
        q, k, v = states(3)
        for at, length in [(0, PREFIX), (PREFIX, 5), (PREFIX + 5, 5)]:
            part = slice(at, at + length)
            keys, values = cache.update(k[:, :, part], v[:, :, part], 0)
            attend_through_cache(Module(2), q[:, :, part], keys, values, None, scaling=SCALE)
        assert cache.layers[0].buckets[0].positions[0, 0, :3].tolist() == [0, 1, 9]
    finally:
        del SCORES["oldest"]


def tiny_policy(model: JanusModel, kinds: list[list[int]], bits: int = 16) -> Policy:
    policy = Policy.uniform(model.shape, window=1, heavy=3, score=torch.tensor(kinds), bits=bits, stride=4, prefix=12)
    return policy.replace(tables=tables(model.shape))


PROMPTS = ["dog", "a blue car on a red background"]


@pytest.mark.parametrize("bits", [16, 8])
def test_every_decoder_generates_the_same_and_other_scores_keep_others(tiny: JanusModel, bits: int) -> None:
    policy, sampling = tiny_policy(tiny, [[2, 1], [0, 2]], bits), Sampling(guidance=3.0)
    both = ("auto", "transformers")
    made = [generate(tiny, PROMPTS, 3, policy=policy, sampling=sampling, decoder=name).tokens for name in both]
    assert torch.equal(*made)
    replay = Replay(tiny, generate(tiny, PROMPTS, 0))
    losses = [replay.measure(each).kl for each in (policy, tiny_policy(tiny, [[0, 0], [0, 0]], bits))]
    assert losses[0] != losses[1]


def test_a_head_without_its_table_is_refused_where_it_is_used(tiny: JanusModel) -> None:
    policy = tiny_policy(tiny, [[0, 0], [0, 2]])
    few = replace(policy.tables, **{name: getattr(policy.tables, name)[:3] for name in ("heads", "scale", "rows", "places")})
    for wrong in (policy.replace(tables=None), policy.replace(tables=few)):
        with pytest.raises(PolicyMismatch, match="layer 1 head 1: score expected needs a table, which the policy has not"):
            CompressedCache(wrong)
    CompressedCache(policy.replace(tables=None, heavy=torch.zeros_like(policy.heavy)))
