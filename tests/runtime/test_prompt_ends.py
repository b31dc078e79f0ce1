"""Heads that keep the ends of a prompt: against the slow oracle, however prompts are padded, fed, and rows selected."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from headscope.geometry import Geometry
from headscope.models import observe
from headscope.models.attention import attend_through_cache
from headscope.models.groups import Group
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec, ModelShape, Policy
from headscope.runtime import CompressedCache, Sampling, compressed, generate
from headscope.tracing import watch_live
from headscope.tuning import Replay
from tests.runtime.oracle import OracleHead
from tests.runtime.test_cache_meaning import Module

SIZE, ROWS, COLS = 8, 3, 4
TOKENS = ROWS * COLS
SHAPE = ModelShape("toy", 1, 6, 3, SIZE, Geometry(ROWS, COLS), "a", "w")
SCALE = 0.4


@st.composite
def policies(draw: st.DrawFn, prefix: int) -> Policy:
    def per_head(*some: float) -> torch.Tensor:
        return torch.tensor([draw(st.lists(st.sampled_from(some), min_size=3, max_size=3))])

    return Policy.uniform(
        SHAPE,
        window=per_head(0, 1, 2, 5, TOKENS - 1),
        heavy=per_head(0, 0, 1, 3, TOKENS),
        anchor=per_head(0, 0, 2),
        decay=per_head(0.0, 0.5, 1.0),
        bits=per_head(16, 16, 8, 4),
        prompt=per_head(0, 0, 1),
        stride=draw(st.sampled_from([1, 2, 4, 12])),
        prefix=prefix,
    )


@dataclass
class Case:
    """Three rows, whose prompts are padded on the left; calls of a prompt and of an image; rows that go on after a call."""

    policy: Policy
    pads: list[int]
    prompt_calls: list[int]
    image_calls: list[int]
    selected: int
    rows: list[int]
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    prefix = draw(st.integers(1, 6))
    policy = draw(policies(prefix))
    first = draw(st.integers(1, prefix))
    calls, stride = [], policy.stride
    while sum(calls) < TOKENS:  # tokens of a stride one by one, together, or half of them and the rest
        calls += draw(st.sampled_from([[1] * stride, [stride], [1] * (stride // 2) + [stride - stride // 2]]))
    prompt_calls = [first, prefix - first] if first < prefix else [prefix]
    return Case(
        policy,
        draw(st.lists(st.integers(0, prefix - 1), min_size=3, max_size=3)),
        prompt_calls,
        calls,
        draw(st.integers(0, len(calls))),
        draw(st.sampled_from([[0, 1, 2], [2, 0], [1, 1, 1, 0]])),
        draw(st.integers(0, 2**16)),
    )


def states(case: Case) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(case.seed)
    length = case.policy.prefix + TOKENS
    return tuple(torch.randn(3, h, length, SIZE, generator=generator, dtype=torch.float64) for h in (6, 3, 3))


def prompt_mask(case: Case) -> torch.Tensor:
    """bool [3, 1, P, P]; as transformers does, padding sees itself."""
    prefix = case.policy.prefix
    real = torch.arange(prefix) >= torch.tensor(case.pads)[:, None]
    causal = torch.ones(prefix, prefix, dtype=torch.bool).tril()
    return ((causal & real[:, None]) | torch.eye(prefix, dtype=torch.bool))[:, None]


def run_cache(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of the prompts [3, P, Hq, D], and of the image [rows, N, Hq, D] from before and after the selection."""
    policy, mask, (q, k, v) = case.policy, prompt_mask(case), states(case)
    cache, outputs, at, chosen = CompressedCache(policy, prefix=policy.prefix), [], 0, list(range(3))
    of_prompt = len(case.prompt_calls)
    for call, length in enumerate([*case.prompt_calls, *case.image_calls]):
        if call == of_prompt + case.selected:
            cache.batch_select_indices(torch.tensor(case.rows))
            chosen, outputs = case.rows, [out[case.rows] if n >= of_prompt else out for n, out in enumerate(outputs)]
        part = slice(at, at + length)
        keys, values = cache.update(k[chosen, :, part], v[chosen, :, part], 0)
        given = mask[:, :, part, : at + length] if call < of_prompt else None
        outputs.append(attend_through_cache(Module(2), q[chosen, :, part], keys, values, given, scaling=SCALE)[0])
        at += length
        if call >= of_prompt - 1:
            spec = CacheSpec(SHAPE, policy.prefix, batch=len(chosen), streams=1, dtype="float64")
            assert cache.nbytes() == spec.bytes_of(policy)
    return torch.cat(outputs[:of_prompt], 1), torch.cat(outputs[of_prompt:], 1)


def run_oracle(case: Case) -> torch.Tensor:
    """Outputs of the image [3, N, Hq, D]."""
    policy, prefix, (q, k, v) = case.policy, case.policy.prefix, states(case)
    out = torch.zeros(3, TOKENS, 6, SIZE, dtype=torch.float64)
    for b in range(3):
        for h in range(3):
            head = OracleHead(
                prefix_keys=k[b, h, case.pads[b] : prefix].tolist(),
                prefix_values=v[b, h, case.pads[b] : prefix].tolist(),
                window=int(policy.window[0, h]),
                heavy=int(policy.heavy[0, h]),
                anchor=int(policy.anchor[0, h]),
                decay=float(policy.decay[0, h]),
                per_visit=False,
                stride=policy.stride,
                bits=int(policy.bits[0, h]),
                whole_prompt=bool(policy.prompt[0, h]),
            )
            for t in range(TOKENS):
                asked = q[b, 2 * h : 2 * h + 2, prefix + t].tolist()
                outputs, _ = head.step(asked, k[b, h, prefix + t].tolist(), v[b, h, prefix + t].tolist(), SCALE)
                out[b, t, 2 * h : 2 * h + 2] = torch.tensor(outputs, dtype=torch.float64)
    return out


HEAVY = Policy.uniform(SHAPE, window=1, heavy=3, prompt=torch.tensor([[0, 1, 0]]), stride=4, prefix=4)


@given(cases())
@example(Case(HEAVY, [0, 3, 2], [4], [1, 1, 2, 4, 4], 2, [2, 0], 7))  # scores are still owed where rows are selected
@settings(max_examples=80, deadline=None)
def test_every_head_attends_to_what_the_oracle_says(case: Case) -> None:
    prefix, mask, (q, k, v) = case.policy.prefix, prompt_mask(case), states(case)
    of_prompt, of_image = run_cache(case)
    expected, rows = run_oracle(case), case.rows if case.selected < len(case.image_calls) else [0, 1, 2]
    torch.testing.assert_close(of_image, expected[rows], rtol=1e-5, atol=1e-5)
    # The prompt's own tokens see each other in full, whatever is dropped afterwards.
    keys, values = (part[:, :, :prefix].repeat_interleave(2, 1) for part in (k, v))
    logits = (SCALE * q[:, :, :prefix] @ keys.transpose(2, 3)).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(of_prompt, (logits.softmax(-1) @ values).transpose(1, 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prefix", [1, 2])
def test_of_two_tokens_none_is_dropped(prefix: int) -> None:
    whole = Policy.uniform(SHAPE, window=torch.tensor([[2, 0, 4]]), heavy=torch.tensor([[0, 3, 2]]), stride=4, prefix=prefix)
    found = [
        run_cache(Case(policy, [0, 0, 0], [prefix], [1] * TOKENS, 99, [0, 1, 2], 5))[1]
        for policy in (whole, whole.replace(prompt=torch.zeros_like(whole.prompt)))
    ]
    assert torch.equal(*found)


def mixed(model: JanusModel, **numbers: object) -> Policy:
    facts = {"window": torch.tensor([[5, 1], [0, 3]]), "heavy": torch.tensor([[0, 3], [4, 0]]), "stride": 4, **numbers}
    return Policy.uniform(model.shape, prefix=12, prompt=torch.tensor([[0, 1], [0, 0]]), **facts)  # type: ignore[arg-type]


PROMPTS = ["dog", "a blue car on a red background"]


@pytest.mark.parametrize("bits", [16, 8])
def test_every_decoder_generates_the_same(tiny: JanusModel, bits: int) -> None:
    policy = mixed(tiny, bits=bits)
    sampling = Sampling(guidance=3.0)
    made = [
        generate(tiny, PROMPTS, 3, policy=policy, sampling=sampling, decoder=name).tokens for name in ("auto", "transformers")
    ]
    assert torch.equal(*made)


def test_dropping_prompts_loses_something_and_replay_measures_it(tiny: JanusModel) -> None:
    replay = Replay(tiny, generate(tiny, PROMPTS, 0))
    whole = Policy.uniform(tiny.shape, window=15, stride=4, prefix=12)
    losses = [replay.measure(whole.replace(prompt=torch.full_like(whole.prompt, prompt))).kl for prompt in (1, 0)]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[1] > 1e-4


def test_an_observer_is_shown_the_ends_of_each_row(tiny: JanusModel) -> None:
    policy, prefix = mixed(tiny), tiny.tokenize(PROMPTS)
    length, shown = prefix.ids.shape[1], list[tuple[int, list[Group]]]()
    tokens = tiny.embed_tokens(torch.tensor([[3, 5], [1, 2]]))
    cache = CompressedCache(policy)
    with (
        torch.inference_mode(),
        compressed(tiny, policy),
        observe(tiny.decoder, lambda layer, groups: shown.append((layer, groups))),
        watch_live(tiny.decoder, tiny.shape.geometry) as live,
    ):
        tiny.forward(tiny.embed_prefix(prefix.ids), prefix.mask, cache)
        for t in range(2):
            mask = torch.cat([prefix.mask, prefix.mask.new_ones(2, t + 1)], 1)
            tiny.forward(tokens[:, t : t + 1], mask, cache)
    real = [row.nonzero().flatten().tolist() for row in prefix.mask]
    assert len(real[0]) < len(real[1])
    for layer, groups in shown[-2:]:
        for group in groups:
            short = not policy.prompt[layer, group.heads[0] // 2]
            for b in range(2):
                assert group.visible is not None
                at = group.key_positions.expand(2, -1, -1)[b, 0]
                seen = [p for p in at[group.visible[b, 0, 0]].tolist() if p < length]
                assert sorted(seen) == ([real[b][0], real[b][-1]] if short else real[b])
    assert live.layers
