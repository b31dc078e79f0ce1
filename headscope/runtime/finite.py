"""Numbers that are none: NaN or infinite logits end an image with the token, and the layer where it can be told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from headscope.errors import NumberError
from headscope.models import ImageModel


def finite_choice(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best code of each image, and whether it was found among numbers.

    The largest of a row is NaN where any of them is, infinite where one is, and -inf where none is left to choose.

    Args:
        scores: float32 [n, V].

    Returns:
        Codes int64 [n], and bool [n].
    """
    codes = scores.argmax(-1)
    return codes, scores.gather(-1, codes[:, None])[:, 0].isfinite()


def no_numbers(
    model: ImageModel, token: int, layers: Iterable[Sequence[torch.Tensor]], what: str = "image token"
) -> NumberError:
    """The error for logits that are no numbers.

    Args:
        model: that gave them.
        token: of the image, whose logits they are.
        layers: what the cache keeps of each layer, from which the first with such numbers is told.
        what: the word before the token's number.
    """
    first = next((n for n, kept in enumerate(layers) if not all(bool(part.isfinite().all()) for part in kept)), None)
    where = "" if first is None else f", the keys or values of layer {first} being the first that are none"
    dtype = str(model.dtype).removeprefix("torch.")
    advice = (
        "look for such numbers in its weights"
        if model.dtype == torch.float32
        else f"{dtype} may be too small for them: load the model in float32 (`dtype`)"
    )
    return NumberError(f"{model.name}: the logits of {what} {token} are NaN or infinite{where}; {advice}.")
