"""Drawing on a GPU: the whole step captured in a CUDA graph, the number of the token kept on the device.

Two graphs: a step, and a step at a stride end, which also chooses who stays. The host only launches them, one after the other,
and waits once a picture. Without a GPU the same steps run one by one (kernels.py in Triton's interpreter), which is how they
are tested.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache, LlamaModel

from headscope.models.protocol import ImageModel, Prefix
from headscope.policy.policy import Policy
from headscope.runtime.decoders.flat_cache import FlatLayer, Work, attend_flat, choose_flat
from headscope.runtime.decoders.llama_cpu import LlamaStep, step_for
from headscope.runtime.finite import finite_choice, no_numbers
from headscope.runtime.noise import Noise

# Programs that keep a large GPU busy: with fewer rows and heads the keys of a head are split.
PROGRAMS = 512


def draws_on_device(model: ImageModel) -> bool:
    """Whether this model's pictures can be drawn here: a GPU, Triton, and a decoder that the fast step knows."""
    return model.device.type == "cuda" and find_spec("triton") is not None and step_for(model) is not None


class DeviceDraw:
    """Pictures of one batch, with a policy.

    Args:
        prefix: encoded prompts, of which both streams are drawn under guidance.
        seeds: one a picture.
        splits: of the keys of a head; by default as many as keep the GPU busy.
    """

    def __init__(
        self,
        model: ImageModel,
        policy: Policy,
        prefix: Prefix,
        seeds: list[int],
        *,
        guidance: float,
        temperature: float,
        top_k: int | None,
        splits: int | None = None,
    ) -> None:
        assert isinstance(model.decoder, LlamaModel)
        self.model, self.policy = model, policy
        self.guidance, self.temperature, self.top_k = guidance, temperature, top_k
        self.streams = 1 if guidance == 1.0 else 2
        guided = self.streams == 2
        self.ids = torch.cat([prefix.ids, prefix.unconditional_ids]) if guided else prefix.ids
        self.mask = torch.cat([prefix.mask, prefix.unconditional_mask]) if guided else prefix.mask
        self.pictures, self.prefix = len(prefix.ids), prefix.ids.shape[1]
        self.count = model.shape.geometry.tokens
        device, shape = model.device, model.shape
        like = torch.empty(len(self.ids), shape.kv_heads, self.prefix, shape.head_dim, dtype=model.dtype, device=device)
        padding = (self.mask == 0).sum(1).to(torch.int32)
        self.layers = [FlatLayer(policy, layer, like, padding) for layer in range(shape.layers)]
        programs = len(self.ids) * shape.kv_heads
        self.work = Work(self.layers, splits or max(1, min(8, PROGRAMS // programs)))
        self.step = LlamaStep(model.decoder)
        self.noise = Noise(seeds, self.count, model.vocabulary, device)
        self.tokens = torch.zeros(self.count, self.pictures, dtype=torch.int64, device=device)
        self.now = torch.zeros(1, dtype=torch.int32, device=device)
        self.failed = torch.full((1,), self.count, dtype=torch.int64, device=device)  # first token whose logits are no numbers
        self.stride = self.layers[0].stride
        self._graphs: dict[bool, Callable[[], object]] = {}

    @torch.inference_mode()
    def draw(self, progress: Callable[[int], None] | None = None) -> torch.Tensor:
        """Tokens int64 [n, N]."""
        if not self._graphs:
            self._prepare()
        self._take_prefix()
        for t in range(self.count - 1):  # nothing looks at the last token
            self._graphs[(t + 1) % self.stride == 0]()
            if t % self.policy.shape.geometry.row_length == 0 or t + 2 == self.count:  # once a row: it waits for the device
                self._check_numbers()
            if progress is not None:
                progress(t + 2)
        return self.tokens.t().contiguous()

    def _check_numbers(self) -> None:
        if (token := int(self.failed)) < self.count:
            raise no_numbers(self.model, token, ([layer.keys, layer.values] for layer in self.layers))

    def nbytes(self) -> int:
        """Bytes of the caches."""
        return sum(layer.nbytes() for layer in self.layers)

    def _take_prefix(self) -> None:
        model, cache = self.model, DynamicCache()
        hidden = model.decode(model.embed_prefix(self.ids), self.mask, cache)
        for layer, found in zip(self.layers, cache.layers, strict=True):
            plain: Any = found
            layer.fill_prefix(plain.keys, plain.values)
            layer.scores.zero_()
        self.now.zero_()
        self.failed.fill_(self.count)
        self._draw_token(model.logits(hidden[:, -1:])[:, 0], 0)

    def _draw_token(self, logits: torch.Tensor, first: int) -> None:
        """Token now + `first` from the logits [B, V] of both streams."""
        logits = logits.float()
        if self.streams == 2:
            conditional, unconditional = logits.chunk(2)
            logits = torch.lerp(unconditional, conditional, self.guidance)
        place = (self.now + first).long()
        if self.temperature != 0.0:
            if self.top_k is not None:
                floor = logits.topk(self.top_k, -1).values[:, -1:]
                logits = logits.masked_fill(logits < floor, -torch.inf)
            logits = logits / self.temperature + self.noise.of(place)
        codes, found = finite_choice(logits)
        self.tokens.index_copy_(0, place, codes[None])
        self.failed.copy_(torch.where(found.all(), self.failed, torch.minimum(self.failed, place)))

    def _one(self, chooses: bool) -> None:
        """Feed token `now`, draw the next."""
        model = self.model
        token = self.tokens.index_select(0, self.now.long())[0]
        embeds = model.embed_tokens(token[:, None])[:, 0].repeat(self.streams, 1)
        hidden = self._forward(embeds)
        if chooses:
            for layer in self.layers:
                choose_flat(layer, self.work, self.now)
        self._draw_token(model.logits(hidden[:, None])[:, 0], 1)
        self.now += 1

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        """embeds [B, C] -> hidden [B, C]."""
        step, size = self.step, self.step.size
        heads, half = step.query_heads + step.kv_heads, self.step.size // 2
        cos, sin = step.angles(self.now.long() + self.prefix)  # [1, D]
        for block, layer in zip(step.layers, self.layers, strict=True):
            attention, mlp = block.self_attn, block.mlp
            normed = block.input_layernorm(x)
            parts = [linear(normed) for linear in (attention.q_proj, attention.k_proj)]
            turned = torch.cat(parts, 1).view(len(x), heads, size)
            swapped = torch.cat([turned[..., half:], turned[..., :half]], -1)
            turned = torch.addcmul(turned * cos, swapped, sin)
            query, key = turned[:, : step.query_heads].contiguous(), turned[:, step.query_heads :].contiguous()
            value = attention.v_proj(normed).view(len(x), step.kv_heads, size)
            out = attend_flat(layer, self.work, query, key, value, self.now, step.scaling)
            x = x + attention.o_proj(out.view(len(x), -1))
            normed = block.post_attention_layernorm(x)
            x = x + mlp.down_proj(functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        return step.norm(x)

    def _prepare(self) -> None:
        """Capture both graphs; the caches are filled afterwards."""
        kinds = (False, True)
        if self.model.device.type != "cuda":
            self._graphs = {kind: lambda kind=kind: self._one(kind) for kind in kinds}  # type: ignore[misc]
            return
        for layer in self.layers:
            layer.positions.zero_()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for kind in kinds:  # compiles the kernels and picks the libraries' algorithms
                self.now.fill_(self.stride - 1)
                self._one(kind)
        torch.cuda.current_stream().wait_stream(beside)
        for kind in kinds:
            self.now.zero_()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._one(kind)
            self._graphs[kind] = graph.replay
