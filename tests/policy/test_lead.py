"""The schedule of rows that are generated at once, against its definition token by token, and policies that carry a lead."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open

from headscope.errors import PolicyMismatch
from headscope.geometry import Geometry
from headscope.policy import (
    CacheSpec,
    Edit,
    Limit,
    Policy,
    Schedule,
    diff,
    export_policy,
    import_policy,
    load_policy,
    merge,
    save_policy,
    schedule,
    validate,
    with_lead,
)
from tests.policy.shapes import SHAPE
from tests.policy.test_files import rewritten


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    geometry = Geometry(draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(0, 2)))
    return schedule(geometry, draw(st.integers(1, geometry.row_length)))


def fed_at(plan: Schedule, token: int) -> int:
    row, column = divmod(token, plan.geometry.row_length)
    return row * plan.lead + column


@given(schedules())
@settings(max_examples=40, deadline=None)
def test_every_token_is_fed_once_in_its_step_and_drawn_before(plan: Schedule) -> None:
    tokens, length = plan.geometry.tokens, plan.geometry.row_length
    drawn, done = {0: -1}, 0
    assert len(plan.steps) == (plan.geometry.rows - 1) * plan.lead + length
    for step in plan.steps:
        assert list(step.tokens) == sorted(t for t in range(tokens) if fed_at(plan, t) == step.number)
        assert len(step.draws) == len({token for _, token in step.draws})
        for place, token in step.draws:
            assert step.positions[place] == token - 1  # logits of a place give the token after it
            assert token not in drawn
            drawn[token] = step.number
        stand = step.stand_in
        if stand is not None:
            assert stand.position % length == length - 1
            assert fed_at(plan, stand.position) > step.number  # the true one is not there yet
            first = stand.position - length + 1
            if plan.geometry.row_end:
                assert stand.sources == (stand.position,)
            else:
                before = [first - 1] if first and fed_at(plan, first - 1) <= step.number else []
                assert stand.sources == (first, *before)
                assert fed_at(plan, first) <= step.number
        done += len(step.tokens)
        assert plan.fed(step.number) == done
    assert sorted(drawn) == list(range(tokens))
    assert all(drawn[t] < fed_at(plan, t) for t in range(tokens))
    assert plan.fed(-1) == 0


@given(schedules(), st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_slots_are_what_the_steps_make_visible(plan: Schedule, stride: int) -> None:
    tokens, steps = plan.geometry.tokens, len(plan.steps)
    due = [[t for t in range(tokens) if fed_at(plan, t) == s] for s in range(steps + 1)]
    for window in {0, min(1, tokens - 1), tokens // 2, tokens - 1, min(plan.geometry.row_length, tokens - 1)}:
        seen = [
            sum(any(0 <= q - t <= window for q in due[s]) for t in range(tokens) if fed_at(plan, t) <= s) for s in range(steps)
        ]
        before_next = [
            sum(any(0 < q - t <= window for q in due[s + 1]) for t in range(tokens) if fed_at(plan, t) <= s)
            for s in range(steps)
        ]
        assert plan.window_slots[window] == max(seen)
        assert plan.protected_slots[window] == max(before_next)
    since, most = 0, 0
    for s in range(steps):
        since += len(due[s])
        most = max(most, since)
        before, after = (sum(fed_at(plan, t) <= n for t in range(tokens)) // stride for n in (s - 1, s))
        assert plan.chooses(s, stride) == (after > before)
        since = 0 if after > before else since
    assert plan.buffer(stride) == most
    number = steps // 2
    for t in range(tokens):
        asked = [q for q in range(t, tokens) if fed_at(plan, t) <= fed_at(plan, q) <= number]
        assert plan.visits(number)[t] == len(asked)


def test_the_worked_example() -> None:
    steps = schedule(Geometry(4, 4), 2).steps
    assert [step.tokens for step in steps[:6]] == [(0,), (1,), (2, 4), (3, 5), (6, 8), (7, 9)]
    stands = [step.stand_in for step in steps if step.stand_in is not None]
    assert [(stand.position, stand.sources) for stand in stands] == [(3, (0,)), (7, (4, 3)), (11, (8, 7))]
    assert steps[1].draws == ((0, 2), (1, 4))
    assert steps[3].draws == ((1, 6), (2, 8))  # what comes after 3 was drawn two steps before
    assert schedule(Geometry(4, 4), 3).buffer(4) == 5


def test_a_row_as_lead_is_one_token_a_step() -> None:
    plan = schedule(Geometry(3, 4, row_end=1), 5)
    assert [step.tokens for step in plan.steps] == [(t,) for t in range(15)]
    assert all(step.stand_in is None for step in plan.steps)
    assert plan.window_slots.tolist() == list(range(1, 16))
    assert plan.protected_slots.tolist() == list(range(15))
    assert [plan.buffer(stride) for stride in (1, 5, 15)] == [1, 5, 15]


def test_a_window_of_a_row_takes_a_row_more_where_three_rows_are_generated() -> None:
    plan = schedule(Geometry(24, 24), 8)
    assert plan.window_slots[24] == 49
    assert len(plan.steps) - 1 == 207


POLICY = Policy.uniform(SHAPE, window=7, heavy=torch.tensor([[0, 3, 0, 2]] * 3), stride=6, prefix=5)


@pytest.mark.parametrize(("lead", "says"), [(0, "lead 0: expected 1 to 6 columns"), (7, "lead 7: expected 1 to 6 columns")])
def test_a_lead_outside_a_row_is_one_sentence(lead: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyMismatch, match=says):
        POLICY.replace(lead=lead)
    file = save_policy(POLICY.replace(lead=3), tmp_path / "p.safetensors")
    with pytest.raises(PolicyMismatch, match=r"p\.safetensors: lead"):
        load_policy(rewritten(file, {}, lead=lead))


def test_a_text_has_no_rows_to_generate_at_once() -> None:
    text = replace(SHAPE, geometry=Geometry(1, 36))
    with pytest.raises(PolicyMismatch, match="lead 4: a text, or an image of a single row, has no rows"):
        Policy.uniform(text, window=7, stride=1, prefix=5, lead=4)
    assert not Policy.uniform(text, window=7, stride=1, prefix=5, lead=36).rows_at_once


def test_files_carry_a_lead_and_older_readers_refuse_it(tmp_path: Path) -> None:
    policy = POLICY.replace(lead=2)
    file = save_policy(policy, tmp_path / "p.safetensors")
    assert json.loads(safe_open(file, "pt").metadata()["needs"]) == ["lead"]
    assert load_policy(file).lead == 2
    assert load_policy(file).same_as(policy)
    assert not policy.same_as(POLICY)
    export_policy(policy, tmp_path / "p.json", to="json")
    assert import_policy(tmp_path / "p.json", "json").same_as(policy)
    plain = save_policy(POLICY, tmp_path / "plain.safetensors")
    assert json.loads(safe_open(plain, "pt").metadata()["needs"]) == []
    assert json.loads(safe_open(plain, "pt").metadata()["lead"]) == 6
    assert POLICY.replace(lead=6).fingerprint() == POLICY.fingerprint()
    assert validate(file).needs == ("lead",)
    assert any(
        "lead: a row begins 2 columns" in line for line in export_policy(policy, tmp_path / "d.json", "kvpress").sentences()
    )


def test_slots_and_bytes_follow_the_schedule() -> None:
    policy = POLICY.replace(lead=2)
    plan = schedule(SHAPE.geometry, 2)
    window, chosen = int(plan.window_slots[7]), int(plan.protected_slots[7]) + plan.buffer(6)
    assert policy.slots()[0].tolist() == [5 + window, 5 + chosen + 3, 5 + window, 5 + chosen + 2]
    assert window > 8
    spec = CacheSpec(SHAPE, 5, dtype="float32")
    by_hand = 3 * 2 * (2 * 8 * 4 * int(policy.slots()[0].sum()) + 8 * (2 * chosen + 5))
    assert spec.bytes_of(policy) == by_hand
    assert POLICY.slots()[0].tolist() == [13, 21, 13, 20]


def test_diff_and_merge_know_it() -> None:
    found = diff(POLICY, POLICY.replace(lead=2))
    assert (found.lead.before, found.lead.after) == (6, 2)
    assert [change.fields for change in found.layers] == [("lead",)] * 3
    assert merge(POLICY.replace(lead=2), [Edit("edit 1", (0,), numbers={"window": 3})]).lead == 2
    with pytest.raises(PolicyMismatch, match="edit 1: the other policy: its lead is 2, expected 6"):
        merge(POLICY, [Edit("edit 1", (0,), source=POLICY.replace(lead=2))])


def test_a_lead_for_a_policy_or_for_none() -> None:
    limited = POLICY.replace(limit=Limit(10**6, CacheSpec(SHAPE, 5)), results={"measured": 1})
    changed = with_lead(limited, SHAPE, 5, 2)
    assert changed is not None
    assert (changed.lead, changed.limit, changed.results) == (2, None, {})
    assert with_lead(limited, SHAPE, 5, 6) is limited
    assert with_lead(None, SHAPE, 5, 6) is None
    whole = with_lead(None, SHAPE, 5, 2)
    assert whole is not None
    assert whole.keeps_everything
    assert whole.slots().unique().tolist() == [5 + 36]
    with pytest.raises(PolicyMismatch, match="lead 0: expected 1 to 6"):
        with_lead(None, SHAPE, 5, 0)
