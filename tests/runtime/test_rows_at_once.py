"""Rows at once: every head against a slow oracle, and the whole model against full attention under the mask of times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import example, given, settings, strategies as st

from headscope.geometry import Geometry
from headscope.models.attention import attend_through_cache
from headscope.policy import BUILT_IN, VALUE, CacheSpec, ModelShape, Policy, schedule
from headscope.runtime.row_cache import RowsCache
from tests.runtime.lead_oracle import LeadOracle
from tests.runtime.test_cache_meaning import Module

SIZE, SCALE, HEADS, GROUP = 4, 0.7, 3, 2


@dataclass
class Case:
    """Two sequences whose prompts are padded on the left."""

    policy: Policy
    pads: list[int]
    seed: int

    @property
    def geometry(self) -> Geometry:
        return self.policy.shape.geometry

    def states(self) -> tuple[torch.Tensor, ...]:
        """q, k, v [2, heads, P + N + rows, D]: prompt, image, and what stands in for the end of each row."""
        generator = torch.Generator().manual_seed(self.seed)
        length = self.policy.prefix + self.geometry.tokens + self.geometry.rows
        heads = (HEADS * GROUP, HEADS, HEADS)
        return tuple(torch.randn(2, h, length, SIZE, generator=generator, dtype=torch.float64) * 1.5 for h in heads)


def policy_of(geometry: Geometry, lead: int, **numbers: object) -> Policy:
    shape = ModelShape("toy", 1, HEADS * GROUP, HEADS, SIZE, geometry, "a", "w")
    return Policy.uniform(shape, lead=lead, **numbers)  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    geometry = Geometry(draw(st.integers(2, 4)), draw(st.integers(1, 5)), draw(st.integers(0, 1)))
    tokens, row, prefix = geometry.tokens, geometry.row_length, draw(st.integers(1, 4))

    def per_head(*some: float) -> torch.Tensor:
        return torch.tensor([draw(st.lists(st.sampled_from(some), min_size=HEADS, max_size=HEADS))])

    policy = policy_of(
        geometry,
        draw(st.sampled_from(sorted({1, min(2, row), (row + 1) // 2, geometry.cols, max(row - 1, 1), row}))),
        window=per_head(0, 1, min(3, tokens - 1), min(row, tokens - 1), tokens // 2, tokens - 1),
        heavy=per_head(0, 0, 1, min(3, tokens), tokens),
        anchor=per_head(0, 0, 1, min(row + 1, tokens)),
        decay=per_head(0.0, 0.5, 1.0),
        per_visit=per_head(0, 1),
        bits=per_head(16, 16, 8, 4),
        prompt=per_head(1, 1, 0),
        score=per_head(0, 0, BUILT_IN.index(VALUE)),
        stride=draw(st.sampled_from(geometry.strides())),
        prefix=prefix,
    )
    return Case(policy, draw(st.lists(st.integers(0, prefix - 1), min_size=2, max_size=2)), draw(st.integers(0, 2**16)))


def run_cache(case: Case) -> dict[object, torch.Tensor]:
    """Outputs [2, Hq, D] of tokens by number, and of stand-ins by ("end", row)."""
    policy, prefix, (q, k, v) = case.policy, case.policy.prefix, case.states()
    real = torch.arange(prefix) >= torch.tensor(case.pads)[:, None]
    causal = torch.ones(prefix, prefix, dtype=torch.bool).tril()
    mask = ((causal & real[:, None]) | torch.eye(prefix, dtype=torch.bool))[:, None]
    cache, found = RowsCache(policy, prefix=prefix), {}
    spec = CacheSpec(policy.shape, prefix, batch=2, streams=1, dtype="float64")

    def fed(at: list[int], mask: torch.Tensor | None) -> torch.Tensor:
        keys, values = cache.update(k[:, :, at], v[:, :, at], 0)
        return attend_through_cache(Module(GROUP), q[:, :, at], keys, values, mask, scaling=SCALE)[0]

    fed(list(range(prefix)), mask)
    for step in schedule(case.geometry, policy.lead).steps:
        names: list[object] = [*step.tokens]
        at = [prefix + token for token in step.tokens]
        if step.stand_in is not None:
            row = step.stand_in.position // case.geometry.row_length
            names, at = [*names, ("end", row)], [*at, prefix + case.geometry.tokens + row]
        found |= dict(zip(names, fed(at, None).unbind(1), strict=True))
        assert cache.nbytes() == spec.bytes_of(policy)
    return found


def run_oracle(case: Case, b: int, h: int) -> dict[object, torch.Tensor]:
    """Outputs [G, D] of one sequence and KV head."""
    policy, prefix, (q, k, v) = case.policy, case.policy.prefix, case.states()
    heads = slice(h * GROUP, (h + 1) * GROUP)

    def at(place: int) -> tuple[list[list[float]], list[float], list[float]]:
        return q[b, heads, place].tolist(), k[b, h, place].tolist(), v[b, h, place].tolist()

    numbers = {name: getattr(policy, name)[0, h].item() for name in ("window", "heavy", "anchor", "decay", "per_visit", "bits")}
    oracle = LeadOracle(
        case.geometry.rows,
        case.geometry.row_length,
        policy.lead,
        k[b, h, case.pads[b] : prefix].tolist(),
        v[b, h, case.pads[b] : prefix].tolist(),
        **numbers,
        stride=policy.stride,
        token=lambda t: at(prefix + t),
        stand_in=lambda row: at(prefix + case.geometry.tokens + row),
        scale=SCALE,
        whole_prompt=bool(policy.prompt[0, h]),
        kind=policy.score_of(0, h),
    )
    return {name: torch.tensor(outputs, dtype=torch.float64) for name, outputs in oracle.run().items()}


MIXED = policy_of(
    Geometry(3, 4, 1),
    2,
    window=torch.tensor([[1, 3, 0]]),
    heavy=torch.tensor([[2, 0, 3]]),
    anchor=torch.tensor([[0, 6, 6]]),
    bits=torch.tensor([[16, 8, 4]]),
    stride=1,
    prefix=3,
)


@given(cases())
@example(Case(MIXED, [0, 2], 5))
@settings(max_examples=40, deadline=None)
def test_every_head_attends_to_what_the_oracle_says(case: Case) -> None:
    found = run_cache(case)
    for b in range(2):
        for h in range(HEADS):
            expected = run_oracle(case, b, h)
            assert found.keys() == expected.keys()
            for name, outputs in expected.items():
                own = found[name][b, h * GROUP : (h + 1) * GROUP]
                torch.testing.assert_close(own, outputs, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
