"""A network, its decoder and the image model around it, taken for each other: one sentence says what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ImageGPTConfig, ImageGPTModel

import headscope
from headscope.errors import CacheError, ModelError
from headscope.geometry import Geometry
from headscope.models import RasterModel, registry
from headscope.models.cache_name import cache_name
from headscope.models.janus import JanusModel
from headscope.policy import ModelShape, Policy

WRAP = "RasterModel makes one of a network"


def entered(block: Any) -> None:
    with block:
        pass


def policy_of(model: JanusModel) -> Policy:
    return Policy.uniform(model.shape, window=3, stride=4, prefix=4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: headscope.generate(m.network, ["a"]), rf"^generate: expected an image model, .* found a Janus.*{WRAP}"),
        (lambda m: headscope.generate(m.decoder, ["a"]), "^generate: expected an image model, .* found a LlamaModel"),
        (lambda m: headscope.trace(m.network, None, "x"), "^trace: expected an image model"),
        (lambda m: headscope.Replay(nn.Linear(1, 1), None), "^Replay: expected an image model, .* found a Linear"),
        (
            lambda m: headscope.trace_module(m, None, Geometry(4, 4)),
            "^trace_module: expected a module .* found a JanusModel; pass",
        ),
        (lambda m: entered(headscope.watch_live(m, Geometry(4, 4))), "^watch_live: expected a module .* pass its `decoder`"),
        (
            lambda m: entered(headscope.watch_live(m.network, Geometry(4, 4))),
            r"^watch_live: .* pass its decoder, `get_decoder\(\)`",
        ),
        (lambda m: entered(headscope.watch_live(nn.Linear(1, 1), Geometry(4, 4))), f"^watch_live: .* found a Linear .*{WRAP}"),
        (
            lambda m: entered(headscope.compressed("stickers", policy_of(m))),
            "^compressed: expected an image model, .* found a str",
        ),
        (lambda m: entered(headscope.compressed(nn.Linear(1, 1), policy_of(m))), f"^compressed: .* found a Linear .*{WRAP}"),
        (lambda m: headscope.run(m, "x"), "^run: expected a RunConfig or the name of a model, found a JanusModel"),
        (lambda m: headscope.load_model(m), "^load_model: expected a name, found a JanusModel"),
        (lambda m: RasterModel(m, "mine", geometry=Geometry(4, 4), codes=(0, 2)), "^mine: expected a network, .* a JanusModel"),
    ],
)
def test_what_was_expected_is_said(tiny: JanusModel, call: Callable[[JanusModel], Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        call(tiny)


def test_what_a_registered_loader_gives_is_looked_at(tiny: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    headscope.register_model("network", lambda device, dtype: tiny.network)  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelError, match=r"^network: gave a Janus\w+ without name, .*; expected an image model"):
        headscope.load_model("network", "cpu")


def test_a_folder_may_be_a_path(tiny_folder: Path) -> None:
    assert isinstance(headscope.load_model(tiny_folder, "cpu"), JanusModel)


@torch.inference_mode()
def test_a_decoder_with_attention_of_its_own_is_told_that() -> None:
    decoder = ImageGPTModel(ImageGPTConfig(vocab_size=32, n_embd=16, n_layer=2, n_head=4, n_positions=64)).eval()
    shape = ModelShape("own", 2, 4, 4, 4, Geometry(3, 4), "a", "w")
    policy = Policy.uniform(shape, window=3, stride=4, prefix=3)
    cache = headscope.CompressedCache(policy, prefix=3)
    given = {"input_ids": torch.ones(1, 3, dtype=torch.int64), cache_name(ImageGPTModel.forward): cache}
    with headscope.compressed(decoder, policy):
        decoder(**given)  # of a whole prompt nothing is lost yet
        with pytest.raises(CacheError, match="computes its attention by itself, not through transformers' attention interface"):
            decoder(**given)
