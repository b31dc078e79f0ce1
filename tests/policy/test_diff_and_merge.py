"""Policies compared and merged, against numbers worked out head by head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.errors import BudgetError, DataError, PolicyMismatch
from headscope.geometry import Geometry
from headscope.policy import CacheSpec, Edit, Limit, Policy, diff, load_policy, merge, read_edits, save_policy, unmeasured
from headscope.policy.tensors import KEPT
from tests.policy.shapes import SHAPE


def made(window: int | torch.Tensor = 6, **numbers: object) -> Policy:
    facts = {"heavy": 0, "stride": 6, "prefix": 5, **numbers}
    return Policy.uniform(SHAPE, window=window, **facts)  # type: ignore[arg-type]


def changed(policy: Policy, name: str, layer: int, head: int, value: float) -> Policy:
    tensor = getattr(policy, name).clone()
    tensor[layer, head] = value
    return policy.replace(**{name: tensor})


policies = st.builds(
    lambda numbers, stride, prefix: made(
        torch.tensor(numbers[0]).view(3, 4),
        heavy=torch.tensor(numbers[1]).view(3, 4),
        bits=torch.tensor(numbers[2]).view(3, 4),
        prompt=torch.tensor(numbers[3]).view(3, 4),
        stride=stride,
        prefix=prefix,
    ),
    st.tuples(
        *(st.lists(st.sampled_from(some), min_size=12, max_size=12) for some in ((0, 3, 17), (0, 0, 5), (16, 8, 4), (1, 0)))
    ),
    st.sampled_from([1, 6]),
    st.sampled_from([0, 5]),
)


@settings(max_examples=40, deadline=None)
@given(policies, policies)
def test_a_diff_is_what_counting_by_head_says(first: Policy, second: Policy) -> None:
    found = diff(first, second)
    assert found.same == first.same_as(second) == (not found.layers and first.stride == second.stride)
    by_layer = {change.layer: change for change in found.layers}
    both = (first, second)
    for layer in range(3):
        slots = [policy.slots()[layer].tolist() for policy in both]
        kinds = [[[float(getattr(one, name)[layer, head]) for name in KEPT] for head in range(4)] for one in both]
        kinds = [
            [[*head, one.stride * (head[1] > 0), one.prefix] for head in part] for one, part in zip(both, kinds, strict=True)
        ]
        moved = [head for head in range(4) if kinds[0][head] != kinds[1][head]]
        assert list(by_layer[layer].heads if layer in by_layer else ()) == moved
        if layer in by_layer:
            assert (by_layer[layer].tokens.before, by_layer[layer].tokens.after) == (sum(slots[0]), sum(slots[1]))
    assert [found.bytes.before, found.bytes.after] == [CacheSpec(SHAPE, one.prefix).bytes_of(one) for one in both]
    assert [found.tokens.before, found.tokens.after] == [int(one.slots().sum()) for one in both]
    moved_bytes = sum(change.bytes.after - change.bytes.before for change in found.layers)
    assert found.bytes.after - found.bytes.before == moved_bytes  # layers that are left out have not changed


def test_one_head_is_one_line() -> None:
    found = diff(made(), changed(made(), "window", 2, 1, 9))
    (line,) = found.layers
    assert (line.layer, line.heads, line.fields) == (2, (1,), ("window",))
    assert line.tokens.after - line.tokens.before == 3
    assert line.bytes.after - line.bytes.before == 3 * 2 * 8 * 2 * 2  # key and value, head size, bytes, streams


@pytest.mark.parametrize("other", [{"layers": 2}, {"kv_heads": 2}, {"head_dim": 16}, {"geometry": Geometry(6, 5)}])
def test_other_shapes_are_not_compared(other: dict) -> None:
    shape = replace(SHAPE, **other)
    second = Policy.uniform(shape, window=1, stride=1, prefix=5)
    with pytest.raises(PolicyMismatch, match=r"^b: is for toy .* expected the shape of toy \(3 layers, 4 KV heads of size 8"):
        diff(made(), second, "b")
    with pytest.raises(PolicyMismatch, match=r"^e: other: is for toy"):
        merge(made(stride=1), [Edit("e", (0,), source=second, name="other")])


def test_later_edits_win_and_the_rest_stays() -> None:
    base = made(heavy=2, decay=0.5).replace(results={"unseen": {"replay_kl": 0.1}}, provenance={"method": "searched"})
    edits = [
        Edit("1", (0, 2), (1, 3), {"window": 9, "bits": 8, "per_visit": True}),
        Edit("2", (2,), None, {"window": 4, "decay": 0.25}),
    ]
    merged = merge(base, edits, name="base")
    for layer in range(3):
        for head in range(4):
            first, second = layer in (0, 2) and head in (1, 3), layer == 2
            assert merged.window[layer, head] == (4 if second else 9 if first else 6)
            assert merged.bits[layer, head] == (8 if first else 16)
            assert merged.per_visit[layer, head] == int(first)
            assert merged.decay[layer, head] == (0.25 if second else 0.5)
            assert merged.heavy[layer, head] == 2
    assert not merged.results
    assert merged.provenance["merged_from"]["base"]["provenance"] == {"method": "searched"}
    assert merged.provenance["merged_from"]["edits"][1] == {"layers": [2], "heads": None, "window": 4, "decay": 0.25}
    assert "has not been measured" in unmeasured(merged)
    assert unmeasured(base) == ""


def test_heads_are_taken_from_another_policy() -> None:
    other = made(11, heavy=1, bits=4, anchor=2)
    merged = merge(made(), [Edit("1", (1,), (0, 2), source=other, name="other")])
    for name in KEPT:
        expected = getattr(made(), name).clone()
        expected[1, [0, 2]] = getattr(other, name)[1, [0, 2]]
        assert torch.equal(getattr(merged, name), expected)
    with pytest.raises(PolicyMismatch, match=r"^1: other: its stride is 1, expected 6"):
        merge(made(), [Edit("1", (1,), source=made(stride=1), name="other")])
    strange = Policy.uniform(replace(SHAPE, architecture="other"), window=1, stride=6, prefix=5)
    with pytest.raises(PolicyMismatch, match=r"^1: other: is for another architecture"):
        merge(made(), [Edit("1", (1,), source=strange, name="other")])


def test_a_head_that_keeps_everything_has_no_anchors() -> None:
    assert merge(made(anchor=3), [Edit("1", (0,), (0,), {"window": 35})]).anchor[0].tolist() == [0, 3, 3, 3]


def test_what_no_longer_fits_is_refused() -> None:
    spec = CacheSpec(SHAPE, 5)
    limit = Limit(spec.bytes_of(made()), spec)
    assert merge(made(), [Edit("1", (0,), None, {"window": 5})], limit).limit == limit
    with pytest.raises(BudgetError, match=f"the merged policy: takes .* at most {limit.bytes:,}; keep less"):
        merge(made(), [Edit("1", (0,), (0,), {"window": 7})], limit)


def test_a_transferred_policy_is_unmeasured_until_it_is_measured() -> None:
    moved = made().replace(provenance={"transferred": {"from": "stickers-20", "kind": "by trace", "measured": False}})
    assert unmeasured(moved).startswith("It was transferred from stickers-20 (by trace) and has not been measured on toy")
    measured = moved.replace(provenance={"transferred": {**moved.provenance["transferred"], "measured": True}})
    assert unmeasured(measured) == ""
    assert unmeasured(merge(measured, [Edit("1", (0,), None, {"window": 1})])).startswith("It was transferred")


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "edits.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_edits_come_from_a_file(file, tmp_path: Path) -> None:
    save_policy(made(3), tmp_path / "other.safetensors")
    edits = read_edits(
        file(
            '[[edit]]\nlayers = "0-1, 2"\nheads = [3, 0]\nwindow = 24\ndecay = 1\nper_visit = false\n'
            '[[edit]]\nlayers = 1\nfrom = "other.safetensors"\n[[edit]]\nlayers = [0]\nfrom = "stickers-20"'
        )
    )
    assert (edits[0].layers, edits[0].heads) == ((0, 1, 2), (0, 3))
    assert edits[0].numbers == {"window": 24, "decay": 1, "per_visit": False}
    assert edits[1].source is not None
    assert edits[1].source.same_as(made(3))
    assert edits[2].source is not None
    assert edits[2].source.same_as(load_policy("stickers-20"))
    assert merge(made(), edits[:2]).window.tolist() == [[24, 6, 6, 24], [3, 3, 3, 3], [24, 6, 6, 24]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"edits\.toml: holds nothing, expected tables \[\[edit\]\]"),
        ("edit = 3", "holds edit, expected tables"),
        ("edit = [3]", "edit 1: holds 3, expected an object"),
        ("[[edit]\n", "not a TOML file"),
        ("[[edit]]\nwindow = 3", 'edit 1: lacks layers, expected numbers from 0, such as 4, .4, 5. or "4-7"'),
        ("[[edit]]\nlayers = 0", "edit 1: expected either `from` or some of window, heavy"),
        ('[[edit]]\nlayers = 0\nwindow = 3\nfrom = "x"', "edit 1: expected either `from` or"),
        ("[[edit]]\nlayers = 0\nwindow = -3", "edit 1: window is -3, expected a whole number"),
        ("[[edit]]\nlayers = 0\nbits = 5", "edit 1: bits is 5, expected 16, 8 or 4"),
        ("[[edit]]\nlayers = 0\ndecay = nan", "edit 1: decay is NaN, expected a number from 0 to 1"),
        ("[[edit]]\nlayers = 0\nper_visit = 1", "edit 1: per_visit is 1, expected true or false"),
        ("[[edit]]\nlayers = []\nbits = 8", r"edit 1: layers is \[\], expected numbers"),
        ('[[edit]]\nlayers = "5-3"\nbits = 8', "edit 1: layers: 5-3 ends before it begins"),
        ('[[edit]]\nlayers = "a"\nbits = 8', 'edit 1: layers is "a", expected numbers'),
        ("[[edit]]\nlayers = 0\nwidow = 3\nbits = 8", "edit 1: widow is unknown, expected some of layers, heads, from"),
        ('[[edit]]\nlayers = 0\nfrom = "no.safetensors"', r"no\.safetensors: no such policy file"),
    ],
)
def test_what_is_no_edit_is_one_sentence(file, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_edits(file(text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("layers = 3\nwindow = 1", "edit 1: layer 3: toy has 3, numbered 0 to 2"),
        ("layers = 0\nheads = 9\nwindow = 1", "edit 1: head 9: toy has 4, numbered 0 to 3"),
        ("layers = 0\nwindow = 36", "edit 1: layer 0 head 0: window 36 exceeds the 6 x 6 image"),
    ],
)
def test_edits_that_do_not_fit_the_model_are_one_sentence(file, text: str, says: str) -> None:
    with pytest.raises(PolicyMismatch, match=rf"^[^:]*edits\.toml: {says}"):
        merge(made(), read_edits(file(f"[[edit]]\n{text}")))
