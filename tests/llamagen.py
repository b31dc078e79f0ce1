"""Folders as LlamaGen publishes its models, tiny and random; and the network as it is published, the slow way."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import JanusVQVAE, JanusVQVAEConfig

from tests.janus_original import renamed

Tensors = dict[str, torch.Tensor]
CODES = 64


@dataclass(frozen=True)
class Tiny:
    """Sizes of a LlamaGen."""

    layers: int = 2
    heads: int = 4
    head_dim: int = 8
    side: int = 4
    classes: int = 10
    slots: int = 0  # of a caption; 0: it takes classes
    features: int = 16

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def prefix(self) -> int:
        return self.slots or 1


def transformer(size: Tiny, seed: int = 0) -> Tensors:
    """Random tensors by LlamaGen's names, large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    width, inner = size.width, 256 * math.ceil(8 * size.width / 3 / 256)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape) * 1.5 / math.sqrt(shape[-1])

    found = {
        "tok_embeddings.weight": torch.randn(CODES, width),
        "norm.weight": 1 + 0.1 * torch.randn(width),
        "output.weight": random(CODES, width) * 3,
    }
    if size.slots:
        found["cls_embedding.uncond_embedding"] = torch.randn(size.slots, size.features)
        found["cls_embedding.cap_proj.fc1.weight"] = random(width, size.features)
        found["cls_embedding.cap_proj.fc2.weight"] = random(width, width)
    else:
        found["cls_embedding.embedding_table.weight"] = torch.randn(size.classes + 1, width)
    for layer in range(size.layers):
        found |= {
            f"layers.{layer}.{name}": tensor
            for name, tensor in {
                "attention.wqkv.weight": random(3 * width, width),
                "attention.wo.weight": random(width, width),
                "feed_forward.w1.weight": random(inner, width),
                "feed_forward.w2.weight": random(width, inner),
                "feed_forward.w3.weight": random(inner, width),
                "attention_norm.weight": 1 + 0.1 * torch.randn(width),
                "ffn_norm.weight": 1 + 0.1 * torch.randn(width),
            }.items()
        }
    return found


def vq_model(side: int, seed: int = 0) -> JanusVQVAE:
    """A random VQ model of two levels, which turns a token into 2 x 2 pixels."""
    torch.manual_seed(seed)
    config = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        num_patches=side,
    )
    return JanusVQVAE(config).eval()


def vq_tensors(network: JanusVQVAE) -> Tensors:
    """By the authors' names, with the count of used codes."""
    named = {f"model.vqmodel.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors = {renamed(name).removeprefix("gen_vision_model."): tensor for name, tensor in named.items()}
    return {**tensors, "quantize.codebook_used": torch.zeros(65536)}


def write_llamagen(
    folder: Path,
    size: Tiny,
    tensors: Tensors,
    file: str = "c2i_B_256.pt",
    wrapping: str | None = "model",
    settings: dict[str, Any] | None = None,
) -> Path:
    """A folder with both checkpoints, a training's leavings beside the tensors, and the number of heads."""
    folder.mkdir(parents=True, exist_ok=True)
    left = {"optimizer": {"step": 3, "lr": [0.1]}, "steps": 7, "args": Namespace(gpt_model="GPT-B", lr=0.1)}
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file, {"format": "pt"})
    else:
        torch.save({wrapping: tensors, **left} if wrapping else tensors, folder / file)
    kind = "t2i" if size.slots else "c2i"
    pixels = vq_tensors(vq_model(size.side))
    if file.endswith(".safetensors"):
        save_file(pixels, folder / "vq.safetensors", {"format": "pt"})
    else:
        torch.save({"model": pixels}, folder / f"vq_ds16_{kind}.pt")
    told = {"heads": size.heads, "grid": size.side} if settings is None else settings
    (folder / "llamagen.json").write_text(json.dumps(told))
    return folder


class Slow:
    """LlamaGen as it is published: every token by a pass over everything, attention in full, no cache, one image at a time."""

    def __init__(self, tensors: Tensors, size: Tiny) -> None:
        self.of, self.size = tensors, size

    def normed(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.of[name]

    def turned(self, heads: torch.Tensor) -> torch.Tensor:
        """Queries or keys [T, H, D]: neighbours turn together, by the row, then by the column; the prefix becomes 0."""
        out = torch.zeros_like(heads)
        pairs = self.size.head_dim // 2
        for place in range(self.size.prefix, len(heads)):
            row, col = divmod(place - self.size.prefix, self.size.side)
            for pair in range(pairs):
                by, number = (row, pair) if pair < pairs // 2 else (col, pair - pairs // 2)
                angle = by * 10000 ** (-2 * number / pairs)
                a, b = heads[place, :, 2 * pair], heads[place, :, 2 * pair + 1]
                out[place, :, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
                out[place, :, 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
        return out

    def hidden(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Embeddings [T, C] of prefix and image, of which `real` may be seen -> [T, C]."""
        count, size = len(x), self.size
        seen = torch.ones(count, count, dtype=torch.bool).tril()
        seen[:, : size.prefix] &= real
        seen |= torch.eye(count, dtype=torch.bool)
        for layer in range(size.layers):
            name = f"layers.{layer}."
            q, k, v = (self.normed(x, name + "attention_norm.weight") @ self.of[name + "attention.wqkv.weight"].T).chunk(3, -1)
            q, k, v = (part.view(count, size.heads, size.head_dim) for part in (q, k, v))
            logits = torch.einsum("thd,shd->hts", self.turned(q), self.turned(k)) / math.sqrt(size.head_dim)
            weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
            x = x + torch.einsum("hts,shd->thd", weights, v).reshape(count, -1) @ self.of[name + "attention.wo.weight"].T
            y = self.normed(x, name + "ffn_norm.weight")
            gate, up = (y @ self.of[f"{name}feed_forward.{one}.weight"].T for one in ("w1", "w3"))
            x = x + (functional.silu(gate) * up) @ self.of[name + "feed_forward.w2.weight"].T
        return self.normed(x, "norm.weight")

    def prefixes(self, asked: int | torch.Tensor) -> list[torch.Tensor]:
        """Embeddings [P, C] of a class, or of a caption's features [n, F], and of nothing."""
        if isinstance(asked, int):
            table = self.of["cls_embedding.embedding_table.weight"]
            return [table[asked : asked + 1], table[-1:]]
        padded = torch.zeros(self.size.slots, self.size.features)
        padded[-len(asked) :] = asked
        first, second = (self.of[f"cls_embedding.cap_proj.{one}.weight"] for one in ("fc1", "fc2"))
        nothing = self.of["cls_embedding.uncond_embedding"]
        return [functional.gelu(rows @ first.T, approximate="tanh") @ second.T for rows in (padded, nothing)]

    @torch.inference_mode()
    def logits(self, asked: int | torch.Tensor, codes: list[int], stream: int = 0) -> torch.Tensor:
        """[T + 1, V] of the codes so far, and of the next one."""
        prefix, count = self.prefixes(asked)[stream], 1 if isinstance(asked, int) else len(asked)
        real = torch.arange(self.size.prefix) >= self.size.prefix - count
        x = torch.cat([prefix, self.of["tok_embeddings.weight"][codes]])
        return self.hidden(x, real)[self.size.prefix - 1 :] @ self.of["output.weight"].T

    def greedy(self, asked: int | torch.Tensor, scale: float = 1.0, until: int | None = None) -> list[int]:
        """The most likely codes of one image; behind token `until`, where it is given, without guidance."""
        codes: list[int] = []
        for token in range(self.size.side**2):
            guided = self.logits(asked, codes)[-1]
            if scale != 1.0 and (until is None or token <= until):
                nothing = self.logits(asked, codes, 1)[-1]
                guided = nothing + scale * (guided - nothing)
            codes.append(int(guided.argmax()))
        return codes
