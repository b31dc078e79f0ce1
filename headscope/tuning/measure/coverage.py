"""A first approximation of the sensitivity table that costs nothing: how much attention an option leaves out, by a trace.

What a head writes changes by what it no longer sees, so what it loses grows with the attention that an option misses. On the
bundled model the rank correlation with the measured table is .90 over all heads and options, .53 to .84 within an option.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from headscope.errors import DataError
from headscope.policy import ModelShape
from headscope.tuning.measure.options import COLUMNS, Option


class Coverage:
    """Attention that options leave out, from the curves of a trace.

    Args:
        curves: `TraceDataset.curves()`: `window_coverage` and `column_profile`, [layers, query_heads, N].
        shape: of the traced model; the query heads of a KV head share its cache, and count alike.

    Raises:
        DataError: a curve is missing, or not of every head.
    """

    def __init__(self, curves: Mapping[str, torch.Tensor], shape: ModelShape) -> None:
        self.shape = shape
        tokens = shape.geometry.tokens
        for name in ("window_coverage", "column_profile"):
            found = tuple(curves[name].shape) if name in curves else None
            if found != (shape.layers, shape.query_heads, tokens):
                raise DataError(
                    f"The trace's {name} is {found or 'missing'}, expected {(shape.layers, shape.query_heads, tokens)}: "
                    "a table from a trace needs one of all layers and heads; trace again without `layers` and `heads`."
                )
        self._window = self._by_kv_head(curves["window_coverage"])
        received = self._by_kv_head(curves["column_profile"]) * np.arange(tokens, 0, -1)
        shares = received / np.maximum(received.sum(-1, keepdims=True), 1e-12)
        self._heavy = np.sort(shares, -1)[..., ::-1].cumsum(-1)

    def _by_kv_head(self, curve: torch.Tensor) -> np.ndarray:
        shape = self.shape
        return curve.double().numpy().reshape(shape.layers, shape.kv_heads, -1, shape.geometry.tokens).mean(2)

    def missed(self, option: Option) -> np.ndarray:
        """Share of attention that `option` leaves out: float64 [layers, kv_heads].

        What the window misses, less the share that the most attended image tokens receive; a token's place within or
        beyond the window is taken to make no difference to who is heavy, and scores that fade are taken not to.
        """
        beyond = self._window[..., -1] - self._window[..., option.window]
        caught = self._heavy[..., option.heavy - 1] if option.heavy else 0.0
        return np.clip(beyond * (1 - caught), 0.0, None)

    def table(self, options: Sequence[Option], stride: int) -> pd.DataFrame:
        """A table in the form of `measure_sensitivity`'s; its `loss` is the square of `missed`, not nats.

        The square, because a divergence is quadratic in a small change; a solver needs losses only up to a factor.

        Args:
            options: one row a head for each of them.
            stride: in tokens, for the table's column of that name; it changes no loss.
        """
        rows = []
        for option in options:
            for (layer, head), missed in np.ndenumerate(self.missed(option)):
                rows.append((layer, head, *option.numbers(), stride, float(missed) ** 2))
        return pd.DataFrame(rows, columns=COLUMNS)


class Groups:
    """Heads of one class in one layer, measured together; what a group loses is shared out by the attention each head misses.

    Args:
        semantic: bool [layers, kv_heads], the class of each head.
        coverage: of the same model; by it a group's loss is shared out.
    """

    def __init__(self, semantic: np.ndarray, coverage: Coverage) -> None:
        self.coverage = coverage
        classes = semantic.astype(bool)
        found = [(layer, np.flatnonzero(classes[layer] == kind)) for layer in range(len(classes)) for kind in (False, True)]
        self.members = [(layer, tuple(int(head) for head in heads)) for layer, heads in found if len(heads)]
        curves = np.ascontiguousarray(np.stack([coverage._window, coverage._heavy]), dtype=np.float32)
        self.identity = hashlib.sha256(classes.tobytes() + curves.tobytes()).hexdigest()[:16]

    def shares(self, layer: int, heads: Sequence[int], option: Option) -> np.ndarray:
        """What part of the group's loss each of its heads is taken to have: float64 [heads], sums to 1.

        Args:
            layer: of the group.
            heads: KV heads of the group.
            option: at which the group was measured.
        """
        missed = self.coverage.missed(option)[layer, list(heads)]
        total = missed.sum()
        return missed / total if total > 0 else np.full(len(heads), 1 / len(heads))
