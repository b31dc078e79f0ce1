"""A policy is checked when it is made, and says what is wrong, where."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headscope.errors import PolicyMismatch
from headscope.policy import Policy
from tests.policy.shapes import SHAPE


def changed(name: str, value: float) -> torch.Tensor:
    policy = Policy.uniform(SHAPE, window=3, heavy=2, stride=6, prefix=5)
    tensor = getattr(policy, name).clone()
    tensor[2, 1] = value
    return tensor


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("window", 600, r"layer 2 head 1: window 600 exceeds the 6 x 6 image \(36 tokens; largest window 35\)"),
        ("window", -4, "layer 2 head 1: window -4 is not a number from 0 to 35"),
        ("heavy", 37, r"layer 2 head 1: heavy 37 exceeds the 6 x 6 image"),
        ("heavy", -1, "heavy -1 is not a number"),
        ("anchor", 99, "anchor 99 exceeds"),
        ("decay", 1.5, "decay 1.5 is above 1"),
        ("decay", float("nan"), "decay nan is not a number from 0 to 1"),
        ("semantic_score", -0.1, "semantic_score -0.1 is not a number"),
        ("per_visit", 2, "per_visit 2 is above 1"),
        ("prompt", 2, "layer 2 head 1: prompt 2 is above 1"),
    ],
)
def test_an_impossible_value_is_named_with_its_place(name: str, value: float, says: str) -> None:
    policy = Policy.uniform(SHAPE, window=3, heavy=2, stride=6, prefix=5)
    with pytest.raises(PolicyMismatch, match=says):
        policy.replace(**{name: changed(name, value)})


def test_shapes_dtypes_strides_and_prefixes_are_checked() -> None:
    policy = Policy.uniform(SHAPE, window=3, stride=6, prefix=5)
    with pytest.raises(PolicyMismatch, match=r"tensor window: has shape \(3, 3\), expected \(3, 4\)"):
        policy.replace(window=policy.window[:, :3])
    with pytest.raises(PolicyMismatch, match=r"tensor heavy: has dtype torch\.int64"):
        policy.replace(heavy=policy.heavy.long())
    with pytest.raises(PolicyMismatch, match="stride 4"):
        policy.replace(stride=4)
    with pytest.raises(PolicyMismatch, match="prefix -1"):
        policy.replace(prefix=-1)


def test_slots_by_hand() -> None:
    heavy = torch.zeros(3, 4, dtype=torch.int32)
    heavy[0, 1] = 7
    slots = Policy.uniform(SHAPE, window=5, heavy=heavy, anchor=2, stride=12, prefix=10).slots()
    assert slots[0, 0] == 10 + 2 + 5 + 1
    assert slots[0, 1] == 10 + 2 + 5 + 7 + 12


def test_a_short_prompt_takes_two_slots_and_a_bucket_of_its_own() -> None:
    prompt = torch.tensor([[1, 0, 1, 0]] * 3)
    for prefix, kept in ((10, 2), (2, 2), (1, 1), (0, 0)):
        policy = Policy.uniform(SHAPE, window=5, prompt=prompt, stride=1, prefix=prefix)
        assert policy.slots()[1].tolist() == [prefix + 6, kept + 6, prefix + 6, kept + 6]
    assert [(b.heads, b.whole_prompt) for b in policy.buckets(1)] == [((0, 2), True), ((1, 3), False)]
    full = Policy.uniform(SHAPE, window=35, prompt=prompt, stride=1, prefix=3)
    assert not full.keeps_everything
    folds = full.replace(shape=replace(SHAPE, folds_prefix=True))
    assert folds.keeps_everything
    assert [len(b.heads) for b in folds.buckets(0)] == [4]


def test_buckets_join_heads_that_remember_alike() -> None:
    window = torch.tensor([[3, 5, 3, 5]] * 3)
    heavy = torch.tensor([[0, 2, 0, 4]] * 3)
    decay = torch.tensor([[0.1, 0.5, 0.9, 0.5]] * 3)
    buckets = Policy.uniform(SHAPE, window=window, heavy=heavy, decay=decay, stride=6, prefix=1).buckets(1)
    assert [bucket.heads for bucket in buckets] == [(0, 2), (1,), (3,)]  # without a score its decay is nothing to tell apart
    assert [(bucket.window, bucket.heavy) for bucket in buckets] == [(3, 0), (5, 2), (5, 4)]


def test_fingerprints_tell_policies_apart_by_what_they_keep() -> None:
    policy = Policy.uniform(SHAPE, window=3, heavy=2, stride=6, prefix=5)
    assert policy.same_as(policy.replace(results={"kl": 1.0}, semantic_score=torch.ones(3, 4)))
    for change in (
        {"stride": 12},
        {"prefix": 6},
        {"window": changed("window", 4)},
        {"decay": changed("decay", 0.5)},
        {"prompt": changed("prompt", 0)},
    ):
        assert not policy.same_as(policy.replace(**change))


def test_a_head_that_keeps_everything_needs_no_anchors() -> None:
    window = torch.tensor([[35, 3, 3, 3]] * 3)
    policy = Policy.uniform(SHAPE, window=window, anchor=2, stride=1, prefix=5)
    assert policy.anchor[0].tolist() == [0, 2, 2, 2]
    assert not policy.keeps_everything
    assert Policy.uniform(SHAPE, window=20, heavy=15, stride=1, prefix=5).keeps_everything
