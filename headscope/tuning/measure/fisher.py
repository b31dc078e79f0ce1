"""The sensitivity table from gradients: all heads at all options for a few backward passes and one replay an option.

For small changes of what a head writes, KL(full || changed) = 1/2 E[(g . delta)^2] with g the gradient of the log-probability
of codes that are sampled from the full distribution itself: the Fisher information (S. Amari, Natural Gradient Works
Efficiently in Learning, 1998, section 3; for pruning, Molchanov et al., 1906.10771). Here

- g: at every position a code is sampled from the guided distribution, and the sum of their log-probabilities over an image is
  differentiated with respect to what each head of each layer writes;
- delta: what a head writes under an option minus what it writes in full, each layer being handed its full-cache input
  (`HeadOutputs`), so that one replay gives it for every head as if that one alone were compressed.

The loss of a head at an option is the sum over images, samples and positions of (g . delta at that position, over both streams
and the query heads of the KV head)^2, divided by 2 * images * samples * (N - 1). It leaves out what heads do to each other and
what is not small: against exact replays it is 1 to 16 % too low, in nearly the same order (reports/stickers/fisher.csv).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from headscope.errors import DataError
from headscope.models import logits_of
from headscope.progress import Progress, of_task
from headscope.storage import read_json, write_json
from headscope.tuning.measure.head_outputs import HeadOutputs, before, image_places, of_image
from headscope.tuning.measure.options import COLUMNS, Option
from headscope.tuning.measure.replay import Batch, Replay
from headscope.tuning.measure.room import batch_bytes
from headscope.tuning.measure.sensitivity import table_identity
from headscope.tuning.measure.sites import Sites, find_sites

# Gradients sampled an image: 4 on 8 images put the bundled model's heads in the order that exact replays give.
SAMPLES = 4


def fisher_table(
    replay: Replay,
    options: Sequence[Option],
    stride: int,
    *,
    anchor: int = 0,
    samples: int = SAMPLES,
    seed: int = 0,
    part: Path | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Estimate every head's loss alone at every option.

    Args:
        replay: the calibration images, of a decoder that `HeadOutputs` can take apart.
        options: what a head may keep.
        stride: tokens between two choices of heavy tokens.
        anchor: first image tokens that heads keep at every option.
        samples: gradients an image.
        seed: of the sampled codes; the same seed gives the same table.
        part: file that is written after every batch of images and goes when the table is whole: the same call goes on there.
        progress: told of replays, one an option and batch.

    Returns:
        A row a layer, KV head and option: layer, kv_head, window, heavy, decay, bits, prompt, stride, loss (nats a token); its
        `attrs` say the `seconds` that it took.
    """
    shape, started = replay.model.shape, time.monotonic()
    outputs = HeadOutputs(replay, stride, anchor)
    tell = of_task(progress, "every head by gradients", len(options) * len(replay.batches))
    sums = _Sums.open(part, replay, options, {"stride": stride, "anchor": anchor, "samples": samples, "seed": seed})
    for number in range(sums.batches, len(replay.batches)):
        gradients = sampled_gradients(replay, number, samples, seed)
        with torch.inference_mode():
            full = outputs.full(number)
            for place, option in enumerate(options):
                found = head_products(replay, gradients, outputs.under(number, option), full)
                sums.losses[place] += torch.stack([layer.double().square().sum((0, 1, 2)) for layer in found]).cpu()
                tell(number * len(options) + place + 1, len(options) * len(replay.batches))
        outputs.forget(number)
        sums.add_batch()
    losses = sums.losses / (2 * len(replay) * samples * (shape.geometry.tokens - 1))
    sums.close()
    rows = [
        (layer, head, *option.numbers(), stride, float(losses[place, layer, head]))
        for place, option in enumerate(options)
        for layer in range(shape.layers)
        for head in range(shape.kv_heads)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["seconds"] = time.monotonic() - started
    return table


def sampled_gradients(replay: Replay, number: int, samples: int, seed: int) -> list[torch.Tensor]:
    """Gradients of sampled codes' log-probabilities with respect to what heads write.

    Args:
        replay: the images.
        number: of the batch.
        samples: gradients an image.
        seed: with the batch's number that of the codes.

    Returns:
        By layer [samples, streams, images, N - 1, heads * D].
    """
    batch, model, sites = replay.batches[number], replay.model, find_sites(replay.model)
    assert sites is not None
    rows = len(batch.prefix) // replay.streams
    generator = torch.Generator(model.device).manual_seed(seed * 100_003 + number)
    found: list[list[torch.Tensor]] = []
    for begin in range(0, rows, step := _images_at_once(replay)):
        some = torch.cat([torch.arange(begin, min(begin + step, rows)) + stream * rows for stream in range(replay.streams)])
        found.append(_gradients(replay, sites, _some(batch, some.to(model.device)), samples, generator))
    return [torch.cat(parts, 2) for parts in zip(*found, strict=True)]


@torch.inference_mode(False)
@torch.enable_grad()
def _gradients(replay: Replay, sites: Sites, batch: Batch, samples: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Of some rows of a batch, those of both streams of an image."""
    model, streams, written = replay.model, replay.streams, list[torch.Tensor]()
    with (
        before(sites.blocks[:1], lambda _, hidden: hidden.detach().requires_grad_(True)),
        before(sites.projections, lambda layer, heads: written.append(heads)),
    ):
        hidden = model.forward(torch.cat([batch.prefix, batch.tokens], 1), batch.mask, None)[:, replay.prefix :]
    logits = (logits_of(model, hidden, 1).float() / replay.temperature).unflatten(0, (streams, -1))
    guided = logits[0] if streams == 1 else torch.lerp(logits[1], logits[0], replay.scale)
    logs = torch.log_softmax(guided, -1)
    made = []
    for sample in range(samples):
        codes = torch.multinomial(logs.detach().exp().flatten(0, 1), 1, generator=generator).view(*logs.shape[:2], 1)
        total = logs.gather(-1, codes).sum()
        made.append(torch.autograd.grad(total, written, retain_graph=sample + 1 < samples))
    places = image_places(replay, batch, sites)
    cut = [torch.stack([of_image(each[layer], places) for each in made]) for layer in range(len(written))]
    return [layer.unflatten(1, (streams, -1)).detach() for layer in cut]


def _some(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some rows of a batch, as tensors that gradients can be taken of."""
    with torch.inference_mode(False):
        prefix, tokens, mask = (part.clone()[rows] for part in (batch.prefix, batch.tokens, batch.mask))
        return Batch(prefix, tokens, mask, batch.images)


def head_products(
    replay: Replay, gradients: list[torch.Tensor], changed: list[torch.Tensor], full: list[torch.Tensor]
) -> list[torch.Tensor]:
    """g . delta of every head: what its change does to the log-probabilities of sampled codes, to first order.

    Args:
        replay: the images.
        gradients: of `sampled_gradients`, of a batch.
        changed: what heads write under an option, of `HeadOutputs.under`.
        full: the same under the full cache.

    Returns:
        By layer float32 [samples, images, N - 1, kv_heads], summed over both streams and the query heads of a KV head.
    """
    kv_heads, found = replay.model.shape.kv_heads, []
    for gradient, after, plain in zip(gradients, changed, full, strict=True):
        delta = (after - plain).float().unflatten(0, (replay.streams, -1))
        found.append((gradient * delta).unflatten(-1, (kv_heads, -1)).sum((1, -1)))
    return found


@dataclass
class _Sums:
    """Sums of squares over batches, float64 [options, layers, kv_heads], in a file that a stopped table goes on from."""

    losses: torch.Tensor
    batches: int
    path: Path | None
    identity: dict[str, Any]

    @classmethod
    def open(cls, path: Path | None, replay: Replay, options: Sequence[Option], numbers: dict[str, Any]) -> _Sums:
        """What the file holds of these very sums, or none yet."""
        shape = replay.model.shape
        size = (len(options), shape.layers, shape.kv_heads)
        kept = {"batch_size": replay.batch_size, "options": [list(asdict(option).values()) for option in options]}
        identity = {**table_identity(replay, numbers["stride"]), **numbers, **kept}
        if path is not None and path.exists():
            with suppress(DataError, KeyError, TypeError, ValueError):
                found = read_json(path)
                losses, batches = torch.tensor(found["sums"], dtype=torch.float64), int(found["batches"])
                if found["identity"] == identity and losses.shape == size and 0 < batches <= len(replay.batches):
                    return cls(losses, batches, path, identity)
        return cls(torch.zeros(size, dtype=torch.float64), 0, path, identity)

    def add_batch(self) -> None:
        """Another batch is in the sums."""
        self.batches += 1
        if self.path is not None:
            write_json(self.path, {"identity": self.identity, "batches": self.batches, "sums": self.losses.tolist()})

    def close(self) -> None:
        """The table is whole."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _images_at_once(replay: Replay) -> int:
    """Images whose graph fits into `batch_bytes`: every layer's states and attention, and the logits."""
    shape = replay.model.shape
    length = replay.prefix + shape.geometry.tokens
    width = shape.query_heads * shape.head_dim
    layer = length * (24 * width + 2 * shape.query_heads * length)
    image = 4 * replay.streams * (shape.layers * layer + 4 * length * replay.model.vocabulary)
    return max(1, batch_bytes(replay.model.device) // image)
