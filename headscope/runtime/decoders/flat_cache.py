"""A layer's compressed cache for a GPU: all heads in one flat tensor, and tables that say where every token goes.

Which slot a token takes and how many slots a head then sees follows from the policy alone, so both are tables over the tokens
of the image. Only who stays at a stride end is decided on the device (kernels/choice.py), without waiting for the host. What is
kept, and what is allocated, is the same as in buckets.py, which is the reference for the tests.

A head that drops its prompt has two slots for it (prompt_ends.py). Image slots of heads in 8 and 4 bits lie in tensors of their
own, packed as quantized.py packs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headscope.errors import CacheError
from headscope.policy import Policy, code_bytes, code_groups
from headscope.runtime.decoders.flat_scores import FlatScores

MOST_NUMBERS = 2**31 - 1
CODED = (8, 4)  # bits whose slots lie in tensors of their own


@dataclass(frozen=True)
class SlotTables:
    """Where the tokens of an image go in one layer; int32, on the device.

    Attributes:
        prompts: [H], a head's slots of the prompt.
        fronts: [H], the first of them among those of a prefix.
        begins: [H], a head's first slot behind the prefixes.
        firsts: [H], its slots before the image area (prompt and anchors).
        image_begins: [H], its first slot of the image area, counted like `begins`.
        score_begins: [H], the first of its scores; -1 for a head without.
        writes: [N, H], slot of token t, counted with the prompt's.
        lengths: [N, H], slots that t sees, itself counted.
        heavy: [heads with heavy tokens], their numbers.
        windows: [H], the policy's.
        kepts: [H], window + heavy.
        per_visits: [H], the policy's, 0 or 1.
        decays: float32 [H], the policy's.
        bits: [H], the policy's.
        code_begins: [H], a head's first image slot among those of its bits; 0 at 16.
        front: slots of a prefix, of all heads.
        slots: of a row of the batch behind the prefixes, in the model's dtype.
        coded: of a row of the batch, by bits.
        score_slots: of a row of the batch.
        live_most: most image slots of a heavy head.
    """

    prompts: torch.Tensor
    fronts: torch.Tensor
    begins: torch.Tensor
    firsts: torch.Tensor
    image_begins: torch.Tensor
    score_begins: torch.Tensor
    writes: torch.Tensor
    lengths: torch.Tensor
    heavy: torch.Tensor
    windows: torch.Tensor
    kepts: torch.Tensor
    per_visits: torch.Tensor
    decays: torch.Tensor
    bits: torch.Tensor
    code_begins: torch.Tensor
    front: int
    slots: int
    coded: dict[int, int]
    score_slots: int
    live_most: int

    @classmethod
    def of(cls, policy: Policy, layer: int, prefix: int, device: torch.device | str = "cpu") -> SlotTables:
        """The tables of a layer for prompts of `prefix` tokens."""
        tokens = policy.shape.geometry.tokens
        stride = min(policy.stride, tokens)
        numbers = [tensor[layer].tolist() for tensor in (policy.window, policy.heavy, policy.anchor, policy.bits)]
        prompts = [policy.shape.prefix_slots(prefix, whole=not short) for short in policy.drops_prompt[layer].tolist()]
        begins, firsts, score_begins, code_begins, columns = [], [], [], [], []
        slots, score_slots, live_most, coded = 0, 0, 0, dict.fromkeys(CODED, 0)
        for prompt, window, heavy, anchor, bits in zip(prompts, *numbers, strict=True):
            begins.append(slots)
            firsts.append(prompt + anchor)
            score_begins.append(score_slots if heavy else -1)
            code_begins.append(coded.get(bits, 0))
            area = window + heavy + stride if heavy else window + 1
            slots += anchor
            if bits in coded:
                coded[bits] += area
            else:
                slots += area
            if heavy:
                score_slots += area
                live_most = max(live_most, area)
            columns.append(_column(window, heavy, anchor, prompt, stride, tokens))
        whole: dict[str, Any] = {"dtype": torch.int32, "device": device}
        return cls(
            prompts=torch.tensor(prompts, **whole),
            fronts=torch.tensor([0, *prompts[:-1]], **whole).cumsum(0, dtype=torch.int32),
            begins=torch.tensor(begins, **whole),
            firsts=torch.tensor(firsts, **whole),
            image_begins=torch.tensor(begins, **whole) + policy.anchor[layer].to(**whole),
            score_begins=torch.tensor(score_begins, **whole),
            writes=torch.tensor([writes for writes, _ in columns], **whole).t().contiguous(),
            lengths=torch.tensor([lengths for _, lengths in columns], **whole).t().contiguous(),
            heavy=torch.tensor([head for head, heavy in enumerate(numbers[1]) if heavy], **whole),
            windows=policy.window[layer].to(**whole),
            kepts=(policy.window + policy.heavy)[layer].to(**whole),
            per_visits=policy.per_visit[layer].to(**whole),
            decays=policy.decay[layer].to(device=device, dtype=torch.float32),
            bits=policy.bits[layer].to(**whole),
            code_begins=torch.tensor(code_begins, **whole),
            front=sum(prompts),
            slots=slots,
            coded=coded,
            score_slots=score_slots,
            live_most=live_most,
        )


def _column(window: int, heavy: int, anchor: int, prompt: int, stride: int, tokens: int) -> tuple[list[int], list[int]]:
    """Slot and length of every token of one head."""
    writes, lengths, live = [], [], 0
    for t in range(tokens):
        if t < anchor:
            writes.append(prompt + t)
            lengths.append(prompt + t + 1)
        elif heavy:
            writes.append(prompt + anchor + live)
            live += 1
            lengths.append(prompt + anchor + live)
        else:
            ring = window + 1
            writes.append(prompt + anchor + (t - anchor) % ring)
            lengths.append(prompt + anchor + min(t - anchor + 1, ring))
        if heavy and (t + 1) % stride == 0:
            live = min(live, window + heavy)
    return writes, lengths


class FlatLayer:
    """One layer's slots, scores and tables.

    Keys, and values, are one tensor of slots: of all prefixes what each head keeps, head by head, and behind them what each row
    keeps of the image. Rows that begin with the same prompt may share one prefix.

    Args:
        policy: what to keep.
        layer: its number.
        like: keys [B, H, P, D] of the prefix, for batch, prefix, head size, dtype and device.
        padding: int32 [B], tokens of the prefix that no query sees, from the left.
        prefixes: how many there are; rows from the last one's on share it. All rows have their own by default.

    Attributes:
        keys: [prefixes * front + B * slots, D].
        values: likewise.
        codes: by bits, uint8 [2, B, coded slots, bytes] of keys and of values.
        steps: by bits, float16 [2, B, coded slots, groups, 2], scales and zeros.
        scores: float32 [B, score slots].
        positions: int32 [B, score slots].
        kinds: kinds of scores, and their tables.
    """

    def __init__(
        self, policy: Policy, layer: int, like: torch.Tensor, padding: torch.Tensor, prefixes: int | None = None
    ) -> None:
        batch, self.heads, prefix, self.size = like.shape
        self.stride = min(policy.stride, policy.shape.geometry.tokens)
        self.queries_per_kv = policy.shape.query_heads // policy.shape.kv_heads
        self.tables = SlotTables.of(policy, layer, prefix, like.device)
        self.kinds = FlatScores.of(policy, layer, like.device)
        self.padding = padding
        self.batch, self.prefix, self.prefixes = batch, prefix, prefixes or batch
        tables, device = self.tables, like.device
        self.front = self.prefixes * tables.front
        self.keys = like.new_zeros(self.front + batch * tables.slots, self.size)
        self.values = torch.zeros_like(self.keys)
        if self.keys.numel() > MOST_NUMBERS:  # kernels count them in int32
            raise CacheError(
                f"Layer {layer}: keys of {batch} rows are {self.keys.numel()} numbers; generate fewer images at once."
            )
        self.codes, self.steps = {}, {}
        for bits, slots in tables.coded.items():
            shape = (2, batch, slots)
            self.codes[bits] = torch.zeros(*shape, code_bytes(self.size, bits), dtype=torch.uint8, device=device)
            self.steps[bits] = torch.zeros(*shape, code_groups(self.size, bits), 2, dtype=torch.float16, device=device)
        self.scores = torch.zeros(batch, tables.score_slots, dtype=torch.float32, device=device)
        self.positions = torch.full((batch, tables.score_slots), -1, dtype=torch.int32, device=device)

    def fill_prefix(self, keys: torch.Tensor, values: torch.Tensor, start: int = 0) -> None:
        """keys, values [b, H, P, D] of the prefixes from `start` on, whose `padding` is known; a head takes what it keeps."""
        rows = slice(start, start + len(keys))
        for into, part in ((self.keys, keys), (self.values, values)):
            area = into[: self.front].view(self.prefixes, self.tables.front, self.size)[rows]
            if self.tables.front == self.heads * self.prefix:
                area.view(part.shape).copy_(part)
            else:
                places = self._kept_of_prompts(self.padding[rows])[..., None].expand(-1, -1, self.size)
                area.copy_(part.flatten(1, 2).gather(1, places))

    def _kept_of_prompts(self, padding: torch.Tensor) -> torch.Tensor:
        """int64 [b, front]: which of the tokens [H * P] of a prefix its slots hold, for paddings [b].

        Example: P 5, padding 2, a whole head and one that keeps the ends: 0 1 2 3 4 | 5 + 2, 5 + 4.
        """
        whole, parts = torch.arange(self.prefix, device=padding.device).expand(len(padding), -1), []
        ends = torch.stack([padding.long(), torch.full_like(padding, self.prefix - 1, dtype=torch.int64)], 1)
        for head, slots in enumerate(self.tables.prompts.tolist()):
            parts.append(head * self.prefix + (whole if slots == self.prefix else ends))
        return torch.cat(parts, 1)

    def prompt_of(self, numbers: torch.Tensor, head: int) -> torch.Tensor:
        """A head's slots of all prefixes in `keys` or `values`: [prefixes, slots of its prompt, D]."""
        begin, slots = int(self.tables.fronts[head]), int(self.tables.prompts[head])
        return numbers[: self.front].view(self.prefixes, self.tables.front, self.size)[:, begin : begin + slots]

    def image_of(self, numbers: torch.Tensor) -> torch.Tensor:
        """What rows keep of the image in `keys` or `values`: [B, slots, D]."""
        return numbers[self.front :].view(self.batch, self.tables.slots, self.size)

    def kept(self) -> list[torch.Tensor]:
        """What tells where numbers went wrong: keys and values, and the scales and zeros of those in fewer bits."""
        return [self.keys, self.values, *self.steps.values()]

    def tensors(self) -> list[torch.Tensor]:
        """Everything that an image's cache takes; all tables, and scratch, are shared by all rows of the batch."""
        return [*self.kept(), *self.codes.values(), self.scores, self.positions]

    def nbytes(self) -> int:
        """Bytes of `tensors`."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())
