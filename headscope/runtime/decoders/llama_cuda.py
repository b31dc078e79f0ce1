"""Decoding on a GPU: the whole step captured in a CUDA graph, the number of the token kept on the device.

Two graphs: a step, and a step at a stride end, which also chooses who stays. The host only launches them, one after the other,
and waits once a row of the image. Without a GPU the same steps run one by one (triton_kernels.py in Triton's interpreter),
which is how they are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch.nn import functional
from transformers import DynamicCache, LlamaModel

from headscope.models import ImageModel, Prefix
from headscope.policy import Policy
from headscope.runtime.cache import check_prefix
from headscope.runtime.decoders.flat_cache import FlatLayer, KernelScratch, attend_flat, choose_flat
from headscope.runtime.decoders.llama_cpu import LlamaStep, step_for
from headscope.runtime.finite import no_numbers
from headscope.runtime.sampling import Sampler

# Programs that keep a large GPU busy: with fewer rows and heads the keys of a head are split.
PROGRAMS = 512


class LlamaCudaDecoder:
    """See `Decoder` and `ImageDecoder`. Takes a policy and a Llama on a CUDA device, where Triton is.

    Args:
        model: whose decoder is a `LlamaModel`.
        policy: what the cache keeps.
        splits: parts that the keys of a head are attended to in; by default as many as keep the GPU busy.

    Attributes:
        layers: the caches, one a layer; none before `prefill`.
        prefix: tokens of the prompts, padding included.
    """

    name: ClassVar[str] = "llama_cuda"

    def __init__(self, model: ImageModel, policy: Policy | None, *, splits: int | None = None) -> None:
        assert isinstance(model.decoder, LlamaModel)
        assert policy is not None
        self.model, self.policy, self.splits = model, policy, splits
        self.count = model.shape.geometry.tokens
        self.prefix, self.streams = 0, 1
        self.layers: list[FlatLayer] = []
        self._llama = LlamaStep(model.decoder)
        self._graphs: dict[bool, Callable[[], object]] = {}  # by whether the step ends a stride
        self._captured_for: Sampler | None = None

    @classmethod
    def lacking(cls, model: ImageModel, policy: Policy | None) -> str | None:
        """See `Decoder.lacking`."""
        if model.device.type != "cuda":
            return "needs a model on a CUDA device"
        if policy is None:
            return "needs a policy"
        if policy.quantized:
            return "reads 16 bits only, as yet"
        if find_spec("triton") is None:
            return "needs Triton"
        return None if step_for(model) is not None else "needs a plain Llama decoder without hooks or observers"

    def prefill(self, prefix: Prefix, guided: bool) -> torch.Tensor:
        """See `Decoder.prefill`. For as many rows as before, and prompts as long, memory and graphs stay."""
        model, cache = self.model, DynamicCache()
        ids, mask = prefix.stacked(guided)
        if not self.layers or (self.layers[0].batch, self.prefix) != ids.shape:
            self._allocate(*ids.shape)
        self.streams = 2 if guided else 1
        self.padding.copy_((mask == 0).sum(1))
        hidden = model.forward(model.embed_prefix(ids), mask, cache)
        for layer, found in zip(self.layers, cache.layers, strict=True):
            plain: Any = found
            layer.fill_prefix(plain.keys, plain.values)
        self._begin()
        return hidden[:, -1]

    def step(self, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """See `Decoder.step`; nothing is captured."""
        self.now.fill_(t)
        return self._feed(tokens, (t + 1) % self.stride == 0)

    @torch.inference_mode()
    def image_tokens(self, hidden: torch.Tensor, sampler: Sampler, report: Callable[[int], None]) -> torch.Tensor:
        """See `ImageDecoder.image_tokens`."""
        images = len(hidden) // self.streams
        if self._captured_for is not sampler:
            self.tokens = torch.zeros(self.count, images, dtype=torch.int64, device=self.model.device)
            self.failed = self.now.new_zeros(1, dtype=torch.int64)  # first token whose logits are no numbers
            self._capture(sampler)
        self._begin()
        self.failed.fill_(self.count)
        self._sample(hidden, sampler, 0)
        for t in range(self.count - 1):  # nothing looks at the last token
            self._graphs[(t + 1) % self.stride == 0]()
            if t % self.policy.shape.geometry.row_length == 0 or t + 2 == self.count:  # once a row: it waits for the device
                self._check_numbers()
            report(t + 2)
        return self.tokens.t().contiguous()

    def kept(self) -> Iterable[Sequence[torch.Tensor]]:
        """See `Decoder.kept`."""
        return ([layer.keys, layer.values] for layer in self.layers)

    def nbytes(self) -> int:
        """See `Decoder.nbytes`."""
        return sum(layer.nbytes() for layer in self.layers)

    def decode_step(self, sampler: Sampler, ends_stride: bool) -> None:
        """Feed token `now` and sample the next; what a graph holds."""
        hidden = self._feed(self.tokens.index_select(0, self.now.long())[0], ends_stride)
        self._sample(hidden, sampler, 1)
        self.now += 1

    def _allocate(self, rows: int, prefix: int) -> None:
        """Caches for so many rows, and prompts of so many tokens."""
        check_prefix(self.policy, prefix)
        shape, device = self.model.shape, self.model.device
        self.prefix = prefix
        self.padding = torch.zeros(rows, dtype=torch.int32, device=device)
        like = torch.empty(rows, shape.kv_heads, prefix, shape.head_dim, dtype=self.model.dtype, device=device)
        self.layers = [FlatLayer(self.policy, layer, like, self.padding) for layer in range(shape.layers)]
        self.stride = self.layers[0].stride
        self.scratch = KernelScratch(self.layers, self.splits or max(1, min(8, PROGRAMS // (rows * shape.kv_heads))))
        self.now = torch.zeros(1, dtype=torch.int32, device=device)
        self._captured_for = None

    def _begin(self) -> None:
        """Forget the image, not the prompts: slots are written before they are seen."""
        self.now.zero_()
        for layer in self.layers:
            layer.scores.zero_()

    def _check_numbers(self) -> None:
        if (token := int(self.failed)) < self.count:
            raise no_numbers(self.model, token, self.kept())

    def _sample(self, hidden: torch.Tensor, sampler: Sampler, ahead: int) -> None:
        """Token now + `ahead` from the hidden states [streams * n, C]."""
        place = (self.now + ahead).long()
        codes, found = sampler(self.model.logits(hidden[:, None])[:, 0], place)
        self.tokens.index_copy_(0, place, codes[None])
        self.failed.copy_(torch.where(found.all(), self.failed, torch.minimum(self.failed, place)))

    def _feed(self, tokens: torch.Tensor, ends_stride: bool) -> torch.Tensor:
        """Tokens [n] at `now` -> hidden [streams * n, C]."""
        hidden = self._forward(self.model.embed_tokens(tokens[:, None])[:, 0].repeat(self.streams, 1))
        if ends_stride:
            for layer in self.layers:
                choose_flat(layer, self.scratch, self.now)
        return hidden

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        """embeds [B, C] -> hidden [B, C]."""
        step, size = self._llama, self._llama.size
        heads, half = step.query_heads + step.kv_heads, size // 2
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
            out = attend_flat(layer, self.scratch, query, key, value, self.now, step.scaling)
            x = x + attention.o_proj(out.view(len(x), -1))
            normed = block.post_attention_layernorm(x)
            x = x + mlp.down_proj(functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        return step.norm(x)

    def _capture(self, sampler: Sampler) -> None:
        """Capture both graphs for this sampler. Prompts in the caches stay; what image tokens leave there is forgotten."""
        kinds = (False, True)
        self._captured_for = sampler
        if self.model.device.type != "cuda":
            self._graphs = {kind: lambda kind=kind: self.decode_step(sampler, kind) for kind in kinds}  # type: ignore[misc]
            return
        for layer in self.layers:
            layer.positions.zero_()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for kind in kinds:  # compiles the kernels and picks the libraries' algorithms
                self.now.fill_(self.stride - 1)
                self.decode_step(sampler, kind)
        torch.cuda.current_stream().wait_stream(beside)
        for kind in kinds:
            self.now.zero_()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.decode_step(sampler, kind)
            self._graphs[kind] = graph.replay
