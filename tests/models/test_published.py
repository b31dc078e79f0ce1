"""Published models by their description: policies that were made for any weights of their shape fit both formats."""

from __future__ import annotations

import pytest
from transformers import JanusConfig

from headscope.errors import PolicyMismatch
from headscope.models import published_shape
from headscope.models.janus import janus_shape
from headscope.policy import ModelShape, load_policy
from headscope.policy.shipped import shipped

# As config.json of deepseek-community's checkpoints says it; DeepSeek's own become the same configuration when they are read.
TEXT = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_hidden_layers": 24}
LARGE = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 30}


def loaded(text: dict, name: str, weights: str) -> ModelShape:
    """The shape of a checkpoint that is there."""
    config = JanusConfig(
        text_config={"model_type": "llama", "vocab_size": 102400, "max_position_embeddings": 16384, **text},
        vision_config={"image_size": 384, "patch_size": 16, "num_image_tokens": 576, "projection_dim": text["hidden_size"]},
        vq_config={"num_embeddings": 16384, "embed_dim": 8, "projection_dim": text["hidden_size"]},
    )
    return janus_shape(config, name, weights)


@pytest.mark.parametrize(("text", "size"), [(TEXT, "1B"), (LARGE, "7B")])
@pytest.mark.parametrize("owner", ["deepseek-community", "deepseek-ai"])
def test_a_checkpoint_that_is_there_has_the_published_shape(text: dict, size: str, owner: str) -> None:
    shape = published_shape(f"{owner}/Janus-Pro-{size}")
    here = loaded(text, "a folder", "0123")
    assert shape is not None
    assert shape == ModelShape(**{**vars(here), "name": f"Janus-Pro-{size}", "weights": ""})
    names = [name for name in shipped() if name.startswith(f"janus-pro-{size.lower()}-")]
    assert len(names) == 6
    for name in names:
        policy = load_policy(name, here)
        assert (policy.shape.weights, policy.provenance["transferred"]["measured"]) == ("0123", False)
        assert policy.accounting()["kept_ratio"] <= policy.limit.share  # type: ignore[union-attr]
    with pytest.raises(PolicyMismatch, match="made for Janus-Pro"):
        load_policy(names[0], loaded({**text, "num_hidden_layers": 8}, "another", "0123"))


@pytest.mark.parametrize("name", ["stickers", "deepseek-ai/Janus-1.3B", "someone/Janus-Pro-1B", "/a/folder", ""])
def test_any_other_name_has_none(name: str) -> None:
    assert published_shape(name) is None
