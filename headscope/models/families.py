"""Which family a folder's model is of, by its config.json, and what loads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.errors import ModelError
from headscope.facts import clipped
from headscope.models.card import CARD, is_raster_folder
from headscope.models.causal_lm import is_text_family, load_causal_lm
from headscope.models.janus import load_janus
from headscope.models.janus_original import ORIGINAL_TYPE, load_janus_original
from headscope.models.llamagen_files import SIDE_FILE, is_llamagen_folder
from headscope.models.llamagen_loading import load_llamagen
from headscope.models.model_name import FEATURES, FOLD_PREFIX
from headscope.models.protocol import ImageModel
from headscope.models.raster import load_raster


@dataclass(frozen=True)
class Family:
    """Models that one loader takes.

    Attributes:
        title: what a user calls them.
        claims: whether a configuration, the object in config.json, is of the family.
        load: of a folder (or a hub id), the model's name, a device and a dtype to a model ready to generate.
        by_id: `load` takes a hub id too and fetches what it needs; else it takes folders only.
        writes_text: the model continues text.
        settings: that `load` takes as texts by name, see `split_name`.
    """

    title: str
    claims: Callable[[dict[str, Any]], bool]
    load: Callable[..., ImageModel]
    by_id: bool = False
    writes_text: bool = False
    settings: tuple[str, ...] = ()


# Said by headscope.toml beside config.json, which may be of any kind of network.
OWN = Family("a network of one's own", lambda config: False, load_raster)
# Said by its files, beside which there is no config.json.
LLAMAGEN = Family("LlamaGen", lambda config: False, load_llamagen, settings=(FEATURES, FOLD_PREFIX))
FAMILIES = (
    Family("Janus in transformers' format", lambda config: config.get("model_type") == "janus", load_janus, by_id=True),
    Family(
        "Janus in DeepSeek's format",
        lambda config: config.get("model_type") == ORIGINAL_TYPE or "gen_vision_config" in config,
        load_janus_original,
    ),
    Family("a text model", lambda config: is_text_family(config.get("model_type")), load_causal_lm, writes_text=True),
)


def family_of(source: str | Path, file: Path | None = None) -> Family:
    """The family of a folder's model.

    Args:
        source: the folder; or a hub id, for the sentence, whose config.json is `file`.
        file: config.json, where it is not in the folder `source`.

    Raises:
        ModelError: there is no configuration, or it is of no family, or of two.
    """
    if file is None and is_llamagen_folder(Path(source)):
        _check_alone(Path(source))
        return LLAMAGEN
    own = file is None and is_raster_folder(Path(source))
    config = _configuration(source, file)
    if config is None and not own:
        raise ModelError(
            f"{source}: no readable config.json in this folder, so it holds no model, and neither *.pt nor {SIDE_FILE} of a "
            "LlamaGen: copy all files of the checkpoint."
        )
    found = [family for family in FAMILIES if family.claims(config or {})]
    if own:  # beside a network that may be of a text model's kind
        found = [OWN, *(family for family in found if not family.writes_text)]
    if not found:
        named = (config or {}).get("model_type")
        raise ModelError(
            f"{source}: holds a model of type '{clipped(ascii(named).strip(chr(39)))}'; headscope drives janus models, "
            "LlamaGen and decoder-only text models."
        )
    if len(found) > 1:
        titles = " and of ".join(family.title for family in found)
        raise ModelError(
            f"{source}: has marks of {titles} ({f'{CARD} and ' if own else ''}config.json): copy config.json and the weights "
            "from one checkpoint, into a folder of their own."
        )
    return found[0]


def _configuration(source: str | Path, file: Path | None) -> dict[str, Any] | None:
    """The object in config.json; None where there is none that can be read."""
    try:
        config = json.loads((file or Path(source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _check_alone(folder: Path) -> None:
    """Refuse a LlamaGen's folder that has another family's mark too."""
    for other in (CARD, "config.json"):
        if (folder / other).is_file():
            raise ModelError(
                f"{folder}: holds {SIDE_FILE} or checkpoints of LlamaGen's, and {other}, which is another family's: give each "
                "model a folder of its own."
            )
