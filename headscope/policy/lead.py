"""Rows at once: which image tokens are fed together where a row begins before the one above it is done (ZipAR, 2412.04062).

With a lead of w columns, image token (row r, column c) is fed at step r * w + c. All tokens of a step are fed in one forward;
each sees the tokens before it in raster order that were fed at earlier steps or at the same one. The first token of a row is
drawn a step before it is fed, when the end of the row above is not there yet: a *stand-in* is fed in its place, at its true
position, and what is kept of it ends with the step. It is the end of that row itself where row ends are forced, whose code is
known; else the first token of that row, or, where the end of the row before was fed by then (w of half a row or more), the mean
of both embeddings.

Measured in one pass of recorded images, nats a token: 3 of `stickers-scenes` (w = 12, 8, 4 of 24) .0061, .0097, .0321; with the
nearest row end that was fed in place of it .0095, .0186, .0463, with the true one .0062, .0096, .0325. 12 of `stickers` (w = 8,
4, 2 of 16) .0561, .1275, .2787; with the nearest row end .0608, .1558, .346.

Example: 4 x 4 tokens, w = 2. By step, what is fed, and in brackets what sees which tokens:

    0   0
    1   1 (0 1), a stand-in for 3 (0 1), which is 0; 2 and 4 are drawn
    2   2 (0 1 2), 4 (0 1 2 4)
    3   3 (0 to 3), 5 (0 to 5), a stand-in for 7 (0 to 5), the mean of 4 and 3; 6 and 8 are drawn
    4   6 (0 to 6), 8 (0 to 6, 8)
    5   7 (0 to 7), 9 (0 to 9), a stand-in for 11 (0 to 9), the mean of 8 and 7; 10 and 12 are drawn
    ... 9 steps for 15 tokens, as nothing looks at the last one
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from headscope.geometry import Geometry


@dataclass(frozen=True)
class StandIn:
    """What is fed in place of the end of a row, to draw the first token of the next.

    Attributes:
        position: the image token in whose place it stands.
        sources: image tokens of whose embeddings it is the mean, fed by then but for a forced row end; the first one alone in
            networks that are fed codes.
    """

    position: int
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What one forward is fed.

    Attributes:
        number: from 0.
        tokens: image tokens, in raster order.
        stand_in: fed after them, or None.
        draws: by place in the forward (the stand-in's is the last), the image token whose code its logits give.
    """

    number: int
    tokens: tuple[int, ...]
    stand_in: StandIn | None
    draws: tuple[tuple[int, int], ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Image tokens in whose places the forward's tokens stand."""
        return self.tokens if self.stand_in is None else (*self.tokens, self.stand_in.position)


@dataclass(frozen=True)
class Schedule:
    """All steps of an image. `schedule` gives one that is shared.

    Attributes:
        geometry: of the image.
        lead: columns w between the newest tokens of two rows, 1 to a row's length, which feeds one token a step.
    """

    geometry: Geometry
    lead: int

    def __len__(self) -> int:
        """Steps that feed every token, the last one included, which nothing looks at."""
        return (self.geometry.rows - 1) * self.lead + self.geometry.row_length

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """In their order."""
        return tuple(self._step(number) for number in range(len(self)))

    @cached_property
    def fed_at(self) -> np.ndarray:
        """int64 [N], the step of every image token."""
        row, column = np.divmod(np.arange(self.geometry.tokens), self.geometry.row_length)
        return row * self.lead + column

    def fed(self, number: int) -> int:
        """Image tokens that are fed once a step is done.

        Args:
            number: of the step; -1 is before all.
        """
        each = number - np.arange(self.geometry.rows) * self.lead + 1
        return int(each.clip(0, self.geometry.row_length).sum())

    def due(self, number: int) -> np.ndarray:
        """int64, the image tokens of a step in raster order; none behind the last step."""
        row = np.arange(self.geometry.rows)
        column = number - row * self.lead
        return (row * self.geometry.row_length + column)[(column >= 0) & (column < self.geometry.row_length)]

    def protected(self, number: int, window: int) -> np.ndarray:
        """int64, image tokens fed once a step is done that lie within a window before any of the next step's queries.

        Args:
            number: of the step.
            window: tokens before a query.
        """
        due, there = self.due(number + 1), (self.fed_at <= number).nonzero()[0]
        place = np.searchsorted(due, there)
        near = place < len(due)
        return there[near][due[place[near]] - there[near] <= window]

    def chooses(self, number: int, stride: int) -> bool:
        """Whether heavy tokens are chosen at the end of a step: the number of fed tokens passes a multiple of the stride.

        Args:
            number: of the step.
            stride: tokens between two choices.
        """
        return self.fed(number) // stride > self.fed(number - 1) // stride

    def visits(self, number: int) -> np.ndarray:
        """int64 [N], queries that could see each token once a step is done: those from its own step on that are not before it.

        Args:
            number: of the step.
        """
        length, row = self.geometry.row_length, np.arange(self.geometry.rows)
        begin = row[None] * self.lead
        first = np.maximum(self.fed_at[:, None] - begin, 0)
        last = np.minimum(number - begin, length - 1)
        below = row[None] >= np.arange(self.geometry.tokens)[:, None] // length
        return (np.maximum(last - first + 1, 0) * below).sum(1)

    def buffer(self, stride: int) -> int:
        """Most tokens that are fed between two choices, those of the step of the later one included.

        Example: one token a step, any stride: the stride. 4 x 4 tokens, w = 3, stride 4: 5, as the first steps feed 1 1 1 2.

        Args:
            stride: tokens between two choices.
        """
        most, since = 0, 0
        for step in self.steps:
            since += len(step.tokens)
            most = max(most, since)
            if self.chooses(step.number, stride):
                since = 0
        return most

    @cached_property
    def window_slots(self) -> np.ndarray:
        """int64 [N], by window: the most tokens, fed in the step or before, that lie within it of any of a step's queries.

        Example: one token a step: 1 2 3 ... N. With 24 columns, w = 8 and a window of 24 it is 49, not 25.
        """
        return self._most[0]

    @cached_property
    def protected_slots(self) -> np.ndarray:
        """int64 [N], by window: the most fed tokens that lie within it before any of the next step's queries.

        Example: one token a step: 0 1 2 ... N - 1.
        """
        return self._most[1]

    @cached_property
    def _most(self) -> tuple[np.ndarray, np.ndarray]:
        """Both, by the distance from a token to the first query behind it; what no query reaches now, none will later."""
        tokens = self.geometry.tokens
        seen, protected, fed_at = np.ones(tokens, np.int64), np.zeros(tokens, np.int64), self.fed_at
        for number in range(len(self) - 1):
            due, there = self.due(number + 1), (fed_at <= number).nonzero()[0]
            place = np.searchsorted(due, there)
            near = place < len(due)
            within = np.bincount(due[place[near]] - there[near], minlength=tokens).cumsum()
            np.maximum(protected, within, out=protected)
            np.maximum(seen, within + len(due), out=seen)
        return seen, protected

    def _step(self, number: int) -> Step:
        length, tokens = self.geometry.row_length, self.due(number).tolist()
        sequential, last = self.lead == length, self.geometry.tokens - 1
        ends = sequential or self.geometry.rows == 1
        draws = [(place, token + 1) for place, token in enumerate(tokens) if ends or (token + 1) % length]
        draws = [(place, token) for place, token in draws if token <= last]
        row, rest = divmod(number + 1, self.lead)  # the row whose first token is fed next
        if sequential or rest or not 0 < row < self.geometry.rows:
            return Step(number, tuple(tokens), None, tuple(draws))
        return Step(number, tuple(tokens), self._stand_in(row), (*draws, (len(tokens), row * length)))

    def _stand_in(self, row: int) -> StandIn:
        """For the end of the row above this one."""
        length = self.geometry.row_length
        position, first = row * length - 1, (row - 1) * length
        if self.geometry.row_end:
            return StandIn(position, (position,))
        return StandIn(position, (first, first - 1) if row > 1 and 2 * self.lead >= length else (first,))


@lru_cache(maxsize=64)
def schedule(geometry: Geometry, lead: int) -> Schedule:
    """The schedule of an image, computed once.

    Args:
        geometry: of the image.
        lead: columns, 1 to a row's length.
    """
    return Schedule(geometry, lead)
