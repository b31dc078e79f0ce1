"""The cache goes to a network by the name that this transformers has for it: nothing of ours is deprecated."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.utils import logging as transformers_logging

from headscope.geometry import Geometry
from headscope.models import ImageModel
from headscope.models.cache_name import NAMES, cache_name
from headscope.policy.policy import Policy
from headscope.policy.shape import ModelShape
from headscope.runtime import CompressedCache, compressed, generate

# The old name is taken by every transformers so far, with a warning since there is a new one.
KNOWN = [name for name in NAMES if name == "past_key_values" or name in inspect.signature(LlamaModel.forward).parameters]


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What transformers says of deprecated names: as warnings, which are errors here, or in its log, which is collected."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger, level = logging.getLogger("transformers"), transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        yield said
    logger.removeHandler(handler)
    transformers_logging.set_verbosity(level)


def test_a_network_says_its_own_name_for_the_cache() -> None:
    assert cache_name(lambda cache=None: None) == "cache"
    assert cache_name(lambda past_key_values=None: None) == "past_key_values"
    assert cache_name(LlamaModel.forward) == cache_name() in NAMES
    assert cache_name(lambda *args, **kwargs: None) == cache_name()


def test_generating_and_decoding_use_no_deprecated_name(tiny: ImageModel, complaints: list[str]) -> None:
    policy = Policy.uniform(tiny.shape, window=3, heavy=2, stride=4, prefix=8)
    generate(tiny, ["dog"], 0)
    generate(tiny, ["dog"], 0, policy=policy)
    prefix = tiny.tokenize(["dog"])
    with torch.inference_mode():
        tiny.forward(tiny.embed_prefix(prefix.ids), prefix.mask, DynamicCache(config=tiny.decoder.config))
    with compressed(tiny, policy):
        tiny.network.generate(
            prefix.ids,
            attention_mask=prefix.mask,
            generation_mode="image",
            **{cache_name(): CompressedCache(policy)},
        )
    assert not [sentence for sentence in complaints if "deprecated" in sentence]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_a_text_model_of_transformers_takes_a_compressed_cache_by_every_name_that_it_knows(name: str) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(config).eval()
    shape = ModelShape("llama", 2, 4, 2, 8, Geometry(4, 4), "llama", "llama")
    policy, ids = Policy.uniform(shape, window=15, heavy=0, stride=4, prefix=5), torch.arange(2, 7)[None]
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = network.generate(ids, **settings)
    with compressed(network, policy):
        assert torch.equal(network.generate(ids, **settings, **{name: CompressedCache(policy)}), expected)
