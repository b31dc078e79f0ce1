"""What kvpress' presses make of recorded images, token by token; runs in the environment that has kvpress.

    python presses.py DECODER.json TENSORS.safetensors KEPT OUT.safetensors

DECODER.json is the configuration of a Llama; TENSORS holds its weights (`weights.*`), `embeds` [rows, T, C] of prompts and
images, and `prefix`, tokens of a prompt. KEPT is the share of the T tokens that a head may have at any step. OUT has the hidden
states `<press> <interval>` [rows, T - prefix, C] of the image tokens; a press that stopped has a sentence in the metadata.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import kvpress
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

# Tokens between two choices: kvpress lets its cache grow by them, so that the fewer they are, the more tokens a choice keeps.
INTERVALS = (4, 16)
# Those that count slots, run again with tokens in order.
ORDERED = ("streaming", "streaming, whole prompt", "snapkv", "lagkv")


def presses(prefix: int, interval: int) -> dict[str, Callable[[], object]]:
    """What is compared, by name: those that evict, and those that pick tokens head by head and only hide them."""
    window = max(interval - 1, 1)  # SnapKV's queries are those since the last choice but one
    return {
        "random": lambda: kvpress.RandomPress(),
        "knorm": lambda: kvpress.KnormPress(),
        "keydiff": lambda: kvpress.KeyDiffPress(),
        "streaming": lambda: kvpress.StreamingLLMPress(),
        "streaming, whole prompt": lambda: kvpress.StreamingLLMPress(n_sink=prefix),
        "tova": lambda: kvpress.TOVAPress(),
        "snapkv": lambda: kvpress.SnapKVPress(window_size=window),
        "expected attention": lambda: kvpress.ExpectedAttentionPress(),
        "lagkv": lambda: kvpress.LagKVPress(n_sink=prefix, lag_size=16),
        "adakv + snapkv, hides only": lambda: kvpress.AdaKVPress(kvpress.SnapKVPress(window_size=window)),
        "adakv + tova, hides only": lambda: kvpress.AdaKVPress(kvpress.TOVAPress()),
        "adakv + keydiff, hides only": lambda: kvpress.AdaKVPress(kvpress.KeyDiffPress()),
    }


class InOrder:
    """While it lasts, presses that score tokens keep them in order of age.

    kvpress keeps them as `topk` gives them, so that from the second choice on what counts slots (StreamingLLM, LagKV, SnapKV's
    window) takes some tokens for others.
    """

    def __enter__(self) -> None:
        self.before = kvpress.ScorerPress.compress
        kvpress.ScorerPress.compress = kept_in_order

    def __exit__(self, *_: object) -> None:
        kvpress.ScorerPress.compress = self.before


def kept_in_order(press, module, hidden_states, keys, values, attentions, kwargs):
    """As `ScorerPress.compress`, but for the order."""
    if press.compression_ratio == 0:
        return keys, values
    scores = press.score(module, hidden_states, keys, values, attentions, kwargs)
    count = int(keys.shape[2] * (1 - press.compression_ratio))
    places = scores.topk(count, dim=-1).indices.sort(-1).values[..., None].expand(-1, -1, -1, module.head_dim)
    return keys.gather(2, places).contiguous(), values.gather(2, places).contiguous()


def main(config_file: str, tensor_file: str, kept: str, out: str) -> None:
    """Run every press at every interval."""
    with open(config_file, encoding="utf-8") as file:
        config = LlamaConfig(**json.load(file), attn_implementation="sdpa")
    tensors = load_file(tensor_file)
    model = LlamaForCausalLM(config).float().eval()
    model.model.load_state_dict({name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")})
    embeds, prefix = tensors["embeds"], int(tensors["prefix"])
    most, found, said = int(float(kept) * embeds.shape[1]), dict[str, torch.Tensor](), dict[str, str]()
    for interval, ordered in ((interval, ordered) for interval in INTERVALS for ordered in (False, True)):
        for name in ORDERED if ordered else presses(prefix, interval):
            label, began = f"{name}{', in order' if ordered else ''} {interval}", time.time()
            try:
                press = kvpress.DecodingPress(presses(prefix, interval)[name](), interval, most - interval)
                with InOrder() if ordered else nullcontext():
                    found[label] = decoded(model, press, embeds, prefix, most)
            except Exception as error:  # what a user would meet
                said[label] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(f"{label}: {said.get(label, 'done')}, {time.time() - began:.0f} s", flush=True)
    save_file(found, out, metadata=said)


def decoded(model: LlamaForCausalLM, press: object, embeds: torch.Tensor, prefix: int, most: int) -> torch.Tensor:
    """Hidden states [rows, T - prefix, C] of image tokens that are fed one by one behind the prompt.

    Raises:
        RuntimeError: a layer held more than `most` tokens when the next one came, though nothing was only hidden.
    """
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None
    cache, hidden = DynamicCache(), []
    hides = isinstance(press.base_press, (kvpress.AdaKVPress, kvpress.CriticalAdaKVPress))
    with press(model):
        for begin, end in ((0, prefix), *((at, at + 1) for at in range(prefix, embeds.shape[1]))):
            places = torch.arange(begin, end)
            inputs = {"cache_position": places, "position_ids": places[None].expand(len(embeds), -1)}
            output = model.model(inputs_embeds=embeds[:, begin:end], past_key_values=cache, use_cache=True, **inputs)
            hidden.append(output.last_hidden_state)
            held = max(layer.keys.shape[2] for layer in cache.layers)
            if held > most and not hides:
                raise RuntimeError(f"{held} tokens were held at token {end - 1}, {most} were asked for")
    return torch.cat(hidden[1:], 1)


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
