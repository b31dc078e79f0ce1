"""What became of one variant's images, beside those of the full cache; what was measured stays, whatever happens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from headscope.evaluation.distances import distances
from headscope.evaluation.features import FeatureNetwork
from headscope.evaluation.layouts import save_image, write_dpg, write_facts, write_geneval
from headscope.evaluation.likeness import cosine, likeness, token_agreement
from headscope.models import ImageModel
from headscope.prompt_files import Asked
from headscope.runtime import FULL
from headscope.samples import Samples
from headscope.stickereval import WEIGHTS, GradingPrompt, StickerEval
from headscope.storage import read_json, read_parquet, write_json, write_parquet

GRADED = ["tag", "correct", "reason", "found"]
_COLUMNS = {
    **dict.fromkeys(("variant", "text"), str),
    **dict.fromkeys(("prompt", "seed", "ssim", "cosine", "agreement"), float),
    "psnr": object,  # infinite for equal images
}


@dataclass(frozen=True)
class Measured:
    """What was measured of one variant.

    Attributes:
        images: a row an image, as in `Evaluation.images`.
        means: by measure: means over the images, and distances to real images.
        by_row: of each row of the image, the share of tokens that are those of the full cache.
    """

    images: pd.DataFrame
    means: dict[str, float]
    by_row: list[float]


@dataclass(frozen=True)
class Measurer:
    """Compares images with `full`, those of the full cache from the same prompts and seeds.

    Attributes:
        model: whose tokens they are.
        full: the full cache's images, as tokens.
        asked: the prompts.
        out: images are written to `out/NAME`, what was measured to `out/measured`.
        seeds: images a prompt.
        grading: what StickerEval is to find, one a prompt, or None.
        real: uint8 [n, height, width, 3], or None.
        layout: see `EvaluationConfig`.
    """

    model: ImageModel
    full: Samples
    asked: Sequence[Asked]
    out: Path
    seeds: int
    grading: Sequence[GradingPrompt] | None = None
    real: np.ndarray | None = None
    layout: str | None = None

    def measure(self, name: str, samples: Samples) -> Measured:
        """Write the images and measure them, or read what was measured of the very same ones."""
        key = self._key(samples)
        kept = _read(self.out / "measured", name, key)
        if kept is None:
            kept = self._measure(name, samples)
            _keep(self.out / "measured", name, key, kept)
        elif sum(1 for _ in (self.out / name).rglob("*.png")) < self._files():
            self._write(self.out / name, _images(self.model, samples).numpy())  # some were deleted
        elif self.layout == "geneval":
            for number, one in enumerate(self.asked):  # their facts may have been edited since
                write_facts(self.out / name, number, one)
        return kept

    def _files(self) -> int:
        return len(self.asked) if self.layout == "dpg" else len(self.asked) * self.seeds

    def _measure(self, name: str, samples: Samples) -> Measured:
        images = self.reference if name == FULL else _images(self.model, samples)
        self._write(self.out / name, images.numpy())
        features = self.reference_features if name == FULL else self.network(images)
        like = likeness(images, self.reference)
        agreement = token_agreement(samples.tokens, self.full.tokens, self.model.shape.geometry.row_length)
        table = pd.DataFrame(
            {
                "variant": name,
                "prompt": np.repeat(range(len(self.asked)), self.seeds),
                "seed": samples.seeds.numpy(),
                "text": samples.prompts,
                "psnr": like["psnr"].numpy(),
                "ssim": like["ssim"].numpy(),
                "cosine": cosine(features, self.reference_features).numpy(),
                "agreement": agreement.mean(1).numpy(),
            }
        )
        if self.grading is not None:
            wanted = [self.grading[number // self.seeds] for number in range(len(samples))]
            table = pd.concat([table, self.grader.grade(images, wanted)[GRADED]], axis=1)
        means = {
            "psnr": float(table["psnr"].replace(np.inf, np.nan).mean()),
            "same": float(np.isinf(table["psnr"]).mean()),
            **{measure: float(table[measure].mean()) for measure in ("ssim", "cosine", "agreement")},
        }
        if self.real is not None:
            apart = distances(features, self.real_features)
            means |= {"kernel": apart.kernel, "kernel_spread": apart.kernel_spread, "frechet": apart.frechet}
        return Measured(table, means, [float(share) for share in agreement.mean(0)])

    @cached_property
    def network(self) -> FeatureNetwork:
        """What gives an image its features."""
        return FeatureNetwork(str(self.model.device))

    @cached_property
    def grader(self) -> StickerEval:
        """What looks for the stickers that a prompt asks for."""
        return StickerEval(device=str(self.model.device))

    @cached_property
    def reference(self) -> torch.Tensor:
        """uint8 [n, height, width, 3], the full cache's images."""
        return _images(self.model, self.full)

    @cached_property
    def reference_features(self) -> torch.Tensor:
        """float32 [n, features], of `reference`."""
        return self.network(self.reference)

    @cached_property
    def real_features(self) -> torch.Tensor:
        """float32 [n, features], of `real`, which must be there."""
        assert self.real is not None
        return self.network(self.real)

    @cached_property
    def _common(self) -> bytes:
        """Digest of all that the measures depend on but the variant's own images."""
        told = [[one.prompt, one.name] for one in self.asked]
        grading = None if self.grading is None else [repr(one) for one in self.grading]
        shape = None if self.real is None else list(self.real.shape)
        facts = [told, grading, shape, self.layout, self.seeds, self.model.shape.weights]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self.full.tokens.numpy().tobytes())
        if self.real is not None:
            digest.update(self.real.tobytes())
        if self.grading is not None:
            digest.update(WEIGHTS.read_bytes())
        return digest.digest()

    def _key(self, samples: Samples) -> str:
        """Of what was measured: equal keys, equal images and measures."""
        return hashlib.sha256(self._common + samples.tokens.numpy().tobytes()).hexdigest()

    def _write(self, folder: Path, images: np.ndarray) -> None:
        for number, one in enumerate(self.asked):
            mine = list(images[number * self.seeds : (number + 1) * self.seeds])
            if self.layout == "geneval":
                write_geneval(folder, number, one, mine)
            elif self.layout == "dpg":
                write_dpg(folder, one, mine)
            else:
                for seed, image in enumerate(mine):
                    save_image(image, folder / f"{number:05d}-{seed}.png")


def _images(model: ImageModel, samples: Samples, batch_size: int = 16) -> torch.Tensor:
    """uint8 [n, height, width, 3]."""
    return torch.cat([model.to_images(part) for part in samples.tokens.split(batch_size)])


def _keep(folder: Path, name: str, key: str, measured: Measured) -> None:
    """The table first: where the facts stand, all does."""
    write_parquet(measured.images, folder / f"{name}.parquet")
    means = {measure: None if np.isnan(value) else value for measure, value in measured.means.items()}
    write_json(folder / f"{name}.json", {"key": key, "means": means, "by_row": measured.by_row})


def _read(folder: Path, name: str, key: str) -> Measured | None:
    """What was measured of these very images; None where nothing was, or where it cannot be read."""
    facts, table = folder / f"{name}.json", folder / f"{name}.parquet"
    if not facts.is_file():
        return None
    try:
        found: dict[str, Any] = read_json(facts)
        if found["key"] != key:
            return None
        means = {measure: np.nan if value is None else float(value) for measure, value in found["means"].items()}
        return Measured(read_parquet(table, _COLUMNS), means, [float(share) for share in found["by_row"]])
    except Exception:
        return None  # it is measured again
