"""The schedule of rows that are generated at once, against its definition, token by token."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from headscope.geometry import Geometry
from headscope.policy.lead import Schedule, schedule


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
            if plan.geometry.row_end:
                assert stand.source == stand.position
            else:
                ends = range(length - 1, stand.position, length)
                there = [end for end in ends if fed_at(plan, end) <= step.number]
                assert stand.source == (there[-1] if there else None)
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
    assert [(stand.position, stand.source) for stand in stands] == [(3, None), (7, 3), (11, 7)]
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
