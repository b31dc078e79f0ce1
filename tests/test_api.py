"""The public names: each is there, documented, and one can do the job with them."""

from __future__ import annotations

import inspect
from typing import ClassVar

import pytest
import torch

import headscope
from headscope.errors import HeadscopeError
from headscope.geometry import Geometry
from tests.policy.shapes import SHAPE


@pytest.mark.parametrize("name", headscope.__all__)
def test_a_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(headscope, name)
    assert name in dir(headscope)
    if callable(value):
        assert inspect.getdoc(value)
        assert not inspect.ismodule(value)


def test_what_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        headscope.draw  # noqa: B018


class Half:
    """Every head keeps a window of half of the image."""

    name: ClassVar[str] = "half_of_it"

    def build(self, limit: headscope.Limit, semantic_score: torch.Tensor | None = None) -> headscope.Policy:
        tokens = limit.spec.shape.geometry.tokens
        return headscope.Policy.uniform(limit.spec.shape, window=tokens // 2, stride=1, prefix=limit.spec.prefix)

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Half]:
        return [cls()]


def test_a_preset_of_ones_own_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscope.policy.presets.PRESETS", dict(headscope.PRESETS))
    assert headscope.register_preset(Half) is Half
    limit = headscope.Limit.parse("60%", headscope.CacheSpec(SHAPE, 5))
    assert (headscope.make_preset("half_of_it", limit).window == 18).all()
    with pytest.raises(HeadscopeError, match="half_of_it"):
        headscope.register_preset(Half)
    for wrong in (type("Nameless", (), {}), type("Empty", (), {"name": "empty"})):
        with pytest.raises(HeadscopeError, match="preset"):
            headscope.register_preset(wrong)
