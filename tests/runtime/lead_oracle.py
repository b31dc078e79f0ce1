"""Rows at once, the slow way: one head of one sequence, plain Python, step by step and query by query.

Follows design.md, "Rows at once"; shares no code with the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.runtime.oracle import read_back

Vector = list[float]


@dataclass
class LeadOracle:
    """One KV head and the query heads of its group.

    `token(t)` gives the queries (one a query head), key and value of image token t, `stand_in(row)` those of what stands in for
    the end of a row. `run()` returns the outputs, one a query head, of tokens by their number and of stand-ins by ("end", row).
    """

    rows: int
    length: int
    lead: int
    prefix_keys: list[Vector]
    prefix_values: list[Vector]
    window: int
    heavy: int
    anchor: int
    decay: float
    per_visit: bool
    stride: int
    token: Callable[[int], tuple[list[Vector], Vector, Vector]]
    stand_in: Callable[[int], tuple[list[Vector], Vector, Vector]]
    scale: float
    bits: int = 16
    whole_prompt: bool = True
    kind: str = "received"
    keys: dict[int, Vector] = field(default_factory=dict)
    values: dict[int, Vector] = field(default_factory=dict)
    fed_in: dict[int, int] = field(default_factory=dict)
    score: dict[int, float] = field(default_factory=dict)
    received: dict[int, float] = field(default_factory=dict)
    visits: dict[int, int] = field(default_factory=dict)
    alive: set[int] = field(default_factory=set)
    outputs: dict[object, list[Vector]] = field(default_factory=dict)

    def run(self) -> dict[object, list[Vector]]:
        if not self.whole_prompt and len(self.prefix_keys) > 2:
            self.prefix_keys = [self.prefix_keys[0], self.prefix_keys[-1]]
            self.prefix_values = [self.prefix_values[0], self.prefix_values[-1]]
        step = 0
        while len(self.keys) < self.rows * self.length:
            before = len(self.keys)
            due = self._due(step)
            for t in due:
                bits = 16 if t < self.anchor else self.bits
                _, key, value = self.token(t)
                self.keys[t], self.values[t], self.fed_in[t] = read_back(key, bits), read_back(value, bits), step
                self.alive.add(t)
            for t in due:
                self.outputs[t] = self._attend(t, self.token(t)[0], None)
            row, rest = divmod(step + 1, self.lead)  # the row whose first token is fed next
            if rest == 0 and 0 < row < self.rows and self.lead < self.length:
                self.outputs["end", row - 1] = self._at_end(row - 1)
            if self.heavy and len(self.keys) // self.stride > before // self.stride:
                self._choose(step)
            step += 1
        return self.outputs

    def _due(self, step: int) -> list[int]:
        columns = [(row, step - row * self.lead) for row in range(self.rows)]
        return [row * self.length + column for row, column in columns if 0 <= column < self.length]

    def _at_end(self, row: int) -> list[Vector]:
        place = (row + 1) * self.length - 1
        queries, key, value = self.stand_in(row)
        bits = 16 if place < self.anchor else self.bits
        return self._attend(place, queries, (read_back(key, bits), read_back(value, bits)))

    def _attend(self, t: int, queries: list[Vector], own: tuple[Vector, Vector] | None) -> list[Vector]:
        """`own`: key and value of what stands in at t, which adds to no score."""
        seen = [p for p in sorted(self.keys) if p <= t and self._visible(p, t)]
        extra = ([], []) if own is None else ([own[0]], [own[1]])
        keys = [*self.prefix_keys, *(self.keys[p] for p in seen), *extra[0]]
        values = [*self.prefix_values, *(self.values[p] for p in seen), *extra[1]]
        outputs = []
        for query in queries:
            logits = [self.scale * sum(a * b for a, b in zip(query, k, strict=True)) for k in keys]
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            weights = [w / sum(weights) for w in weights]
            outputs.append([sum(w * v[d] for w, v in zip(weights, values, strict=True)) for d in range(len(values[0]))])
            if own is None:
                for place, p in enumerate(seen, len(self.prefix_keys)):
                    self.received[p] = self.received.get(p, 0.0) + weights[place] / len(queries)
        if own is None:
            for p in self.keys:
                if p <= t:
                    self.visits[p] = self.visits.get(p, 0) + 1
        return outputs

    def _visible(self, p: int, t: int) -> bool:
        if p < self.anchor:
            return True
        return p in self.alive if self.heavy else t - p <= self.window

    def _choose(self, step: int) -> None:
        for p in {*self.score, *self.received}:
            self.score[p] = self.decay * self.score.get(p, 0.0) + self.received.get(p, 0.0)
        self.received = {}
        following = self._due(step + 1)
        recent = {p for p in self.alive if any(0 < query - p <= self.window for query in following)}
        candidates = [p for p in self.alive if p >= self.anchor and p not in recent]

        def worth(p: int) -> tuple[float, int, int]:
            length = math.sqrt(sum(x * x for x in self.values[p])) if self.kind == "value" else 1.0
            return self.score[p] / (self.visits[p] if self.per_visit else 1) * length, self.fed_in[p], p

        self.alive = recent | set(sorted(candidates, key=worth, reverse=True)[: self.heavy])
