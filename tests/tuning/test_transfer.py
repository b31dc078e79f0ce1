"""Transfer: what carries over is how a head's loss hangs on what it looks at, never its number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.errors import BudgetError, DataError, PolicyMismatch
from headscope.geometry import Geometry
from headscope.policy import CacheSpec, Limit, ModelShape, Policy, load_policy, make_preset
from headscope.tuning import BY_DEPTH, BY_MAP, BY_TRACE, Option, Source, Target, carried, carry_over, predicted, solve
from headscope.tuning.transfer.sizes import columns_of
from headscope.tuning.transfer.target import depths, ranks
from tests.tuning.looking import Looking, looking, of_wide

ONE, OTHER = looking(1), looking(2)


def target_of(model: Looking, kind: str) -> Target:
    scores = torch.from_numpy(model.wide).view(model.shape.layers, -1)
    return Target(model.shape, model.seen if kind == BY_TRACE else None, scores if kind == BY_MAP else None)


def test_the_same_model_by_trace_gets_about_its_own_policy() -> None:
    limit = ONE.limit(0.2)
    own = ONE.lost(solve(ONE.table, limit, 2))
    found = carry_over([ONE.source()], target_of(ONE, BY_TRACE), limit)
    assert found.limit == limit
    assert limit.spec.bytes_of(found) <= limit.bytes
    assert ONE.lost(found) <= 1.15 * own


def test_more_knowledge_of_the_other_model_loses_less_and_all_beat_a_preset() -> None:
    limit = OTHER.limit(0.2)
    lost = {
        kind: OTHER.lost(carry_over([ONE.source()], target_of(OTHER, kind), limit)) for kind in (BY_TRACE, BY_MAP, BY_DEPTH)
    }
    own, preset = OTHER.lost(solve(OTHER.table, limit, 2)), OTHER.lost(make_preset("h2o", limit))
    assert max(lost[BY_TRACE], lost[BY_MAP]) < lost[BY_DEPTH] < preset  # here the map says all that the trace says
    assert lost[BY_TRACE] <= own + 0.2 * (preset - own)


@given(st.permutations(range(4)), st.sampled_from([BY_TRACE, BY_MAP]))
@settings(max_examples=2, deadline=None)
def test_permuting_heads_permutes_the_answer(order: list[int], kind: str) -> None:
    wide = OTHER.wide.reshape(OTHER.shape.layers, -1)
    permuted = of_wide(OTHER.shape, wide[:, order].ravel())
    rules = [(ONE.rule, ONE.shape)]
    plain, other = (predicted(rules, target_of(model, kind)).loss for model in (OTHER, permuted))
    assert np.allclose(plain[:, order], other, rtol=1e-12)


def test_permuting_the_source_changes_nothing_but_the_luck_of_the_trees() -> None:
    again = of_wide(ONE.shape, ONE.wide.reshape(ONE.shape.layers, -1)[:, ::-1].ravel())
    limit = OTHER.limit(0.2)
    plain, other = (OTHER.lost(carry_over([model.source()], target_of(OTHER, BY_TRACE), limit)) for model in (ONE, again))
    assert other == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("kind", [BY_TRACE, BY_MAP, BY_DEPTH])
@pytest.mark.parametrize(
    ("other", "prefix"),
    [
        (looking(3, 7, 2, head_dim=128), 5),
        (looking(4, 3, 4, group=3), 30),
        (looking(5, 4, 4, geometry=Geometry(12, 10)), 0),
        (looking(6, 2, 6, geometry=Geometry(5, 7, row_end=1)), 9),
        (looking(7, 1, 1, geometry=Geometry(16, 16)), 1),
    ],
)
def test_any_other_shape_gets_a_policy_within_its_limit(other: Looking, prefix: int, kind: str) -> None:
    limit = other.limit(0.25 if prefix < 30 else 0.6, prefix)
    for source in (ONE.source(), Source(ONE.source().policy.replace(rule=None), seen=ONE.seen)):
        found = carry_over([source], target_of(other, kind), limit)
        assert (found.shape, found.prefix) == (other.shape, prefix)
        assert 0.6 * limit.bytes < limit.spec.bytes_of(found) <= limit.bytes
        assert max(len(found.buckets(layer)) for layer in range(other.shape.layers)) <= 3
        facts = found.provenance["transferred"]
        assert (facts["kind"], facts["measured"], facts["from"]) == (kind, False, "model-1")
        assert facts["rule"] == (source.learns_from is not None)


def test_by_depth_all_heads_of_a_layer_have_one_prediction() -> None:
    loss = predicted([(ONE.rule, ONE.shape)], Target(OTHER.shape)).loss
    assert (loss == loss[:, :1]).all()


def test_without_a_rule_heads_take_the_numbers_of_those_that_look_alike() -> None:
    wide = torch.from_numpy(ONE.wide).view(4, 4)
    split = (wide > 0.5).to(torch.int32)
    policy = Policy.uniform(ONE.shape, window=10 * (1 - split), heavy=20 * split, stride=8, prefix=5)
    found = carry_over([Source(policy, seen=ONE.seen)], target_of(OTHER, BY_TRACE), OTHER.limit(0.5))
    semantic = (found.heavy > 0).flatten().numpy()
    assert semantic[OTHER.wide > 0.6].all()
    assert not semantic[OTHER.wide < 0.4].any()


def test_without_a_rule_and_a_trace_of_the_source_scores_are_compared_or_depth_alone() -> None:
    limit, target = OTHER.limit(0.5), target_of(OTHER, BY_TRACE)
    policy = Policy.uniform(ONE.shape, window=9, heavy=3, stride=8, prefix=5)
    scored = policy.replace(semantic_score=torch.from_numpy(ONE.wide).float().view(4, 4))
    kinds = [carry_over([Source(each)], target, limit).provenance["transferred"]["kind"] for each in (policy, scored)]
    assert kinds == [BY_DEPTH, BY_MAP]


def test_rules_of_several_models_are_learnt_together() -> None:
    third = looking(9)
    limit = OTHER.limit(0.2)
    found = carry_over([ONE.source(), third.source()], target_of(OTHER, BY_TRACE), limit)
    assert found.provenance["transferred"]["from"] == "model-1, model-9"
    assert OTHER.lost(found) <= 1.3 * OTHER.lost(solve(OTHER.table, limit, 2))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (Option(18), Option(26)),  # a row and two columns
        (Option(34), Option(50)),
        (Option(8), Option(12)),  # half a row
        (Option(1, 0, 1.0, 4), Option(1, 0, 1.0, 4)),
        (Option(255, 0, 1.0, 8), Option(575, 0, 1.0, 8)),
        (Option(18, 96, 0.85, 8), Option(26, 216, 0.85, 8)),
        (Option(96), Option(197)),
    ],
)
def test_options_on_another_grid(option: Option, expected: Option) -> None:
    small, large = Geometry(16, 16), Geometry(24, 24)
    assert carried(option, small, large) == expected
    assert carried(option, small, small) == option


@given(st.integers(1, 12), st.integers(2, 12), st.integers(1, 12), st.integers(2, 12), st.data())
@settings(max_examples=60, deadline=None)
def test_a_carried_option_can_be_had_there(rows: int, cols: int, other_rows: int, other_cols: int, data: st.DataObject) -> None:
    source, target = Geometry(rows, cols), Geometry(other_rows, other_cols)
    window = data.draw(st.integers(0, source.tokens - 1))
    heavy = data.draw(st.integers(0, source.tokens - 1 - window))
    found = carried(Option(window, heavy, 0.5), source, target)
    assert 0 <= found.window <= target.tokens - 1
    assert 0 <= found.heavy <= target.tokens - 1 - found.window
    assert np.isfinite(columns_of([found], target)).all()


def test_ranks_and_depths_are_those_of_the_slow_way() -> None:
    values = np.array([[0.3, 0.1], [0.3, 0.9]])
    expected = [[(sum(o < v for o in values.flat) + sum(o <= v for o in values.flat)) / 8 for v in row] for row in values]
    assert ranks(values).tolist() == expected
    assert depths(2, 2).tolist() == [0.25, 0.25, 0.75, 0.75]


def test_what_can_not_be_is_one_sentence() -> None:
    text = ModelShape("text", 2, 2, 2, 8, Geometry(1, 64), "a", "w")
    with pytest.raises(DataError, match="model-1, which writes images; text writes text, a single row of tokens"):
        carry_over([ONE.source()], Target(text), Limit.of_share(0.5, CacheSpec(text, 3)))
    with pytest.raises(DataError, match=r"map has \(2, 3\) layers and heads"):
        Target(OTHER.shape, scores=torch.zeros(2, 3))
    spec = CacheSpec(OTHER.shape, 5)
    with pytest.raises(BudgetError):
        carry_over([ONE.source()], target_of(OTHER, BY_TRACE), Limit(spec.smallest_bytes - 1, spec))


def test_a_rule_comes_back_from_a_file_and_changes_nothing_that_is_kept(tmp_path) -> None:
    policy = ONE.source().policy
    back = load_policy(policy.save(tmp_path / "p.safetensors"))
    assert back.same_as(policy.replace(rule=None))
    assert (back.rule.names, back.rule.stride) == (policy.rule.names, policy.rule.stride)
    assert torch.equal(back.rule.options, policy.rule.options)
    assert torch.allclose(back.rule.loss, policy.rule.loss, rtol=5e-3)
    assert torch.allclose(back.rule.missed, policy.rule.missed, atol=1e-3)
    limit = OTHER.limit(0.2)
    plain, other = (OTHER.lost(carry_over([Source(each)], target_of(OTHER, BY_TRACE), limit)) for each in (policy, back))
    assert other == pytest.approx(plain, rel=0.05)
    with pytest.raises(PolicyMismatch, match="rule: is of"):
        Policy.uniform(looking(3, 7, 2).shape, window=1, stride=1, prefix=0).replace(rule=ONE.rule)
