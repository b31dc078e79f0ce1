"""What kvpress itself hides when it is set to an exported policy: on the bundled model's decoder, over a recorded image."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaModel

from headscope.geometry import Geometry
from headscope.models import ImageModel, Samples
from headscope.policy import ModelShape, Policy, export_policy, load_policy

pytestmark = pytest.mark.kvpress
HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-kvpress" / "bin" / "python"
FACTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters")  # fmt: skip


@pytest.fixture(scope="module")
def sequence(stickers: ImageModel, recorded: Samples) -> torch.Tensor:
    """Embeddings [1, T, C] of a prompt without padding and of an image."""
    ids = stickers.tokenize(recorded.prompts[:1]).ids
    return torch.cat([stickers.embed_prefix(ids), stickers.embed_tokens(recorded.tokens[:1].long())], 1).detach()


def there(decoder: nn.Module, sequence: torch.Tensor, policy: Policy, folder: Path) -> dict[str, torch.Tensor]:
    """What kvpress_reader.py finds of an exported policy."""
    export_policy(policy, folder / "press.json", to="kvpress")
    config = decoder.config.to_dict()
    (folder / "decoder.json").write_text(json.dumps({name: config[name] for name in FACTS}), encoding="utf-8")
    weights = {f"weights.{name}": tensor.contiguous().clone() for name, tensor in decoder.state_dict().items()}
    save_file({**weights, "embeds": sequence.contiguous()}, folder / "tensors.safetensors")
    files = [folder / name for name in ("press.json", "decoder.json", "tensors.safetensors", "out.safetensors")]
    subprocess.run([PYTHON, HERE / "kvpress_reader.py", *files], check=True, env={"OMP_NUM_THREADS": "1"})
    return load_file(folder / "out.safetensors")


def hidden_here(policy: Policy) -> torch.Tensor:
    """bool [layers, kv_heads, prefix + N]: what the last image token may not see, token by token."""
    tokens, shape = policy.shape.geometry.tokens, policy.shape
    hidden = torch.zeros(shape.layers, shape.kv_heads, policy.prefix + tokens, dtype=torch.bool)
    for layer in range(shape.layers):
        for head in range(shape.kv_heads):
            if policy.heavy[layer, head] > 0:
                continue  # any token may be one that it chose
            for token in range(tokens):
                recent = tokens - 1 - token <= policy.window[layer, head]
                hidden[layer, head, policy.prefix + token] = not recent and token >= policy.anchor[layer, head]
    return hidden


def test_two_classes_hide_there_what_they_hide_here(stickers: ImageModel, sequence: torch.Tensor, tmp_path: Path) -> None:
    found = hides_the_same(stickers.decoder, stickers.shape, sequence, tmp_path)
    with torch.no_grad():  # it is the same decoder
        torch.testing.assert_close(found["plain"], stickers.forward(sequence, None), rtol=1e-3, atol=1e-3)


def test_groups_of_query_heads_hide_what_their_kv_head_hides(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 8, "head_dim": 8}
    decoder = LlamaModel(LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=16)).eval()
    shape = ModelShape("random", 3, 8, 4, 8, Geometry(8, 8), "archi", "weights")
    hides_the_same(decoder, shape, torch.randn(1, 70, 32), tmp_path)


def hides_the_same(decoder: nn.Module, shape: ModelShape, sequence: torch.Tensor, folder: Path) -> dict[str, torch.Tensor]:
    """Export random streaming heads of one window and one number of anchors, and compare head by head what is hidden there."""
    streaming = torch.rand(shape.layers, shape.kv_heads, generator=torch.Generator().manual_seed(0)) < 0.6
    tokens = shape.geometry.tokens
    window, anchor = torch.where(streaming, 24, tokens - 1), torch.where(streaming, 3, 0)
    policy = Policy.uniform(shape, window=window, anchor=anchor, stride=1, prefix=sequence.shape[1] - tokens)
    found = there(decoder, sequence, policy, folder)
    here = hidden_here(policy)
    assert here.any(-1).equal(streaming)
    assert found["masked"].equal(here)
    by_query_head = here.repeat_interleave(shape.query_heads // shape.kv_heads, 1)
    # Keys that are exchanged for one at which every query looks away. (True weights of a sharp head are 0 in float32 too.)
    assert (found["logits"][by_query_head] < -1e4).all()
    assert (found["logits"][~by_query_head].abs() < 1e3).all()
    return found


def test_a_searched_policy_has_nothing_hidden_there_that_it_sees_here(
    stickers: ImageModel, sequence: torch.Tensor, tmp_path: Path
) -> None:
    policy = load_policy("stickers-20", stickers.shape)
    policy = policy.replace(prefix=sequence.shape[1] - stickers.shape.geometry.tokens)
    found = there(stickers.decoder, sequence, policy, tmp_path)
    assert found["masked"].any()
    assert not (found["masked"] & ~hidden_here(policy)).any()
    facts = json.loads((tmp_path / "press.json").read_text(encoding="utf-8"))["PerLayerCompressionPress"]
    assert facts["length"] == sequence.shape[1]
    assert found["kept"].tolist() == facts["kept_tokens"]
