"""A network, its decoder and the image model around it are easily taken for each other: what was expected, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from headscope.errors import ModelError

_NEEDED = ("shape", "decoder", "tokenize", "forward", "logits")
_WRAP = "headscope.models.RasterModel makes one of a network"


def expect_model(found: object, where: str, needed: Sequence[str] = _NEEDED) -> None:
    """Refuse what is no `ImageModel` at first sight.

    Args:
        found: what was given.
        where: the function that it was given to.
        needed: members that it uses.

    Raises:
        ModelError: it is something else, a network say.
    """
    if isinstance(found, nn.Module) or not all(hasattr(found, name) for name in needed):
        raise ModelError(f"{where}: expected an image model, as `load_model` gives it, found {kind_of(found)}; {_WRAP}.")


def expect_module(found: object, where: str) -> None:
    """Refuse what is no module of PyTorch.

    Args:
        found: what was given.
        where: the function that it was given to.

    Raises:
        ModelError: it is something else, an image model say.
    """
    if not isinstance(found, nn.Module):
        of = "; pass its `decoder`" if hasattr(found, "decoder") else ""
        raise ModelError(f"{where}: expected a module of PyTorch, found {kind_of(found)}{of}.")


def expect_decoder(found: object, where: str) -> None:
    """Refuse what has no attention layer that goes through transformers' attention interface.

    Args:
        found: what was given.
        where: the function that it was given to.

    Raises:
        ModelError: no layer's attention follows its configuration.
    """
    expect_module(found, where)
    decoder: Any = found
    config = getattr(decoder, "config", None)
    layers = [part for part in decoder.modules() if hasattr(part, "layer_idx") and getattr(part, "config", None) is config]
    if not hasattr(config, "_attn_implementation") or not layers:
        inner = "; pass its decoder, `get_decoder()`" if hasattr(decoder, "get_decoder") else f"; {_WRAP}"
        raise ModelError(
            f"{where}: expected a decoder whose layers attend through transformers' attention interface "
            f"(config._attn_implementation), found {kind_of(found)} without one{inner}."
        )


def kind_of(found: object) -> str:
    """Its class, with an article."""
    name = type(found).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
