"""Scores in the search: what tokens usually receive, tables made of it, options that compare with it, and what is chosen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import headscope
from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.models import Group, ImageModel, observe
from headscope.policy import CacheSpec, Limit, Policy, load_policy
from headscope.runtime import generate
from headscope.tuning import (
    Replay,
    SearchConfig,
    UsualAttention,
    approximated,
    default_options,
    measure_sensitivity,
    measure_usual,
    sensitivity_table,
    usual_attention,
)
from headscope.tuning.measure import usual as usual_module
from headscope.tuning.measure.options import Losses, Option, interpolated
from headscope.tuning.measure.single_head import alone_policy
from headscope.tuning.propose.class_space import ClassSpace
from headscope.tuning.propose.group_space import GroupSpace
from headscope.tuning.propose.knapsack import solve
from headscope.tuning.propose.sizes import merged
from headscope.tuning.propose.spaces import TableSpace, neutral
from tests.tuning.landscape import SCORES, SHAPE

EXPECTED = 2
SPEC = CacheSpec(SHAPE, 12)
MOST = SHAPE.geometry.tokens - 1


@pytest.fixture(scope="module")
def replay(tiny: ImageModel) -> Replay:
    return Replay(tiny, generate(tiny, ["red apple on a blue background", "dog"], 0), by_stream=False)


@pytest.fixture(scope="module")
def usual(replay: Replay) -> UsualAttention:
    return measure_usual(replay, 2)


def attention_by_hand(replay: Replay) -> torch.Tensor:
    """float64 [layers, query heads, N - 1 queries, N - 1 tokens], means over rows, of one pass of the whole image."""
    batch, found, last = replay.batches[0], dict[int, torch.Tensor](), replay.geometry.tokens - 1

    def note(layer: int, groups: list[Group]) -> None:
        (group,) = groups
        keys = group.k.repeat_interleave(group.q.shape[1] // group.k.shape[1], 1).double()
        logits = group.scaling * group.q.double() @ keys.transpose(2, 3)
        seen = batch.mask.bool()[:, None, None] & torch.ones(logits.shape[2:], dtype=torch.bool).tril()
        found[layer] = logits.masked_fill(~seen, -torch.inf).softmax(-1)[:, :, -last:, -last:].mean(0)

    with torch.inference_mode(), observe(replay.model.decoder, note):
        replay.full(batch)
    return torch.stack([found[layer] for layer in sorted(found)])


def test_what_tokens_usually_receive_is_the_attention_of_a_whole_pass(replay: Replay, usual: UsualAttention) -> None:
    attention, shape = attention_by_hand(replay), replay.model.shape
    group = shape.query_heads // shape.kv_heads
    assert usual.received.shape == (shape.layers, shape.kv_heads, 8, 16)
    for layer in range(shape.layers):
        for head in range(shape.kv_heads):
            mean = attention[layer, head * group : (head + 1) * group].mean(0)
            for end in range(8):
                expected = mean[2 * end : 2 * end + 2].sum(0)
                torch.testing.assert_close(usual.received[layer, head, end, :15].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_table_of_full_rank_weighs_as_the_definition_says(
    usual: UsualAttention, tiny: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usual_module, "RANK", 4)
    monkeypatch.setattr(usual_module, "_RIDGE", 1e-9)
    policy = Policy.uniform(tiny.shape, window=2, heavy=3, decay=0.64, score=EXPECTED, stride=4, prefix=12)
    made = usual.complete(policy.replace(heavy=torch.tensor([[0, 3], [3, 3]], dtype=torch.int32)))
    assert made.tables is not None
    assert made.tables.heads.tolist() == [1, 2, 3]
    received, decay = usual.received[1, 0].tolist(), 0.64**0.5  # the table's ends are half as far apart
    for row in range(4):
        logs: dict[int, list[float]] = {}
        for end in (2 * row, 2 * row + 1):
            for p in range(2 * end + 1 - 2 + 1):
                by_now = sum(received[e][p] * decay ** (end - e) for e in range(end + 1))
                coming = max(sum(received[e][p] for e in range(end + 1, 8)), 1e-3)
                logs.setdefault(p, []).append(math.log2(coming / (by_now + 0.05)))
        expected = torch.tensor([np.mean(each) for each in logs.values()])
        found = made.tables.of([2]).weights(row)[0, list(logs)].log2()
        difference = found - expected
        assert float((difference - difference.mean()).abs().max()) < 0.15  # 8 bits


def test_what_is_of_low_rank_but_for_a_constant_a_row_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, places, constant = (torch.randn(3, *size, generator=generator).double() for size in ((6, 2), (2, 20), (6, 1)))
    known = torch.rand(3, 6, 20, generator=generator) < 0.8
    numbers = torch.where(known, rows @ places + constant, 99.0)
    found_rows, found_places = approximated(numbers, known, 2)
    error = torch.where(known, found_rows.transpose(1, 2) @ found_places - numbers, 0.0)
    offset = error.sum(-1, keepdim=True) / known.sum(-1, keepdim=True)
    assert float(((error - offset) * known).abs().max()) < 0.1
    empty = approximated(numbers[:1], torch.zeros(1, 6, 20, dtype=torch.bool), 9)
    assert all(bool(part.isfinite().all()) for part in empty)


def test_it_is_kept_in_a_file_of_these_images_alone(replay: Replay, tmp_path: Path) -> None:
    model, path, told = replay.model, tmp_path / "usual.safetensors", list[int]()
    made = usual_attention(model, replay.samples, path, lambda task, done, total, note="": told.append(done))
    again = usual_attention(model, replay.samples, path, lambda *_: pytest.fail("measured again"))
    torch.testing.assert_close(made.received, again.received, rtol=1e-3, atol=1e-4)
    assert told[-1] >= 1
    usual_attention(model, replay.samples.first(1), path)
    assert not torch.equal(usual_attention(model, replay.samples.first(1), path).received, again.received)
    UsualAttention(made.received[:, :1], made.stride, made.rows).save(path, {})
    with pytest.raises(DataError, match=r"usual.safetensors: lacks received of F16 \(2, 2, .*; delete it to measure again"):
        UsualAttention.load(path, {}, model.shape)
    path.write_bytes(b"none")
    with pytest.raises(DataError, match="not what tokens usually receive"):
        usual_attention(model, replay.samples, path)


def test_options_by_another_score_come_on_top_and_are_measured_with_tables(
    replay: Replay, usual: UsualAttention, tmp_path: Path
) -> None:
    plain, both = (default_options(Geometry(16, 16), (16, 8, 4), None, (1, 0), scores) for scores in ((0,), (0, EXPECTED)))
    assert both[: len(plain)] == plain
    assert [(option.window, option.heavy) for option in both[len(plain) :]] == [(o.window, o.heavy) for o in plain if o.heavy]
    assert not Option(2, 3, score=EXPECTED).smaller_than(Option(2, 4))
    assert Option(2, score=EXPECTED).smaller_than(Option(2, 4))
    knowing = Replay(replay.model, replay.samples, by_stream=False, usual=usual)
    option = Option(1, 3, 0.85, score=EXPECTED)
    path = tmp_path / "table.parquet"
    measure_sensitivity(replay, [Option(1, 3, 0.85)], path, stride=4, negligible=0.0)
    pq.write_table(pq.read_table(path).drop_columns(["score"]), path)  # as before there were kinds of scores
    table = measure_sensitivity(knowing, [Option(1, 3, 0.85), option], path, stride=4, negligible=0.0)
    assert table["score"].tolist() == [0] * 4 + [EXPECTED] * 4
    alone = alone_policy(replay, 1, 0, option, 4)
    assert table["loss"].iloc[6] == pytest.approx(replay.measure(usual.complete(alone)).kl, rel=0.02, abs=2e-6)
    wrong = pq.read_table(path)
    pq.write_table(wrong.set_column(wrong.column_names.index("score"), "score", [[3] * len(wrong)]), path)
    with pytest.raises(DataError, match=r"score 3, .*which is no measured loss"):
        measure_sensitivity(replay, [option], path, stride=4)
    assert set(sensitivity_table(knowing, "fisher").losses["score"]) == {0, EXPECTED}
    assert set(sensitivity_table(replay, "fisher").losses["score"]) == {0}


def losses(saved: float) -> Losses:
    """Losses that fall with tokens; comparing with what is usual saves a share of them in the upper half of the layers."""
    options = (*(Option(1, size, 0.85, score=score) for size in (1, 4, 9) for score in (0, EXPECTED)), Option(MOST))
    kept = np.array([option.window + option.heavy for option in options])
    loss = np.broadcast_to(np.exp(-0.1 * kept) * (kept < MOST), (SHAPE.layers, SHAPE.kv_heads, len(options))).copy()
    compares = np.array([option.score == EXPECTED for option in options])
    loss[SHAPE.layers // 2 :] *= np.where(compares, 1 - saved, 1.0)
    loss[: SHAPE.layers // 2] *= np.where(compares, 1 + saved, 1.0)
    return Losses(options, loss, 2)


def test_heads_compare_with_what_is_usual_where_that_loses_less() -> None:
    limit, half = Limit.of_share(0.6, SPEC), SHAPE.layers // 2
    policy = solve(losses(0.3), limit, 2)
    chosen = policy.heavy > 0
    assert policy.score[:half].max() == 0
    assert set(policy.score[half:][chosen[half:]].tolist()) == {EXPECTED}
    other = solve(losses(0.3), limit, 3)
    assert set(other.score[half:][(other.heavy > 0)[half:]].tolist()) == {EXPECTED}
    space = TableSpace(limit, SCORES, [2], losses(0.3), towards=Policy.uniform(SHAPE, window=3, stride=2, prefix=12))
    blended = space.build({**neutral(space), "blend": 0.2})
    assert set(blended.score.flatten().tolist()) == {0, EXPECTED}
    around = GroupSpace(limit, SCORES, policy)
    assert torch.equal(around.build(neutral(around)).score, policy.score)
    assert ClassSpace(limit, SCORES, [2]).locate(policy) is None
    kept = merged(torch.ones(1, 3), torch.tensor([[2, 9, 9]]), 2, score=torch.tensor([[0, 2, 0]], dtype=torch.uint8))
    assert kept[5].tolist() == [[0, 2, 0]] or kept[1].tolist() == [[2, 9, 9]]
    options = (Option(1, 3), Option(1, 3, score=EXPECTED), Option(1, 11), Option(1, 11, score=EXPECTED), Option(MOST))
    more = interpolated(Losses(options, np.array([[[4.0, 2.0, 1.0, 0.5, 0.0]]]), 2))
    found = dict(zip(more.options, more.loss[0, 0], strict=True))
    assert found[Option(1, 7)] == pytest.approx(2.0)
    assert found[Option(1, 7, score=EXPECTED)] == pytest.approx(1.0)


def test_a_search_finds_policies_with_tables_within_its_limit(replay: Replay, tmp_path: Path) -> None:
    model, samples = replay.model, replay.samples
    limit = Limit.of_share(0.6, CacheSpec(model.shape, replay.prefix, batch=16))
    limit = Limit(limit.bytes, limit.spec)  # a size, which holds the tables
    scores = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    knobs = SearchConfig(trials=1, table="fisher", images=2, table_images=2, bits="16", prompt="whole")
    found = headscope.search(model, samples, scores, limit, tmp_path, knobs)
    assert (tmp_path / "usual.safetensors").is_file()
    assert found.policy.limit == limit
    assert limit.taken_by(found.policy, replay.prefix) <= limit.bytes
    assert (found.policy.table_bytes > 0) == bool(found.policy.needs_table.any())
    assert load_policy(found.policy.save(tmp_path / "found.safetensors"), model.shape).same_as(found.policy)
    assert found.settings["score"] == "by head"
    assert Replay(model, samples, by_stream=False).measure(found.policy).kl == pytest.approx(found.kl, rel=1e-4)
    with pytest.raises(DataError, match="score: value: unknown; expected one of by head, received"):
        SearchConfig(score="value")
