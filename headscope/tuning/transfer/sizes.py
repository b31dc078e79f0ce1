"""Options on another grid: what of a size is near, and keeps its rows and columns, and what is far, and scales with the image.

A head that looks at the row above needs a row, whatever the size of the image; a head that looks back over a quarter of the
image needs a quarter of the other one. So a window counts up to NEAR rows in rows and columns, behind them in shares of the
image's tokens, and so do heavy tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headscope.geometry import Geometry
from headscope.tuning.measure.options import Option

# Rows of a window that are near.
NEAR = 2
# Columns beyond a whole row that are a margin, the same on every grid (windows of tables end 2 behind a row).
MARGIN = 2


def columns_of(options: Sequence[Option], geometry: Geometry) -> np.ndarray:
    """What an option is on any grid: float64 [O, 5], rows that are near, share of the image behind them, share that is heavy,
    decay (1 without heavy tokens), and 16, 8 or 4 bits as 0, 1, 2.

    Args:
        options: O of them.
        geometry: that they are for.
    """
    row, tokens, rest = geometry.stride_row, geometry.tokens, _rest(geometry)
    found = []
    for option in options:
        near = min(option.window, NEAR * row + MARGIN)
        rows, over = divmod(near, row)
        part = over / row if over > MARGIN else 0.01 * over
        fade, fewer = option.decay if option.heavy else 1.0, {16: 0, 8: 1, 4: 2}[option.bits]
        found.append((rows + part, (option.window - near) / rest, option.heavy / tokens, fade, fewer))
    return np.array(found, dtype=np.float64)


def carried(option: Option, source: Geometry, target: Geometry) -> Option:
    """The option that is on the target's grid what this one is on the source's.

    Args:
        option: of the source.
        source: geometry of its model.
        target: geometry of the other model.

    Example: 18 tokens of 16 x 16 are a row and 2 columns; on 24 x 24 they are 26. Of 96 (6 rows) 34 are near and become 50; the
    other 62 of 221 become 147 of 525: 197 in all.
    """
    if source == target:
        return option
    row, other, most = source.stride_row, target.stride_row, target.tokens - 1
    near = min(option.window, NEAR * row + MARGIN)
    rows, over = divmod(near, row)
    window = rows * other + (over if over <= MARGIN else round(over * other / row))
    window = min(window + round((option.window - near) / _rest(source) * _rest(target)), most)
    if option.window >= source.tokens - 1:
        window = most
    heavy = min(max(round(option.heavy * target.tokens / source.tokens), 1), most - window) if option.heavy else 0
    return Option(window, heavy, option.decay if heavy else 1.0, option.bits, option.prompt)


def _rest(geometry: Geometry) -> int:
    """Tokens of the largest window that are not near."""
    return max(geometry.tokens - 1 - NEAR * geometry.stride_row - MARGIN, 1)
