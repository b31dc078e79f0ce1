"""Decoders are chosen by name or by what is fastest, and whichever runs gives the recorded tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headscope.errors import DataError
from headscope.models.attention import observe
from headscope.models.janus import JanusModel
from headscope.policy.footprint import CacheSpec
from headscope.policy.policy import Policy, load_policy
from headscope.runtime import Sampling, generate
from headscope.runtime.decoders import DECODERS, choose, decoder_name, usable_decoders

# Tokens that were written down before decoders, guidance and sampling were one function each.
RECORDED = json.loads((Path(__file__).parent / "recorded_tokens.json").read_text(encoding="utf-8"))
PROMPTS = ["red apple", "a blue car on a red background"]  # of unlike lengths: one row is padded
STICKERS = ["red apple, noto style", "dog face, twemoji style, blue background"]
WINDOWS, HEAVY = torch.tensor([[5, 1], [0, 3]]), torch.tensor([[0, 3], [4, 0]])
SAMPLINGS = {
    "full": Sampling(),
    "policy": Sampling(),
    "full unguided top-k": Sampling(guidance=1.0, top_k=5),
    "policy unguided top-k": Sampling(guidance=1.0, top_k=5),
    "policy greedy": Sampling(temperature=0.0),
    "full cool top-k": Sampling(temperature=0.7, top_k=3),
}


# A searched policy of a version that knew no bits, which the tokens were recorded with.
IN_16_BITS = Path(__file__).with_name("policies") / "stickers-20-in-16-bits.safetensors"


@pytest.fixture
def policy(tiny: JanusModel) -> Policy:
    return Policy.uniform(tiny.shape, window=WINDOWS, heavy=HEAVY, anchor=1, decay=0.9, stride=4, prefix=12)


@pytest.mark.parametrize("decoder", ["auto", "transformers"])
@pytest.mark.parametrize("kind", SAMPLINGS)
def test_tokens_of_the_tiny_model_are_those_recorded(tiny: JanusModel, policy: Policy, kind: str, decoder: str) -> None:
    kept = policy if kind.startswith("policy") else None
    found = generate(tiny, PROMPTS, [3, 4], sampling=SAMPLINGS[kind], policy=kept, decoder=decoder)
    assert found.tokens.tolist() == RECORDED[f"tiny {kind}"]


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("full", Sampling()),
        ("stickers-20", Sampling()),
        ("stickers-20 top-k", Sampling(guidance=1.0, temperature=0.8, top_k=50)),
    ],
)
def test_tokens_of_the_bundled_model_are_those_recorded(stickers: JanusModel, kind: str, sampling: Sampling) -> None:
    kept = None if kind == "full" else load_policy(IN_16_BITS, stickers.shape)
    assert generate(stickers, STICKERS, 0, sampling=sampling, policy=kept).tokens.tolist() == RECORDED[f"stickers {kind}"]


def test_the_fastest_that_can_run_is_taken(tiny: JanusModel, policy: Policy) -> None:
    assert usable_decoders(tiny, policy)[-2:] == ["llama_cpu", "transformers"]
    assert usable_decoders(tiny) == ["transformers"]
    assert decoder_name(tiny, policy) == usable_decoders(tiny, policy)[0]
    assert decoder_name(tiny) == "transformers"
    with observe(tiny.decoder, lambda layer, groups: None):
        assert usable_decoders(tiny, policy) == ["transformers"]


def test_a_name_that_is_not_known_or_cannot_run_is_refused_with_those_that_can(tiny: JanusModel, policy: Policy) -> None:
    with pytest.raises(DataError, match=r"decoder turbo: is not known; .* auto, .*llama_cpu, transformers\.$"):
        generate(tiny, PROMPTS, policy=policy, decoder="turbo")
    with pytest.raises(DataError, match=r"decoder llama_cpu: needs a policy; .* auto, transformers\.$"):
        generate(tiny, PROMPTS, decoder="llama_cpu")


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama_cpu", "transformers"])
def test_bytes_are_those_that_were_counted(tiny: JanusModel, policy: Policy, name: str) -> None:
    prefix = tiny.tokenize(PROMPTS)
    spec = CacheSpec(tiny.shape, prefix.ids.shape[1], batch=2, streams=2, dtype="float32")
    decoder = choose(tiny, policy, name)
    assert decoder.nbytes() == 0
    decoder.prefill(prefix, guided=True)
    assert decoder.nbytes() == spec.bytes_of(policy)
    whole = choose(tiny)
    whole.prefill(prefix, guided=True)
    assert whole.nbytes() == spec.full_bytes


@torch.inference_mode()
def test_a_second_prefill_begins_anew(tiny: JanusModel, policy: Policy) -> None:
    for name in usable_decoders(tiny, policy):
        decoder = DECODERS[name](tiny, policy)
        first = [decoder.prefill(tiny.tokenize(PROMPTS), guided=True), decoder.step(torch.tensor([3, 4]), 0)]
        again = [decoder.prefill(tiny.tokenize(PROMPTS), guided=True), decoder.step(torch.tensor([3, 4]), 0)]
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@torch.inference_mode()
def test_streams_are_stacked_with_the_conditional_ones_first(tiny: JanusModel) -> None:
    prefix = tiny.tokenize(PROMPTS)
    ids, mask = prefix.stacked(guided=True)
    assert torch.equal(ids, torch.cat([prefix.ids, prefix.unconditional_ids]))
    assert mask.shape == ids.shape
    assert prefix.stacked(guided=False)[0] is prefix.ids


def test_prompts_are_tokenized_at_once_and_again_by_batch(tiny: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    tokenize = tiny.tokenize
    monkeypatch.setattr(tiny, "tokenize", lambda prompts, length=None: asked.append(prompts) or tokenize(prompts, length))
    generate(tiny, PROMPTS)
    assert asked == [PROMPTS]
    generate(tiny, PROMPTS, batch_size=1)  # a prompt at its own length
    assert sorted(asked[2:]) == sorted([prompt] for prompt in PROMPTS)
