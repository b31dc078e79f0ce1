"""Models, presets and statistics of other packages and of the user are known by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

import headscope
from headscope import plugins
from headscope.errors import ModelError
from headscope.models import known_models, load_model, register_model
from headscope.models.registry import lasting_name, names_a_folder
from headscope.policy.methods import Streaming
from headscope.tracing.catalogue import STATISTICS, chosen_statistics
from tests.policy.shapes import SHAPE
from tests.tiny import tiny_model


class Point:
    """An entry point."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name, self.value, self.load = name, f"package:{name}", load


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Point]]:
    """Entry points by group, in place of those that are installed."""
    found: dict[str, list[Point]] = {}
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "entry_points", lambda group: found.get(group, []))
    return found


def test_a_model_of_ones_own_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscope.models.registry._registered", {})
    register_model("mine", lambda device, dtype: tiny_model())
    model = load_model("mine", device="cpu")
    assert headscope.generate(model, ["red apple"], 0).tokens.shape == (1, 16)
    assert "mine" in dict(known_models())
    assert lasting_name("mine") == "mine"
    assert not names_a_folder("mine", "tiny")
    for taken in ("mine", "stickers", "a b", ""):
        with pytest.raises(ModelError, match="expected a name of its own"):
            register_model(taken, lambda device, dtype: tiny_model())


def test_packages_bring_models_presets_and_statistics(points: dict[str, list[Point]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugged(Streaming):
        name: ClassVar[str] = "plugged"

    def corner(sums: Any) -> torch.Tensor:
        """Attention to the first cell."""
        return sums.columns[..., sums.prefix] / sums.count

    points["headscope.models"] = [Point("theirs", lambda: lambda device, dtype: tiny_model())]
    points["headscope.presets"] = [Point("plugged", lambda: Plugged)]
    points["headscope.statistics"] = [Point("corner_cell", lambda: corner)]
    monkeypatch.setattr("headscope.policy.presets.PRESETS", dict(headscope.PRESETS))
    assert load_model("theirs", device="cpu").shape.layers == 2
    limit = headscope.Limit.parse("60%", headscope.CacheSpec(SHAPE, 5))
    assert headscope.make_preset("plugged", limit).provenance["method"] == "plugged"
    try:
        assert "corner_cell" in chosen_statistics()
    finally:
        STATISTICS.pop("corner_cell", None)


def test_a_package_that_fails_is_told_and_stops_nobody(points: dict[str, list[Point]]) -> None:
    def fails() -> None:
        raise ImportError("no module named other")

    points["headscope.models"] = [Point("broken", fails), Point("theirs", lambda: lambda device, dtype: tiny_model())]
    with pytest.warns(UserWarning, match="package:broken: not loaded"):
        names = dict(known_models())
    assert "theirs" in names
    assert "broken" not in names
