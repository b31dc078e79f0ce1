"""What a policy means, the slow way: one head of one sequence, plain Python, token by token.

Follows design.md, "What a policy means, exactly"; shares no code with the runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


def written(numbers: list[float], bits: int) -> tuple[list[int], list[float], list[float]]:
    """Codes of all numbers, then scales and zeros of their groups; in the float32 and float16 that the definition names."""
    width = len(numbers) if bits == 8 else 32
    codes, scales, zeros = [], [], []
    for begin in range(0, len(numbers), width):
        group = [np.float32(x) for x in numbers[begin : begin + width]]
        zero = np.float16(min(group))
        scale = np.float16((max(group) - min(group)) / np.float32(2**bits - 1))
        for x in group:
            steps = 0.0 if scale == 0 else np.rint((x - np.float32(zero)) / np.float32(scale))
            codes.append(int(min(max(steps, 0), 2**bits - 1)))
        scales.append(float(scale))
        zeros.append(float(zero))
    return codes, scales, zeros


def read_back(numbers: list[float], bits: int) -> list[float]:
    """Numbers as they are after they were written in so many bits; 16 leaves them as they are."""
    if bits == 16:
        return numbers
    codes, scales, zeros = written(numbers, bits)
    width = len(numbers) if bits == 8 else 32
    return [code * scales[place // width] + zeros[place // width] for place, code in enumerate(codes)]


@dataclass
class OracleHead:
    """One KV head and the query heads of its group.

    step() takes the queries (one a query head), key and value of the next image token, and returns one output a query head.
    """

    prefix_keys: list[list[float]]
    prefix_values: list[list[float]]
    window: int
    heavy: int
    anchor: int
    decay: float
    per_visit: bool
    stride: int
    bits: int = 16
    whole_prompt: bool = True
    kind: str = "received"
    weights: list[list[float]] = field(default_factory=list)  # by row of the grid and place
    keys: list[list[float]] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    score: dict[int, float] = field(default_factory=dict)
    received: dict[int, float] = field(default_factory=dict)
    last_end: int = -1

    def __post_init__(self) -> None:
        if not self.whole_prompt and len(self.prefix_keys) > 2:
            self.prefix_keys = [self.prefix_keys[0], self.prefix_keys[-1]]
            self.prefix_values = [self.prefix_values[0], self.prefix_values[-1]]

    def visible(self, t: int) -> list[int]:
        """Image tokens that query t sees."""
        if self.heavy == 0:
            return [p for p in range(t + 1) if p < self.anchor or t - p <= self.window]
        newer = [p for p in range(t + 1) if p > self.last_end - self.window]
        return sorted(set(range(min(self.anchor, t + 1))) | set(self.chosen) | set(newer))

    def step(
        self, queries: list[list[float]], key: list[float], value: list[float], scale: float
    ) -> tuple[list[list[float]], list[int]]:
        t = len(self.keys)
        bits = 16 if t < self.anchor else self.bits
        self.keys.append(read_back(key, bits))
        self.values.append(read_back(value, bits))
        seen = self.visible(t)
        outputs = []
        for query in queries:
            keys = self.prefix_keys + [self.keys[p] for p in seen]
            values = self.prefix_values + [self.values[p] for p in seen]
            logits = [scale * sum(a * b for a, b in zip(query, k, strict=True)) for k in keys]
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            total = sum(weights)
            weights = [w / total for w in weights]
            outputs.append([sum(w * v[d] for w, v in zip(weights, values, strict=True)) for d in range(len(value))])
            for p, weight in zip(seen, weights[len(self.prefix_keys) :], strict=True):
                self.received[p] = self.received.get(p, 0.0) + weight / len(queries)
        if self.heavy and (t + 1) % self.stride == 0:
            self._choose(t)
        return outputs, seen

    def _choose(self, t: int) -> None:
        for p in self.received:
            self.score[p] = self.decay * self.score.get(p, 0.0) + self.received[p]
        for p in self.score:
            if p not in self.received:
                self.score[p] *= self.decay
        candidates = [p for p in self.visible(t) if p >= self.anchor and p <= t - self.window]

        def worth(p: int) -> tuple[float, int]:
            score = self.score[p] / (t + 1 - p) if self.per_visit else self.score[p]
            length = math.sqrt(sum(x * x for x in self.values[p]))
            if self.kind == "value":
                score *= length
            if self.kind == "expected":
                row = t * len(self.weights) // len(self.weights[0])
                score = (score + 0.05) * self.weights[row][p] * length
            return score, p

        self.chosen = sorted(candidates, key=worth, reverse=True)[: self.heavy]
        self.received = {}
        self.last_end = t
