"""What kvpress hides and keeps when its presses are set to an exported file; runs in the environment that has kvpress.

    python kvpress_reader.py PRESS.json DECODER.json TENSORS.safetensors OUT.safetensors

DECODER.json is the configuration of a Llama; TENSORS holds its weights (`weights.*`) and `embeds` [1, T, C]. To DuoAttention
the first T - 1 tokens are the prompt and the last one is decoded; to fractions by layer all T are the prompt.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_logits: dict[int, torch.Tensor] = {}


def watched(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """Attention by hand, which notes the last query's logits with each key: after kvpress has changed the keys."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    logits = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    places = torch.arange(key.shape[2])
    logits = logits.masked_fill(places > places[-query.shape[2] :, None], -torch.inf)
    _logits[module.layer_idx] = logits[0, :, -1]
    return (logits.softmax(-1) @ value).transpose(1, 2).contiguous(), None


# Before kvpress is imported, which wraps every function that is registered.
ALL_ATTENTION_FUNCTIONS.register("watched", watched)
ALL_MASK_ATTENTION_FUNCTIONS.register("watched", sdpa_mask)

import kvpress  # noqa: E402


class Loaded(kvpress.DuoAttentionPress):
    """The press as it is set, which by itself fetches a pattern of one of six models."""

    def post_init_from_model(self, model):
        """Nothing: it is set already."""


def main(press_file: str, config_file: str, tensor_file: str, out: str) -> None:
    """Run both presses, and the model without one."""
    with open(press_file, encoding="utf-8") as file:
        settings = json.load(file)
    with open(config_file, encoding="utf-8") as file:
        config = LlamaConfig(**json.load(file), attn_implementation="watched")
    tensors = load_file(tensor_file)
    model = LlamaForCausalLM(config).float().eval()
    model.model.load_state_dict({name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")})
    embeds = tensors["embeds"]

    def read(press, prompt: torch.Tensor) -> DynamicCache:
        cache = DynamicCache()
        with press(model):
            model.model(inputs_embeds=prompt, past_key_values=cache)
        return cache

    duo = Loaded()
    for name, value in settings["DuoAttentionPress"].items():
        setattr(duo, name, torch.tensor(value) if isinstance(value, list) else value)
    cache = read(duo, embeds[:, :-1])
    masked = torch.zeros(config.num_hidden_layers, config.num_key_value_heads, embeds.shape[1], dtype=torch.bool)
    for layer in model.model.layers:
        _, heads, keys = layer.self_attn.masked_key_indices
        masked[layer.self_attn.layer_idx, heads, keys] = True
    model.model(inputs_embeds=embeds[:, -1:], past_key_values=cache)
    logits = torch.stack([_logits[layer] for layer in range(config.num_hidden_layers)])

    ratios = settings["PerLayerCompressionPress"]["compression_ratios"]
    cache = read(kvpress.PerLayerCompressionPress(kvpress.KnormPress(), ratios), embeds)
    kept = torch.tensor([layer.keys.shape[2] for layer in cache.layers])

    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None
    plain = model.model(inputs_embeds=embeds).last_hidden_state
    save_file({"masked": masked, "logits": logits, "kept": kept, "plain": plain.contiguous()}, out)


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
