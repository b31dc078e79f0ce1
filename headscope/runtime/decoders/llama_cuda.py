"""Decoding on a GPU: the whole step captured in a CUDA graph, the number of the token kept on the device.

Two graphs: a step, and a step at a stride end, which also chooses who stays. The host only launches them, one after the other,
and waits once a row of the image. Caches and graphs stay with the model (`GpuWork`) and serve every later batch of the same
shape. Without a GPU the same steps run one by one (in Triton's interpreter), which is how they are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import ClassVar

import torch

from headscope.models import ImageModel, Prefix
from headscope.policy import BUILT_IN, Policy
from headscope.runtime.cache_layer import check_prefix
from headscope.runtime.decoders.flat_attention import MOST_GROUP, MOST_SIZE
from headscope.runtime.decoders.gpu_work import GpuWork, Prompts, give_back, out_of_memory, take
from headscope.runtime.decoders.llama_cpu import plain_step
from headscope.runtime.decoders.trial import trial
from headscope.runtime.finite import no_numbers
from headscope.runtime.sampling import Sampler

OLDEST = (8, 0)  # compute capability of the cards whose tensor cores take bfloat16


class LlamaCudaDecoder:
    """See `Decoder` and `ImageDecoder`. Takes a policy and a Llama on a CUDA device, where Triton is.

    Args:
        model: whose decoder is a `LlamaModel`.
        policy: what the cache keeps.
        splits: parts that the keys of a head are attended to in; by default as many as keep the GPU busy.

    Attributes:
        prefix: tokens of the prompts, padding included.
        streams: rows of an image.
    """

    name: ClassVar[str] = "llama_cuda"

    def __init__(self, model: ImageModel, policy: Policy | None, *, splits: int | None = None) -> None:
        assert policy is not None
        policy.check_tables()
        self.model, self.policy, self.splits = model, policy, splits
        self.prefix, self.streams = 0, 1
        self._work: GpuWork | None = None
        self._rows = torch.empty(0)  # which of the images of the call each image of the work is

    @classmethod
    def lacking(cls, model: ImageModel, policy: Policy | None) -> str | None:
        """See `Decoder.lacking`."""
        if model.device.type != "cuda":
            return "needs a model on a CUDA device"
        if policy is None:
            return "needs a policy"
        if policy.rows_at_once:
            return "feeds one token a step, and this policy generates rows at once"
        if unknown := sorted(set(policy.other_scores) - set(BUILT_IN)):
            return f"knows the scores {', '.join(BUILT_IN)}, and this policy has {' and '.join(unknown)}"
        if not getattr(model, "starts", True):
            return "needs tokens before the image"
        if model.shape.geometry.row_end:
            return "forces no row ends"
        if (found := torch.cuda.get_device_capability(model.device)) < OLDEST:
            card = torch.cuda.get_device_name(model.device)
            return f"needs compute capability {OLDEST[0]}.{OLDEST[1]} or newer, and {card} has {found[0]}.{found[1]}"
        if find_spec("triton") is None:
            return "needs Triton"
        shape = model.shape
        if shape.folds_prefix:
            return "needs an entry for every token of the prefix (fold_prefix off)"
        if shape.query_heads > MOST_GROUP * shape.kv_heads:
            return f"takes at most {MOST_GROUP} query heads a KV head, and this model has {shape.query_heads // shape.kv_heads}"
        if shape.head_dim > MOST_SIZE or shape.head_dim % 2:
            return f"takes heads of an even size up to {MOST_SIZE}, and this model's have {shape.head_dim}"
        if plain_step(model) is None:
            return "needs a plain Llama decoder without hooks or observers"
        return trial(model)

    def prefill(self, prefix: Prefix, guided: bool) -> torch.Tensor:
        """See `Decoder.prefill`. Caches and graphs of an earlier call of this shape are taken again."""
        count, self.streams = len(prefix.ids), 2 if guided else 1
        self.prefix = prefix.ids.shape[1]
        check_prefix(self.policy, self.prefix)
        self._leave()
        stacked = prefix.stacked(guided)
        self._work = take(self.model, self.policy, count, Prompts.of(*stacked, self.streams), self.splits)
        self._rows = torch.arange(self._work.images, device=self.model.device).clamp_(max=count - 1)
        ids, mask = (self._spread(part, count) for part in stacked)
        with out_of_memory(self.model, len(ids), self.prefix):
            hidden = self._work.prefill(self.model, self.model.embed_prefix, ids, mask)
        return self._gathered(hidden, count)

    def step(self, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """See `Decoder.step`; nothing is captured."""
        work = self._working()
        work.now.fill_(t)
        work.x.copy_(work.table.index_select(0, tokens.index_select(0, self._rows)).repeat(self.streams, 1))
        return self._gathered(work.feed((t + 1) % work.stride == 0), len(tokens))

    @torch.inference_mode()
    def image_tokens(self, hidden: torch.Tensor, sampler: Sampler, report: Callable[[int], None]) -> torch.Tensor:
        """See `ImageDecoder.image_tokens`."""
        work, count = self._working(), len(hidden) // self.streams
        tokens, row = self.model.shape.geometry.tokens, self.model.shape.geometry.row_length
        with out_of_memory(self.model, len(work.x), self.prefix):
            graphs = work.graphs_for(self.model, sampler)
        work.begin()
        work.sampling.take(sampler)
        work.sample(self.model, self._spread(hidden, count), 0)
        for t in range(tokens - 1):  # nothing looks at the last token
            graphs[(t + 1) % work.stride == 0]()
            if t % row == 0 or t + 2 == tokens:  # once a row: it waits for the device
                self._check_numbers(int(work.sampling.failed))
            report(t + 2)
        return work.sampling.tokens[:, :count].t().contiguous()

    @torch.inference_mode()
    def uncaptured(self, t: int) -> None:
        """Feed token t of the last image again and sample the next, launch by launch; for profiles.

        Args:
            t: an image token but the last.
        """
        work = self._working()
        work.now.fill_(t)
        work.decode_step(self.model, (t + 1) % work.stride == 0)

    def kept(self) -> Iterable[Sequence[torch.Tensor]]:
        """See `Decoder.kept`."""
        return () if self._work is None else (layer.kept() for layer in self._work.layers)

    def nbytes(self) -> int:
        """See `Decoder.nbytes`."""
        return 0 if self._work is None else sum(layer.nbytes() for layer in self._work.layers)

    def __del__(self) -> None:
        self._leave()

    def _working(self) -> GpuWork:
        """Caches of the batch, from `prefill` on."""
        assert self._work is not None
        return self._work

    def _leave(self) -> None:
        """Leave caches and graphs to the next batch of the shape, of this decoder or another."""
        work, self._work = getattr(self, "_work", None), None
        if work is not None:
            give_back(self.model, work)

    def _spread(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Rows of `count` images, stream after stream, as rows of all images of the work."""
        parts = rows.split(count)
        return torch.cat([part.index_select(0, self._rows) for part in parts])

    def _gathered(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """The rows of the images of the call."""
        return torch.cat([part[:count] for part in rows.chunk(self.streams)])

    def _check_numbers(self, token: int) -> None:
        if token < self.model.shape.geometry.tokens:
            raise no_numbers(self.model, token, self.kept())
