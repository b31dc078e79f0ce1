"""The table around a policy: what exchanging one head's option changes while all others stay as the policy has them.

The table by gradients (fisher.py) stands where nothing is compressed, and leaves out what heads do to each other. Here
gradients and changes are taken under the policy itself. With delta what a head writes under an option minus what it writes
under the policy, each layer being handed the input that it has under the policy, the loss KL(full || policy) changes by

    G . delta + 1/2 E[(g . delta)^2],

G the gradient of the loss, which is 0 with the full cache alone, and g the gradient of the log-probability of a code that is
sampled from the policy's own distribution (a step of Gauss and Newton; S. Amari, Natural Gradient Works Efficiently in
Learning, 1998, section 3). Gradients need a pass without buffers that are written in place: a replay records what each query
sees, and a parallel pass attends under that mask to keys and values as they are read back.

Choosing again by it gains on the images that it was taken from and loses on others (reports/stickers/again.csv), so no search
does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from headscope.models import Group, answer, logits_of, observe
from headscope.policy import Policy
from headscope.progress import Progress, of_task
from headscope.runtime import CompressedCache, compressed, read_back
from headscope.tuning.measure.fisher import SAMPLES, head_products
from headscope.tuning.measure.head_outputs import HeadOutputs, before
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.replay import Batch, Replay

# Images whose graph is held at once.
IMAGES = 4

# By layer [1 or samples, streams, images, N - 1, heads * D].
Gradients = list[torch.Tensor]


def table_around(
    replay: Replay,
    policy: Policy,
    options: Sequence[Option],
    *,
    anchor: int = 0,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Nats a token that the loss changes by where one head takes an option: float64 [layers, kv_heads, O], to second order.

    Args:
        replay: the calibration images, of a decoder that `HeadOutputs` can take apart.
        policy: that all other heads keep.
        options: what a head may keep.
        anchor: first image tokens that heads keep at every option.
        samples: gradients an image of codes of the policy's own distribution.
        seed: of these codes.
        progress: told of replays, one an option and batch.
    """
    shape, outputs = replay.model.shape, _UnderPolicy(replay, policy, anchor)
    found = torch.zeros(len(options), shape.layers, shape.kv_heads, dtype=torch.float64)
    tell = of_task(progress, "every head around the policy", len(options) * len(replay.batches))
    for number in range(len(replay.batches)):
        of_loss, of_codes = ParallelPass(replay, policy, number).gradients(samples, seed)
        with torch.inference_mode():
            now = outputs.full(number)
            for place, option in enumerate(options):
                changed = outputs.under(number, option)
                first = head_products(replay, of_loss, changed, now)
                second = head_products(replay, of_codes, changed, now)
                found[place] += torch.stack([layer.double().sum((0, 1, 2)) for layer in first]).cpu()
                found[place] += torch.stack([layer.double().square().sum((0, 1, 2)) for layer in second]).cpu() / (2 * samples)
                tell(number * len(options) + place + 1, len(options) * len(replay.batches))
        outputs.forget(number)
    return (found / (len(replay) * (shape.geometry.tokens - 1))).permute(1, 2, 0).numpy()


class _UnderPolicy(HeadOutputs):
    """What heads write where all others keep what a policy says."""

    def __init__(self, replay: Replay, policy: Policy, anchor: int) -> None:
        super().__init__(replay, policy.stride, anchor)
        self.policy = policy
        self._written: dict[int, list[torch.Tensor]] = {}

    def inputs(self, number: int) -> list[torch.Tensor]:
        """Each block's input under the policy, [rows, P + N - 1, C]."""
        if number not in self._inputs:
            layers = range(self.replay.model.shape.layers)
            inputs: list[list[torch.Tensor]] = [[] for _ in layers]
            written: list[list[torch.Tensor]] = [[] for _ in layers]
            with (
                before(self.sites.blocks, lambda layer, hidden: inputs[layer].append(hidden)),
                before(self.sites.projections, lambda layer, heads: written[layer].append(heads)),
            ):
                _replayed(self.replay, self.policy, self.replay.batches[number])
            self._inputs[number] = [torch.cat(parts, 1) for parts in inputs]
            self._written[number] = [torch.cat(parts, 1)[:, self.replay.prefix :] for parts in written]
        return self._inputs[number]

    def full(self, number: int) -> list[torch.Tensor]:
        """By layer what all heads write under the policy, [rows, N - 1, heads * D]."""
        self.inputs(number)
        return self._written[number]

    def forget(self, number: int) -> None:
        """Free what is kept of a batch."""
        super().forget(number)
        self._written.pop(number, None)


def _replayed(replay: Replay, policy: Policy, batch: Batch) -> torch.Tensor:
    """Hidden states [rows, N - 1, C] under a policy."""
    with compressed(replay.model, policy):
        rows, device = len(batch.prefix), replay.model.device
        cache = CompressedCache(policy, batch=rows, prefix=replay.prefix, dtype=replay.dtype, device=device)
        return replay.run(batch, policy, cache)


class ParallelPass:
    """One pass of a batch under a policy, all tokens at once, of which gradients can be taken.

    Args:
        replay: the images.
        policy: what is kept.
        number: of the batch.
    """

    def __init__(self, replay: Replay, policy: Policy, number: int) -> None:
        self.replay, self.policy, self.batch, self.number = replay, policy, replay.batches[number], number
        shape, last = replay.model.shape, replay.geometry.tokens - 1
        size = (len(self.batch.prefix), shape.query_heads, last, replay.prefix + last)
        self.seen = [torch.zeros(size, dtype=torch.bool, device=replay.model.device) for _ in range(shape.layers)]
        with torch.inference_mode(), observe(replay.model.decoder, self._note):
            _replayed(replay, policy, self.batch)

    def _note(self, layer: int, groups: list[Group]) -> None:
        """Which keys the queries of a chunk see."""
        prefix = self.replay.prefix
        for group in groups:
            at = group.query_positions
            if int(at[0]) < prefix:
                continue
            heads, rows, kv_heads = len(group.heads), len(group.q), group.k.shape[1]
            places = group.key_positions.expand(rows, kv_heads, -1)[:, :, None]  # [B, hk, 1, S]
            ok = (places >= 0) & (places <= at[:, None])  # [B, hk, T, S]
            ok = ok if group.visible is None else ok & group.visible
            part = torch.zeros(rows, kv_heads, len(at), self.seen[layer].shape[3], dtype=torch.uint8, device=ok.device)
            part.scatter_reduce_(3, places.clamp(min=0).expand_as(ok).long(), ok.to(torch.uint8), "amax")
            queries = slice(int(at[0]) - prefix, int(at[-1]) + 1 - prefix)
            self.seen[layer][:, group.heads, queries] = part.bool().repeat_interleave(heads // kv_heads, 1)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def gradients(self, samples: int, seed: int) -> tuple[Gradients, Gradients]:
        """Of the loss, and of sampled codes' log-probabilities, with respect to what heads write.

        Args:
            samples: codes a position.
            seed: with the batch's number that of the codes.
        """
        replay, rows = self.replay, len(self.batch.prefix) // self.replay.streams
        generator = torch.Generator(replay.model.device).manual_seed(seed * 100_003 + self.number)
        parts: list[tuple[Gradients, Gradients]] = []
        for begin in range(0, rows, IMAGES):
            images = torch.arange(begin, min(begin + IMAGES, rows))
            both = torch.cat([images + stream * rows for stream in range(replay.streams)])
            parts.append(self._of_rows(both, samples, generator))
        of_loss, of_codes = ([torch.cat(each, 2) for each in zip(*kind, strict=True)] for kind in zip(*parts, strict=True))
        return of_loss, of_codes

    def _of_rows(self, rows: torch.Tensor, samples: int, generator: torch.Generator) -> tuple[Gradients, Gradients]:
        """Of some rows of the batch, those of both streams of an image."""
        batch, written, sites = self.batch, list[torch.Tensor](), HeadOutputs(self.replay, self.policy.stride).sites
        some = Batch(batch.prefix.clone()[rows], batch.tokens.clone()[rows], batch.mask.clone()[rows], batch.images)
        with torch.no_grad():
            wanted = self.logs(self.replay.full(some))
        with (
            before(sites.blocks[:1], lambda _, hidden: hidden.detach().requires_grad_(True)),
            before(sites.projections, lambda layer, heads: written.append(heads)),
        ):
            logs = self.logs(self.hidden(some, rows))
        loss = (wanted.exp() * (wanted - logs)).sum()
        of_loss, of_codes = [torch.autograd.grad(loss, written, retain_graph=True)], []
        for sample in range(samples):
            codes = torch.multinomial(logs.detach().exp().flatten(0, 1), 1, generator=generator).view(*logs.shape[:2], 1)
            total = logs.gather(-1, codes).sum()
            of_codes.append(torch.autograd.grad(total, written, retain_graph=sample + 1 < samples))
        return self._by_layer(of_loss), self._by_layer(of_codes)

    def hidden(self, batch: Batch, rows: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, N - 1, C].

        Args:
            batch: some rows.
            rows: which of the whole batch they are.
        """
        replay, seen = self.replay, [layer.clone()[rows] for layer in self.seen]

        def attend(layer: int, groups: list[Group]) -> torch.Tensor:
            group = groups[0]
            assert group.v is not None
            keys, values = (self._as_read(layer, part) for part in (group.k, group.v))
            query, times = group.q[:, :, replay.prefix :], group.q.shape[1] // keys.shape[1]
            keys, values = (part.repeat_interleave(times, 1) for part in (keys, values))
            out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen[layer], scale=group.scaling)
            return out.transpose(1, 2)

        with answer(replay.model.decoder, attend):
            return replay.full(batch)

    def _as_read(self, layer: int, numbers: torch.Tensor) -> torch.Tensor:
        """Keys or values [B, H, P + N - 1, D] as a cache gives them back; gradients pass as if nothing was rounded."""
        read = numbers.detach().clone()
        for head, (bits, anchors) in enumerate(zip(self.policy.bits[layer], self.policy.anchor[layer], strict=True)):
            if int(bits) < 16:
                packed = slice(self.replay.prefix + int(anchors), None)
                read[:, head, packed] = read_back(read[:, head, packed], int(bits))
        return numbers + (read - numbers.detach())

    def logs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [images, N - 1, V] of the guided distribution.

        Args:
            hidden: [rows, N - 1, C].
        """
        replay = self.replay
        logits = (logits_of(replay.model, hidden, 1).float() / replay.temperature).unflatten(0, (replay.streams, -1))
        guided = logits[0] if replay.streams == 1 else torch.lerp(logits[1], logits[0], replay.scale)
        return torch.log_softmax(guided, -1)

    def _by_layer(self, made: Sequence[Sequence[torch.Tensor]]) -> Gradients:
        """Gradients of image tokens, the rows by stream and image."""
        cut = [torch.stack([each[layer][:, self.replay.prefix :] for each in made]) for layer in range(len(made[0]))]
        return [layer.unflatten(1, (self.replay.streams, -1)).detach() for layer in cut]
