r"""DuoAttention (2410.10819, github.com/mit-han-lab/duo-attention): a folder with a score a KV head and two sizes.

`full_attention_heads.tsv` is numpy's text, a line a layer and a column a KV head; its reader clips the values to [0, 1] and
adds noise of up to 1e-6 against ties. Heads at or above a threshold, or above a quantile, are full (they keep everything); the
others stream. `config.json` holds all arguments of a training; readers take `sink_size` and `recent_size` of it.

`recent_size` is read as decoding has it there: a query sees the first `sink_size` tokens, the `recent_size` before it, and
itself, so it is a `window`. (The mask of its training counts the query too, one token less. Image tokens are decoded.)
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headscope.errors import DataError, HeadscopeError, PolicyMismatch
from headscope.facts import NUMBER, check, or_null, said, whole
from headscope.policy.exchange.reckoning import bytes_for, length_of
from headscope.policy.exchange.record import Content, Wanted
from headscope.policy.exchange.two_classes import lost_classes, ranks, two_classes
from headscope.policy.methods import SSD
from headscope.policy.policy import Policy
from headscope.policy.shape import ModelShape
from headscope.storage import read_json, read_text

SCORES, CONFIG = "full_attention_heads.tsv", "config.json"
THRESHOLD = 0.5
_CONFIG = {"sink_size": whole(), "recent_size": whole(1), "sparsity": or_null(NUMBER), "threshold": or_null(NUMBER)}


def write(policy: Policy, path: Path) -> Content:
    """A policy as a folder of DuoAttention.

    Args:
        policy: to write.
        path: of the folder, for messages.
    """
    classes = two_classes(policy)
    lines = io.StringIO()
    np.savetxt(lines, ranks(policy, classes.full).numpy(), delimiter="\t")
    streaming = int((~classes.full).sum())
    config = {
        "model_name": policy.shape.name,
        "sink_size": classes.sink,
        "recent_size": classes.recent,
        "threshold": THRESHOLD,
        "sparsity": streaming / classes.full.numel(),
    }
    tokens = torch.where(classes.full, length_of(policy), classes.sink + classes.recent)
    lost = (
        "numbers of tokens: a value is a head's rank by what it keeps, full heads above 0.5",
        *lost_classes(policy, classes),
    )
    return Content({SCORES: lines.getvalue(), CONFIG: config}, bytes_for(policy, tokens), lost)


def read(path: Path, wanted: Wanted) -> Policy:
    """A folder of DuoAttention as a policy: two classes as they are, or under a limit SSD with the scores.

    Args:
        path: of the folder.
        wanted: the model, and the longest prompt or a limit.

    Raises:
        DataError: no such folder, or a file of it that is none.
        PolicyMismatch: other layers or heads than the model's.
        HeadscopeError: the model, or both the prompt's length and the limit, were not given.
    """
    if wanted.shape is None:
        raise HeadscopeError(f"{path}: names no model that headscope knows; name the one that it is for.")
    prefix = wanted.prefix if wanted.limit is None else wanted.limit.spec.prefix
    if prefix is None:
        raise HeadscopeError(
            f"{path}: its sinks count the prompt's tokens; give the longest prompt in tokens, `prefix`, or a limit."
        )
    if not path.is_dir():
        raise DataError(f"{path}: no folder of DuoAttention, which holds {SCORES} and {CONFIG}; name one.")
    config = check(read_json(path / CONFIG), _CONFIG, str(path / CONFIG))
    values = _scores(path, wanted.shape)
    scores = torch.from_numpy(values).float()
    full, sink, recent = torch.from_numpy(_full(values, config)), config["sink_size"], config["recent_size"]
    facts = {"method": "duo_attention", "sink_size": sink, "recent_size": recent, "full_heads": int(full.sum())}
    if wanted.limit is not None:  # full heads choose among all tokens, streaming heads keep the newest
        return SSD().build(wanted.limit, full.float()).replace(semantic_score=scores, provenance=facts)
    most = wanted.shape.geometry.tokens - 1
    return Policy.uniform(
        wanted.shape,
        window=torch.where(full, most, min(recent, most)),
        anchor=torch.where(full, 0, min(max(sink - prefix, 0), most + 1)),
        stride=1,
        prefix=prefix,
        semantic_score=scores,
        provenance=facts,
    )


def _full(values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """bool [layers, kv_heads]: the full heads, as its reader finds them but for the noise."""
    sparsity, threshold = config.get("sparsity"), config.get("threshold")
    if sparsity is None:
        return values >= (THRESHOLD if threshold is None else threshold)
    if not 0 < sparsity < 1:
        return np.full(values.shape, sparsity <= 0)
    return values >= np.quantile(values, sparsity)


def _scores(path: Path, shape: ModelShape) -> np.ndarray:
    """float64 [layers, kv_heads] in [0, 1], as its reader clips them."""
    file = path / SCORES
    text = read_text(file, "scores of DuoAttention")
    try:
        if not text.strip():
            raise ValueError("it is empty")
        values = np.loadtxt(io.StringIO(text), dtype=float, delimiter="\t", ndmin=2, comments=None)
    except ValueError as error:
        raise DataError(f"{file}: no table of numbers with tabs ({said(error)}), expected a line a layer.") from None
    if values.shape != (shape.layers, shape.kv_heads):
        group = shape.query_heads // shape.kv_heads
        hint = " (these may be query heads)" if group > 1 and values.shape == (shape.layers, shape.query_heads) else ""
        raise PolicyMismatch(
            f"{file}: has {values.shape[0]} layers of {values.shape[1]} heads{hint}, {shape.name} has {shape.layers} layers of "
            f"{shape.kv_heads} KV heads; name the model that it was made for."
        )
    if not np.isfinite(values).all():
        layer, head = np.argwhere(~np.isfinite(values))[0].tolist()
        raise DataError(f"{file}: layer {layer} head {head} is {values[layer, head]}, expected a finite number.")
    return np.clip(values, 0, 1)
