"""Shared by the tests of what policies draw."""

from __future__ import annotations

import pytest

from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec, Limit, Policy, make_preset

PROMPTS = ["red apple", "a blue car", "dog"]


@pytest.fixture(scope="session")
def half(tiny: JanusModel) -> Policy:
    """Keeps 60 % of the tiny model's cache."""
    limit = Limit.of_share("60%", CacheSpec(tiny.shape, 10))
    return make_preset("streaming", limit)
