"""A small fully convolutional detector of stickers: which class, which style, where.

One peak an object, after CenterNet (Zhou et al., "Objects as points", 1904.07850), with one heatmap for all classes and a
choice of class at the peak, one of which is `other`: things outside the known classes are found and left out.
Its recipe, its tests and their figures: `headscope/recipe/detector.py`, `reports/stickers/detector.csv`.
Long, because the network, what its maps mean and how the things in them get their names are read together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from headscope.errors import DataError
from headscope.facts import NUMBER, TEXTS, check, parsed
from headscope.models import resolve_device

WEIGHTS = Path(__file__).parent / "weights" / "detector.safetensors"
PIXELS = 96
OVERLAP = 0.4  # two peaks whose squares share more than this (intersection over union) are one thing
_ABOUT = {"classes": TEXTS, "styles": TEXTS, "threshold": NUMBER}
LIKE = 0.003  # least share of a class that another thing in the image shows, for a thing that looks like no class by itself


@dataclass(frozen=True)
class Detection:
    """One sticker.

    Attributes:
        name: its class.
        style: its style.
        score: 0..1.
        x: centre, from the left, as a share of the image's width.
        y: centre, from the top, as a share of the image's height.
        side: of its square, as a share of the image.
    """

    name: str
    style: str
    score: float
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Thing:
    """What stands at one peak of the objectness, before it is named.

    Attributes:
        objectness: 0..1.
        classes: shares of the classes, float32 [C].
        other: share of `other`; together 1.
        style: number of the likeliest style.
        x: as in `Detection`.
        y: likewise.
        side: likewise.
    """

    objectness: float
    classes: np.ndarray
    other: float
    style: int
    x: float
    y: float
    side: float


class _Convolution(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inner: int, outer: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
        )


class _Residual(nn.Module):
    """Two convolutions around a short cut, [b, channels, h, w] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _Convolution(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.second(self.first(x)))


class DetectorNetwork(nn.Module):
    """Images [b, 3, H, W] in -1..1 -> maps [b, 4 + classes + 1 + styles, H / 8, W / 8].

    Maps in order: objectness (logit), x and y of the centre from the cell's middle (cells), log of the side (in images of
    96 pixels), logits of the classes and of `other`, logits of the styles.
    """

    def __init__(self, classes: int, styles: int) -> None:
        super().__init__()
        self.classes, self.styles = classes, styles
        self.fine = nn.Sequential(
            _Convolution(3, 32, 5, 2), _Convolution(32, 64, 3, 2), _Residual(64), _Residual(64),
            _Convolution(64, 128, 3, 2), _Residual(128), _Residual(128),
        )  # fmt: skip
        self.coarse = nn.Sequential(_Convolution(128, 144, 3, 2), _Residual(144), _Residual(144))
        self.lift = nn.Conv2d(144, 128, 1)
        self.join = _Convolution(128, 128)
        self.head = nn.Conv2d(128, 4 + classes + 1 + styles, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [b, 3, H, W] -> float32 maps, see above."""
        fine = self.fine(images)
        coarse = functional.interpolate(self.lift(self.coarse(fine)), size=fine.shape[-2:], mode="bilinear")
        return self.head(self.join(fine + coarse)).float()

    def split(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """maps -> objectness [b, h, w], box [b, 3, h, w], class logits [b, C + 1, h, w], style logits [b, S, h, w]."""
        heat, box, names, styles = maps.split([1, 3, self.classes + 1, self.styles], 1)
        return heat[:, 0], box, names, styles


class StickerDetector:
    """Finds stickers in images of 96 x 96 pixels.

    Attributes:
        network: what it sees with.
        classes: what it can name.
        styles: likewise.
        threshold: least score of a detection, chosen by the recipe on training scenes.
    """

    def __init__(self, network: DetectorNetwork, classes: list[str], styles: list[str], threshold: float) -> None:
        self.network = channels_last(network.eval().requires_grad_(False))
        self.classes, self.styles, self.threshold = classes, styles, threshold

    @classmethod
    def load(cls, path: str | Path = WEIGHTS, device: str = "auto") -> StickerDetector:
        """Read a safetensors file; nothing in it is executed.

        Raises:
            DataError: a missing file, or one that holds something else.
        """
        about, state = _read(Path(path))
        try:
            network = DetectorNetwork(len(about["classes"]), len(about["styles"]))
            network.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
            absent = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")} - set(state)
            if absent:
                raise KeyError(min(absent))
        except (KeyError, RuntimeError) as error:
            raise DataError(
                f"{path}: holds other tensors than a sticker detector ({_line(error)}); take the shipped one."
            ) from None
        return cls(network.to(resolve_device(device)), about["classes"], about["styles"], float(about["threshold"]))

    def detect(self, images: torch.Tensor | np.ndarray, batch_size: int = 64) -> list[list[Detection]]:
        """Detections of each image, best first.

        Args:
            images: [b, 96, 96, 3], uint8 or float in 0..1.
            batch_size: images looked at together.

        Raises:
            DataError: another shape or dtype.
        """
        return [self.named(things) for things in self.things(images, self.threshold, batch_size)]

    @torch.inference_mode()
    def things(self, images: torch.Tensor | np.ndarray, least: float, batch_size: int = 64) -> list[list[Thing]]:
        """Things of each image, clearest first. Maps of the image and of its mirror image are averaged.

        Args:
            images: [b, 96, 96, 3], uint8 or float in 0..1.
            least: objectness from which on something is a thing, 0..1.
            batch_size: images looked at together.

        Raises:
            DataError: another shape or dtype.
        """
        given = _checked(images)
        device = next(self.network.parameters()).device
        found: list[list[Thing]] = []
        for part in given.split(batch_size):
            scaled = part.to(device).float() / 127.5 - 1 if part.dtype == torch.uint8 else part.to(device).float() * 2 - 1
            inputs = scaled.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            mirrored = self.network(inputs.flip(-1)).flip(-1)
            mirrored[:, 1].neg_()
            found += self._read_maps((self.network(inputs) + mirrored) / 2, least)
        return found

    def _read_maps(self, maps: torch.Tensor, least: float) -> list[list[Thing]]:
        heat, box, names, styles = self.network.split(maps.cpu())
        chance = heat.sigmoid()
        peaks = functional.max_pool2d(chance[:, None], 3, 1, 1)[:, 0] == chance
        likely = names.softmax(1)
        side = box[:, 2].exp()
        style = styles.argmax(1)
        rows, cols = chance.shape[1:]
        found: list[list[Thing]] = [[] for _ in range(len(maps))]
        for b, i, j in (peaks & (chance >= least)).nonzero().tolist():
            x = (j + 0.5 + float(box[b, 0, i, j])) / cols
            y = (i + 0.5 + float(box[b, 1, i, j])) / rows
            shares, other = likely[b, :-1, i, j].numpy(), float(likely[b, -1, i, j])
            found[b].append(Thing(float(chance[b, i, j]), shares, other, int(style[b, i, j]), x, y, float(side[b, i, j])))
        return [_distinct(sorted(each, key=lambda one: -one.objectness)) for each in found]

    def named(self, things: list[Thing]) -> list[Detection]:
        """Detections of one image's things, best first; those that look like `other` are left out.

        A thing that looks like no class by itself takes the class, of those recognised beside it, that it resembles most, as
        an eye would: the half-drawn fourth of four lemons is a lemon. Its score is half its objectness.
        """
        alone = [self._alone(thing) for thing in things]
        known = sorted({name for name, _ in alone if name >= 0})
        found = []
        for thing, (name, score) in zip(things, alone, strict=True):
            if name < 0 and known:
                name = known[int(thing.classes[known].argmax())]
                score = thing.objectness / 2
                if thing.classes[name] < LIKE:
                    continue
            if name >= 0:
                found.append(Detection(self.classes[name], self.styles[thing.style], score, thing.x, thing.y, thing.side))
        return sorted(found, key=lambda one: -one.score)

    def _alone(self, thing: Thing) -> tuple[int, float]:
        """Number of the thing's class (-1: none) and the score, objectness by share."""
        name = int(thing.classes.argmax())
        score = thing.objectness * float(thing.classes[name])
        return (name, score) if score >= self.threshold and thing.classes[name] > thing.other else (-1, 0.0)


def channels_last(module: Any) -> Any:
    """The module with its weights in the order that convolutions on a CPU like best."""
    return module.to(memory_format=torch.channels_last)


def known_names(path: str | Path = WEIGHTS) -> tuple[list[str], list[str]]:
    """Classes and styles that a detector file knows, without its weights."""
    try:
        with safe_open(str(path), "pt") as file:
            about = _about(Path(path), file.metadata())
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable detector file ({_line(error)}); expected a safetensors file of one.") from None
    return about["classes"], about["styles"]


class _Square(Protocol):
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...
    @property
    def side(self) -> float: ...


def overlap(one: _Square, other: _Square) -> float:
    """Intersection over union of the two squares."""
    shared = 1.0
    for axis in ("x", "y"):
        a, b = getattr(one, axis), getattr(other, axis)
        shared *= max(0.0, min(a + one.side / 2, b + other.side / 2) - max(a - one.side / 2, b - other.side / 2))
    return shared / (one.side**2 + other.side**2 - shared)


def _distinct(found: list[Thing]) -> list[Thing]:
    """Non-maximum suppression, best first."""
    kept: list[Thing] = []
    for one in found:
        if all(overlap(one, other) <= OVERLAP for other in kept):
            kept.append(one)
    return kept


def _checked(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    given = torch.as_tensor(images)
    if given.ndim != 4 or tuple(given.shape[1:]) != (PIXELS, PIXELS, 3):
        raise DataError(
            f"Images of shape {list(given.shape)}: StickerEval grades [images, {PIXELS}, {PIXELS}, 3]; "
            "generate them with the model `stickers-scenes`."
        )
    if given.dtype != torch.uint8 and not given.is_floating_point():
        raise DataError(f"Images of dtype {given.dtype}: expected uint8, or floats in 0..1.")
    return given


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    try:
        with safe_open(str(path), "pt") as file:
            return _about(path, file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable detector file ({_line(error)}); expected a safetensors file of one.") from None


def _about(path: Path, metadata: dict[str, str] | None) -> dict:
    about = {name: parsed(text, f"{path}: {name}") for name, text in (metadata or {}).items() if name in _ABOUT}
    if not about:
        raise DataError(f"{path}: names no classes, styles and threshold, so it is no sticker detector.")
    return check(about, _ABOUT, str(path))


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
