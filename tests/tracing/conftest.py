"""Shared by the tests of what a trace's folder holds."""

from __future__ import annotations

import pytest

from headscope.models import Samples
from headscope.models.janus import JanusModel
from headscope.runtime import generate


@pytest.fixture(scope="session")
def samples(tiny: JanusModel) -> Samples:
    """Three images of the tiny model, of prompts of several lengths."""
    return generate(tiny, ["red apple", "dog", "a blue car on a red background"], 0)
