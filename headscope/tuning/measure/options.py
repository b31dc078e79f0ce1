"""Options: the few choices of window, heavy, decay, bits, prompt and score at which a head's loss is measured; their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.tuning.measure.offered import of_ends, of_one, of_three

COLUMNS = ["layer", "kv_head", "window", "heavy", "decay", "bits", "prompt", "score", "stride", "loss"]

# First image tokens that every head keeps while a table is measured: scores that fade would forget them, and many heads
# rest their attention there.
ANCHOR = 1
# Below it a loss is taken for nothing where sizes between two measured ones are estimated, nats a token.
LEAST = 1e-6


@dataclass(frozen=True, order=True)
class Option:
    """What one head may keep.

    Attributes:
        window: recent tokens.
        heavy: older tokens, chosen by score.
        decay: what a score is multiplied by at the end of each stride, in [0, 1]; 1 never fades.
        bits: of a kept number: 16 (the model's dtype), 8 or 4.
        prompt: 1 keeps the whole prompt, 0 of it only the first and the last token.
        score: kind of score by which heavy tokens are chosen, a place in `headscope.policy.BUILT_IN`.
    """

    window: int
    heavy: int = 0
    decay: float = 1.0
    bits: int = 16
    prompt: int = 1
    score: int = 0

    def smaller_than(self, other: Option) -> bool:
        """No more of anything, chosen the same way: `other` can not lose more (but for the luck of the scores)."""
        same_score = self.heavy == 0 or other.heavy == 0 or (self.decay, self.score) == (other.decay, other.score)
        written = self.bits <= other.bits and self.prompt <= other.prompt
        return self.window <= other.window and self.heavy <= other.heavy and written and same_score

    def numbers(self) -> tuple[int, int, float, int, int, int]:
        """Window, heavy, decay, bits, prompt and score: its columns in a table."""
        return self.window, self.heavy, self.decay, self.bits, self.prompt, self.score


def table_stride(geometry: Geometry) -> int:
    """The stride at which tables are measured: a quarter of a row, or a row where that is not one."""
    quarter = max(geometry.stride_row // 4, 1)
    return quarter if quarter in geometry.strides() else geometry.row_length


def default_options(
    geometry: Geometry,
    bits: Sequence[int] = (16,),
    count: int | None = None,
    prompts: Sequence[int] = (1,),
    scores: Sequence[int] = (0,),
) -> list[Option]:
    """Options relative to the grid, the most telling first, so that a table of fewer is already of use.

    A head that looks at the row above falls off a cliff below window = row + 1, so the windows straddle the rows:
    `row + 2` is just past the first cliff, `2 row + 2` past the second. Heavy tokens come on top of such a window, as heads
    that need them need the rows too; with a window of 2 they are for readers of a few far tokens, and for limits that leave
    a head less than a row. Most heads choose better with scores that fade (of 64 heads of the bundled scenes model 52 at 48
    heavy tokens), some with scores that never do.

    Sixteen options of one number of bits (`of_one`) were chosen on the bundled scenes model, by the least sum of losses at
    50, 30, 20, 15 and 10 % of the cache: of 28 measured these give what all give, to 5 %. The 42 with 16, 8 and 4 bits
    (`of_three`) were taken one after the other from 107 measured on the bundled `stickers`, each the one that brings the sum
    at 50, 30, 20, 15, 10 and 7 % nearest to that of all, which 24 exceed by 9 % and 42 by 1. The eight that drop the prompt
    (`of_ends`) are what the solver chose at 10 and 7 % of `stickers` among all 42 without it: nearly all are windows, as there
    every slot of a prompt is one that a window lacks. From 15 % on they are hardly chosen.

    Args:
        geometry: of the image.
        bits: that heads may have; below 16 every token is an option too.
        count: the first so many, by default all.
        prompts: that heads may have; options that drop the prompt come after the others.
        scores: that heads may have; those with heavy tokens come again for every other one than attention received, last.
    """
    row, most = geometry.stride_row, geometry.tokens - 1
    if {16, 8, 4} <= set(bits):
        sizes = [size for size in of_three(row, most) if size[0] + size[1] < most or size == (most, 0, 1.0, size[3])]
    else:
        one = [size for size in of_one(row) if size[0] + size[1] < most] or [(0, 0, 1.0)]
        whole = {each: [(most, 0, 1.0)] if each < 16 else [] for each in bits}
        sizes = [(*size, each) for each in bits for size in [*one, *whole[each]]]
    written = [(*size, 1) for size in sizes if 1 in prompts]
    if 0 in prompts:
        ends = [size for size in of_ends(row) if size[0] + size[1] < most] or [(0, 0, 1.0, 16)]
        every = ends if {16, 8, 4} <= set(bits) else [(*size[:3], each) for each in bits for size in ends]
        written += [(*size, 0) for size in every]
    options = [Option(window, heavy, decay if heavy else 1.0, *others) for window, heavy, decay, *others in written]
    others = [replace(option, score=score) for score in scores if score for option in options if option.heavy]
    return list(dict.fromkeys([*options, *others]))[:count]


@dataclass(frozen=True)
class Losses:
    """The table as arrays.

    Attributes:
        options: O options, the last one keeps everything and loses nothing.
        loss: float64 [layers, kv_heads, O], nats a token when this head alone has this option and the others are full.
        stride: at which the heavy options were measured.
    """

    options: tuple[Option, ...]
    loss: np.ndarray
    stride: int

    def at_stride(self, stride: int) -> Losses:
        """The table for another stride.

        Between two stride ends a heavy head grows from window + heavy by a stride: on average it sees half a stride
        more than it chose. So an option of the same average holds half the difference of the strides more or less
        heavy tokens, its score fades as much in as many tokens, and it is given the same loss. Options that would hold none
        are dropped.
        """
        if stride == self.stride:
            return self
        shift = round((self.stride - stride) / 2)
        most = self.options[-1].window
        options, kept = [], []
        for number, option in enumerate(self.options[:-1]):
            heavy = option.heavy and option.heavy + shift
            if option.heavy == 0 or (heavy > 0 and option.window + heavy < most):
                options.append(replace(option, heavy=heavy, decay=option.decay ** (stride / self.stride)))
                kept.append(number)
        return Losses((*options, self.options[-1]), self.loss[:, :, [*kept, len(self.options) - 1]], stride)

    def reweighted(self, weight: np.ndarray) -> Losses:
        """Losses times `weight`, broadcast over [layers, kv_heads, O]."""
        return Losses(self.options, self.loss * weight, self.stride)


def losses_from(table: pd.DataFrame, layers: int, kv_heads: int, geometry: Geometry) -> Losses:
    """Arrays from a (perhaps unfinished) table.

    A missing cell gets the smallest loss among the measured options that keep less (an upper bound), else infinity.
    Measured cells are bounded the same way: keeping more can't be worth less, since the smaller choice is open too.

    Args:
        table: of `measure_sensitivity` or `Coverage.table`; columns as in COLUMNS.
        layers: of the model.
        kv_heads: of a layer.
        geometry: of the image.

    Raises:
        DataError: the table is empty, of several strides, or of a model with other layers and heads.
    """
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing or table.empty:
        raise DataError(f"The sensitivity table is empty or lacks {', '.join(missing) or 'rows'}: measure it again.")
    if int(table["layer"].max()) >= layers or int(table["kv_head"].max()) >= kv_heads:
        raise DataError(
            f"The sensitivity table has layer {table['layer'].max()} head {table['kv_head'].max()}, the model has "
            f"{layers} layers of {kv_heads} KV heads: it was measured on another model."
        )
    strides = sorted(set(table["stride"].astype(int)))
    if len(strides) > 1:
        raise DataError(f"The sensitivity table mixes the strides {strides}: solve one of them at a time.")
    whole = [table[name].astype(int) for name in ("window", "heavy", "bits", "prompt", "score")]
    numbers = (*whole[:2], table["decay"].astype(float), *whole[2:])
    options = [Option(*kind) for kind in sorted(set(zip(*numbers, strict=True)))]
    index = {option: number for number, option in enumerate(options)}
    everything = Option(geometry.tokens - 1, 0)
    loss = np.full((layers, kv_heads, len(options) + 1), np.inf)
    loss[:, :, -1] = 0.0
    for row in table.itertuples(index=False):
        option = Option(int(row.window), int(row.heavy), float(row.decay), int(row.bits), int(row.prompt), int(row.score))
        loss[int(row.layer), int(row.kv_head), index[option]] = max(float(row.loss), 0.0)
    return Losses((*options, everything), _bounded(options, loss), strides[0])


def _bounded(options: Sequence[Option], loss: np.ndarray) -> np.ndarray:
    bounded = loss.copy()
    for large, option in enumerate(options):
        smaller = [number for number, other in enumerate(options) if other.smaller_than(option)]
        bounded[:, :, large] = loss[:, :, smaller].min(-1)
    return bounded


def interpolated(losses: Losses, between: int = 1) -> Losses:
    """More options: `between` sizes between two neighbours of a chain, their loss the weighted geometric mean.

    A chain is one window, one decay and one kind of score with growing heavy, or windows alone from the third row on, in one
    number of bits and with one prompt.
    Losses fall about as an exponential of the size, so the chord would promise too little, and a size on it could never be
    worth more than a mix of its ends (measured at 20 % of the bundled scenes model: .0518, .0441 and .0426 nats a token by
    three tables, .0536, .0470 and .0438 with the chord). Windows up to two rows are left as measured: there the loss has
    cliffs (a row-above head), and no curve across a cliff is true. Nor are there sizes on the way to every token, where what a
    head loses falls to what its bits alone cost: with those the bundled model lost .0168 at 30 %, without them .0078.
    """
    options, everything = list(losses.options[:-1]), losses.options[-1]
    columns = [losses.loss[:, :, number] for number in range(len(options))]
    smaller = [option for option in options if option.window < everything.window]
    written = sorted({(option.bits, option.prompt) for option in options})
    chains = [chain for bits, prompt in written for chain in _chains(smaller, bits, prompt)]
    made: dict[Option, np.ndarray] = dict(zip(options, columns, strict=True))
    for chain in chains:
        for small, large in zip(sorted(chain), sorted(chain)[1:], strict=False):
            for step in range(1, between + 1):
                share = step / (between + 1)
                window = round(small.window + share * (large.window - small.window))
                heavy = round(small.heavy + share * (large.heavy - small.heavy))
                option = replace(large, window=window, heavy=heavy)
                made.setdefault(option, _between(made[small], made[large], share))
    ordered = sorted(made)
    loss = np.stack([*(made[option] for option in ordered), losses.loss[:, :, -1]], -1)
    return Losses((*ordered, everything), loss, losses.stride)


def _chains(options: Sequence[Option], bits: int, prompt: int) -> list[list[Option]]:
    """Those of so many bits and such prompts between which sizes are estimated."""
    mine = [option for option in options if (option.bits, option.prompt) == (bits, prompt)]
    alone = [option for option in mine if option.heavy == 0]
    cliffs = sorted(alone)[len(alone) // 2].window if alone else 0
    chains = [[option for option in alone if option.window >= cliffs]]
    chosen = [option for option in mine if option.heavy]
    kinds = sorted({(option.window, option.decay, option.score) for option in chosen})
    return chains + [[one for one in chosen if (one.window, one.decay, one.score) == kind] for kind in kinds]


def _between(small: np.ndarray, large: np.ndarray, share: float) -> np.ndarray:
    """Losses a `share` of the way: geometric above LEAST, never above the chord; infinite where the smaller is unknown."""
    both = np.isfinite(small) & np.isfinite(large)
    first, last = np.where(both, small, 1.0), np.where(both, large, 1.0)
    curve = np.maximum(first, LEAST) ** (1 - share) * np.maximum(last, LEAST) ** share
    return np.where(both, np.minimum(curve, (1 - share) * first + share * last), np.inf)
