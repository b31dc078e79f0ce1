"""What a GPU needs for batches of one shape, kept with the model from one call to the next: caches, tables, captured graphs.

One is kept for a model, the last that was used: another shape, policy or weights moved elsewhere make a new one, and the old
one's memory is given back first. While a batch runs its work belongs to it alone, so that two threads do not share one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from headscope.errors import CacheError
from headscope.models import ImageModel
from headscope.policy import Policy
from headscope.runtime.decoders.device_sampler import DeviceSampler
from headscope.runtime.decoders.flat_attention import KernelScratch
from headscope.runtime.decoders.flat_cache import FlatLayer
from headscope.runtime.decoders.llama_cpu import plain_step
from headscope.runtime.decoders.llama_kernels import LlamaKernels
from headscope.runtime.sampling import Sampler

PREFILL_ROWS = 64  # rows of prompts taken in at once, so that what this needs stays small beside the cache
CODES = 4096  # codes that are embedded at once
Graphs = dict[bool, Callable[[], object]]  # by whether the step ends a stride

_kept: weakref.WeakKeyDictionary[nn.Module, GpuWork] = weakref.WeakKeyDictionary()
_lock = Lock()


@dataclass(frozen=True)
class Prompts:
    """What the prompts of a batch are to its caches.

    Attributes:
        length: tokens P of all of them, padding included.
        streams: rows of an image.
        shared: whether all unconditional rows begin with the same tokens and padding, so that one prefix serves them.
    """

    length: int
    streams: int
    shared: bool

    @classmethod
    def of(cls, ids: torch.Tensor, mask: torch.Tensor, streams: int) -> Prompts:
        """Of ids and mask [streams * n, P], the conditional rows first; it waits for the device."""
        rows = slice(len(ids) // streams, None)
        same = bool((ids[rows] == ids[-1]).all() & (mask[rows] == mask[-1]).all())
        return cls(ids.shape[1], streams, streams == 2 and same)

    def prefixes(self, images: int) -> int:
        """Different prefixes of so many images."""
        return images + 1 if self.shared else images * self.streams


@dataclass(frozen=True)
class _Key:
    """What caches and graphs hang on: the policy, rows and prompts, and where weights lie."""

    policy: str
    prompts: Prompts
    splits: int | None
    weights: tuple[object, ...]


def take(model: ImageModel, policy: Policy, images: int, prompts: Prompts, splits: int | None) -> GpuWork:
    """The work that was kept, where it serves, or a new one.

    Fewer images than it has are served too, as long as they are a quarter at least: more rows cost less than a new capture.

    Args:
        model: whose tokens are decoded.
        policy: what each head keeps.
        images: of the batch.
        prompts: of all its rows.
        splits: see `KernelScratch`.
    """
    with _lock:
        found = _kept.pop(model.decoder, None)
    if found is not None and found.key == _key(model, policy, prompts, splits) and images <= found.images <= 4 * images:
        return found
    del found
    with out_of_memory(model, images * prompts.streams, prompts.length):
        return GpuWork(model, policy, images, prompts, splits)


def give_back(model: ImageModel, work: GpuWork) -> None:
    """Keep this work for the next batch of the model."""
    with _lock:
        _kept[model.decoder] = work


def release(model: ImageModel) -> None:
    """Give the GPU's memory of the model's caches and graphs back.

    Args:
        model: whose work is dropped; a batch that runs keeps its own.
    """
    with _lock:
        _kept.pop(model.decoder, None)


@contextmanager
def out_of_memory(model: ImageModel, rows: int, prefix: int) -> Iterator[None]:
    """Say what did not fit, also where it was noticed inside a capture.

    Raises:
        CacheError: the GPU's memory does not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        raise CacheError(
            f"{model.name}: the GPU's memory does not hold {rows} rows with prompts of {prefix} tokens under this policy; "
            "generate fewer images at once, or keep less."
        ) from None


class GpuWork:
    """Caches, tables and graphs of one shape. It holds no reference to the model, which it would keep alive.

    Args: see `take`.

    Attributes:
        key: what it serves.
        images: of a batch.
        prefixes: that are stored; rows from the last one's on share it.
        layers: the caches.
        now: int32 [1], number of the token that is fed.
        padding: int32 [rows], tokens of the prefix that no query sees.
        stride: tokens between two choices.
        table: [V, C], embeddings of all codes.
        x: [rows, C], the residual stream.
        sampling: what samples; after `graphs_for`.
    """

    def __init__(self, model: ImageModel, policy: Policy, images: int, prompts: Prompts, splits: int | None) -> None:
        step = plain_step(model)
        assert step is not None
        self._kernels = LlamaKernels(step)  # before the key: weights may move together
        self.key, self.images = _key(model, policy, prompts, splits), images
        shape, rows, self.prefixes = model.shape, images * prompts.streams, prompts.prefixes(images)
        whole: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
        self.padding = torch.zeros(rows, dtype=torch.int32, device=model.device)
        like = torch.empty(1, **whole).expand(rows, shape.kv_heads, prompts.length, shape.head_dim)
        self.layers = [FlatLayer(policy, layer, like, self.padding, self.prefixes) for layer in range(shape.layers)]
        self.stride = self.layers[0].stride
        self._scratch = KernelScratch(self.layers, splits)
        self.now = torch.zeros(1, dtype=torch.int32, device=model.device)
        width = step.norm.weight.shape[0]
        self.table = torch.empty(model.vocabulary, width, **whole)
        self.x = torch.zeros(rows, width, **whole)
        self.sampling: DeviceSampler
        self._graphs: Graphs | None = None
        self._tokens = shape.geometry.tokens

    def prefill(
        self, model: ImageModel, embed: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Take prompts in, PREFILL_ROWS rows at a time.

        Args:
            model: whose prompts they are.
            embed: ids -> [b, P, C].
            ids: what is embedded, [rows, P, ...].
            mask: int64 [rows, P].

        Returns:
            hidden [rows, C] of the last token.
        """
        for start in range(0, len(self.table), CODES):
            codes = torch.arange(start, min(start + CODES, len(self.table)), device=self.x.device)
            self.table[start : start + CODES] = model.embed_tokens(codes[None])[0]
        self.padding.copy_((mask == 0).sum(1))
        hidden = torch.empty_like(self.x)
        for start in range(0, self.prefixes, PREFILL_ROWS):
            rows, cache = slice(start, min(start + PREFILL_ROWS, self.prefixes)), DynamicCache()
            hidden[rows] = model.forward(embed(ids[rows]), mask[rows], cache)[:, -1]
            for layer, found in zip(self.layers, cache.layers, strict=True):
                plain: Any = found
                layer.fill_prefix(plain.keys, plain.values, start)
        hidden[self.prefixes :] = hidden[self.prefixes - 1]
        self.begin()
        return hidden

    def begin(self) -> None:
        """Forget the image, not the prompts: slots are written before they are seen."""
        self.now.zero_()
        for layer in self.layers:
            layer.scores.zero_()

    def feed(self, ends_stride: bool) -> torch.Tensor:
        """The embeddings in `x` of token `now` -> hidden [rows, C]."""
        hidden = self._kernels(self.x, self.layers, self._scratch, self.now)
        if ends_stride:
            self._kernels.choose(self.layers, self._scratch, self.now)
        return hidden

    def sample(self, model: ImageModel, hidden: torch.Tensor, ahead: int) -> None:
        """Token now + `ahead` from hidden states [rows, C], and its embedding into `x`."""
        self.sampling(model.logits(hidden[:, None])[:, 0].contiguous(), self.now, ahead)

    def decode_step(self, model: ImageModel, ends_stride: bool) -> None:
        """Feed token `now` and sample the next; what a graph holds."""
        self.sample(model, self.feed(ends_stride), 1)
        self.now += 1

    def graphs_for(self, model: ImageModel, sampler: Sampler) -> Graphs:
        """Both steps, captured for sampling like this sampler's; without a GPU as functions.

        Prompts in the caches stay; what image tokens leave there is forgotten.
        """
        if self._graphs is None or not self.sampling.serves(sampler):
            self.sampling = DeviceSampler(sampler, self.images, self._tokens, self.table, self.x)
            self._graphs = self._captured(model)
        if self.x.device.type != "cuda":
            return {ends: lambda ends=ends: self.decode_step(model, ends) for ends in (False, True)}  # type: ignore[misc]
        return self._graphs

    def _captured(self, model: ImageModel) -> Graphs:
        if self.x.device.type != "cuda":
            return {}
        for layer in self.layers:
            layer.positions.zero_()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for ends_stride in (False, True):  # compiles the kernels and picks the libraries' algorithms
                self.now.fill_(self.stride - 1)
                self.decode_step(model, ends_stride)
        torch.cuda.current_stream().wait_stream(beside)
        found: Graphs = {}
        for ends_stride in (False, True):
            self.now.zero_()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.decode_step(model, ends_stride)
            found[ends_stride] = graph.replay
        return found


def _key(model: ImageModel, policy: Policy, prompts: Prompts, splits: int | None) -> _Key:
    """A graph reads weights where they lay when it was captured, so their addresses are part of what it serves."""
    parts = [part for part in {id(part): part for part in vars(model).values()}.values() if isinstance(part, nn.Module)]
    weights = (tensor.data_ptr() for part in parts for tensor in (*part.parameters(), *part.buffers()))
    return _Key(policy.fingerprint(), prompts, splits, (str(model.dtype), model.vocabulary, *weights))
