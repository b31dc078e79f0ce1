"""What other ways of rounding are worth: the prompt and anchors in fewer bits, a scale a channel of keys, clipped ranges.

    python reports/runtime/rounding.py -o reports/runtime/rounding.csv

Every token of `stickers` is kept, in 8 and in 4 bits as the runtime writes them, in one parallel pass; then one thing is
changed at a time. Writes a row a way: bits, way, bytes_of_token (of a head, keys and values), replay_kl (nats a token, on
images of prompts that no search saw) and its 95 % interval over images (kl_low, kl_high), and the paired difference to the
runtime's own way (difference, difference_low, difference_high).

- `runtime`: the prompt in the model's dtype, image tokens as the runtime writes them;
- `prefix`: the prompt in as many bits too; `anchors`: the first four image tokens in the model's dtype;
- `channels`: keys are divided by their largest size a channel and head on calibration images first, which the query takes back
  (KIVI's reason for quantising keys by channel, 2402.02750, section 3; it would change the format);
- `clip .9`: the range is that share of the largest minus the least number, about their middle; the share that loses least on
  calibration images is marked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from transformers import DynamicCache

import headscope
from headscope.intervals import mean_interval
from headscope.pipeline import default_prompts
from headscope.policy import code_bytes, code_groups
from headscope.storage import write_csv

CLIPS = (0.95, 0.9, 0.8)
ANCHORS = 4
# Keys or values [rows, heads, tokens, D] of a layer, and "keys" or "values" -> as they are read back.
Way = Callable[[torch.Tensor, int, str], torch.Tensor]


def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("rounding.csv"),
    images: Annotated[int, typer.Option(min=1, help="Of unseen prompts, and of calibration ones.")] = 32,
) -> None:
    """One change at a time."""
    torch.set_num_threads(1)
    model, prompts = headscope.load_model("stickers"), default_prompts("stickers")
    calibration, unseen = (
        headscope.Replay(model, headscope.generate(model, some[:images], seed), by_stream=False)
        for some, seed in ((prompts[0::2], 0), (prompts[1::2], 10_000))
    )
    largest = sizes_of_channels(calibration)
    rows: list[dict[str, Any]] = []
    for bits in (8, 4):
        ways = ways_of(bits, calibration.prefix, largest)
        losses = {name: measured(unseen, way) for name, way in ways.items()}
        clips = {name: measured(calibration, way).mean() for name, way in ways.items() if name.startswith("clip")}
        best = min(clips, key=lambda name: clips[name])
        for name, found in losses.items():
            apart = found - losses["runtime"]
            (low, high), (least, most) = mean_interval(found), mean_interval(apart)
            row = {
                "bits": bits,
                "way": f"{name}, calibrated" if name == best else name,
                "bytes_of_token": bytes_of(model, bits),
            }
            row |= {"replay_kl": found.mean(), "kl_low": low, "kl_high": high, "difference": apart.mean()}
            rows.append(row | {"difference_low": least, "difference_high": most})
            print(rows[-1])
    write_csv(pd.DataFrame(rows), out, float_format="%.4g")


def bytes_of(model: headscope.ImageModel, bits: int) -> int:
    """Of a token's key and value in one head."""
    size = model.shape.head_dim
    return 2 * (code_bytes(size, bits) + 4 * code_groups(size, bits))


def ways_of(bits: int, prefix: int, largest: list[torch.Tensor]) -> dict[str, Way]:
    """By name, what happens to keys and values."""

    def image_only(numbers: torch.Tensor, begin: int, clip: float = 1.0) -> torch.Tensor:
        return torch.cat([numbers[:, :, :begin], rounded(numbers[:, :, begin:], bits, clip)], 2)

    def by_channel(numbers: torch.Tensor, layer: int, what: str) -> torch.Tensor:
        if what == "values":
            return image_only(numbers, prefix)
        return image_only(numbers / largest[layer], prefix) * largest[layer]

    def clipped(clip: float) -> Way:
        return lambda numbers, layer, what: image_only(numbers, prefix, clip)

    return {
        "runtime": lambda numbers, layer, what: image_only(numbers, prefix),
        "prefix": lambda numbers, layer, what: image_only(numbers, 0),
        "anchors": lambda numbers, layer, what: image_only(numbers, prefix + ANCHORS),
        "channels": by_channel,
        **{f"clip {clip:g}": clipped(clip) for clip in CLIPS},
    }


def rounded(numbers: torch.Tensor, bits: int, clip: float) -> torch.Tensor:
    """As the runtime writes and reads them (headscope/runtime/quantized.py), the range clipped to a share of itself."""
    size, most = numbers.shape[-1], 2**bits - 1
    width = size if bits == 8 else 32
    parts = []
    for group in numbers.float().split(width, -1):
        low, high = group.amin(-1, keepdim=True), group.amax(-1, keepdim=True)
        middle, half = (low + high) / 2, (high - low) / 2 * clip
        zero, scale = (middle - half).half().float(), (2 * half / most).half().float()
        codes = ((group - zero) / scale).round().clamp(0, most).nan_to_num(0.0)
        parts.append(codes * scale + zero)
    return torch.cat(parts, -1).to(numbers.dtype)


class Rounding(DynamicCache):
    """A plain cache that hands on keys and values as they would be read back."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Round, and keep nothing: all tokens come in one call."""
        return self.way(keys, layer, "keys"), self.way(values, layer, "values")


@torch.inference_mode()
def measured(replay: headscope.Replay, way: Way) -> np.ndarray:
    """Loss of each image, nats a token."""
    found = []
    for batch in replay.batches:
        hidden = replay.model.forward(torch.cat([batch.prefix, batch.tokens], 1), batch.mask, Rounding(way))
        found.append(replay.divergence(hidden[:, replay.prefix :], batch.images).double().mean(1))
    return torch.cat(found).numpy()


@torch.inference_mode()
def sizes_of_channels(replay: headscope.Replay) -> list[torch.Tensor]:
    """By layer [1, heads, 1, D]: the largest size of a key's number."""
    largest: dict[int, torch.Tensor] = {}

    def watch(numbers: torch.Tensor, layer: int, what: str) -> torch.Tensor:
        if what == "keys":
            most = numbers.abs().amax((0, 2), keepdim=True)
            largest[layer] = torch.maximum(largest.get(layer, most), most)
        return numbers

    measured(replay, watch)
    return [largest[layer] for layer in sorted(largest)]


if __name__ == "__main__":
    typer.run(main)
