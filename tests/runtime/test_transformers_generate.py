"""The cache inside transformers' own `generate`: families, beams, batches that shrink and grow, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    Emu3ForCausalLM,
    Emu3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from headscope.errors import CacheError, DataError, PolicyMismatch
from headscope.geometry import Geometry
from headscope.models.cache_name import cache_name
from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy
from headscope.policy.shape import ModelShape
from headscope.runtime import CompressedCache, compressed
from headscope.tracing import watch_live

PREFIX, TOKENS, WORDS = 5, 16, 64
CACHE = cache_name()
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 1,
}


def network(family: str) -> Any:
    torch.manual_seed(0)
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
        "emu3": lambda: Emu3ForCausalLM(Emu3TextConfig(**SIZES)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=None)
        ),
    }[family]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.35)
    return made


def policy_for(
    family: str, window: int | list[int], heavy: int | list[int] = 0, stride: int = 4, prompt: int | list[int] = 1
) -> Policy:
    kv_heads = 4 if family == "gpt2" else 2
    shape = ModelShape(family, 2, 4, kv_heads, 8, Geometry(4, 4), family, family)
    repeat = kv_heads // 2
    numbers = (window, heavy, prompt)
    tensors = [torch.tensor([number * repeat] * 2) if isinstance(number, list) else number for number in numbers]
    return Policy.uniform(shape, window=tensors[0], heavy=tensors[1], prompt=tensors[2], stride=stride, prefix=PREFIX)


def prompts() -> dict[str, torch.Tensor]:
    """Two prompts, the first padded from the left."""
    ids = torch.randint(2, WORDS, (2, PREFIX), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[0, :2], mask[0, :2] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: Any, cache: CompressedCache | None, **settings: Any) -> torch.Tensor:
    return model.generate(**prompts(), max_new_tokens=TOKENS, **{CACHE: cache}, **settings)[:, PREFIX:]


@pytest.mark.parametrize("family", ["llama", "qwen3", "emu3", "gpt2"])
@pytest.mark.parametrize("settings", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}], ids=["greedy", "beams"])
def test_with_everything_kept_generate_gives_its_own_tokens(family: str, settings: dict[str, Any]) -> None:
    model = network(family)
    before = model.config._attn_implementation
    expected = generated(model, None, **settings)
    assert len(expected.unique()) > 3
    for policy in (policy_for(family, TOKENS - 1), policy_for(family, [TOKENS - 1, 4], [0, TOKENS - 5])):
        with compressed(model, policy):
            assert torch.equal(generated(model, CompressedCache(policy), **settings), expected)
    assert model.config._attn_implementation == before
    assert torch.equal(generated(model, None, **settings), expected)


@pytest.mark.parametrize("prompt", [1, [0, 1]], ids=["whole", "ends"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_beams_are_what_each_beam_alone_would_see(family: str, prompt: int | list[int]) -> None:
    """Beam search over a small cache: the winner's tokens fed again, row by row, get the score that the search gave them."""
    model, policy = network(family), policy_for(family, [3, 1], [0, 3], prompt=prompt)
    with compressed(model, policy):
        found = model.generate(
            **prompts(),
            max_new_tokens=10,
            num_beams=3,
            do_sample=False,
            **{CACHE: CompressedCache(policy)},
            return_dict_in_generate=True,
            output_scores=True,
        )
        again = again_one_by_one(model, policy, found.sequences)
    steps = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices, normalize_logits=False)
    torch.testing.assert_close(again, steps[:, :10], rtol=1e-4, atol=1e-4)


def again_one_by_one(model: Any, policy: Policy, sequences: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [2, 10] of the tokens after the prompt, fed one at a time through a cache of their own."""
    given = prompts()
    cache, result = CompressedCache(policy), []
    with torch.no_grad():
        positions = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)  # as generate() counts them
        logits = model(**given, position_ids=positions, **{CACHE: cache}).logits[:, -1]
        for t in range(10):
            token = sequences[:, PREFIX + t]
            result.append(logits.log_softmax(-1).gather(1, token[:, None])[:, 0])
            mask = torch.cat([given["attention_mask"], torch.ones(2, t + 1, dtype=torch.int64)], 1)
            positions = (mask.cumsum(1) - 1)[:, -1:]
            logits = model(input_ids=token[:, None], attention_mask=mask, position_ids=positions, **{CACHE: cache}).logits[
                :, -1
            ]
    return torch.stack(result, 1)


def feed(model: Any, cache: CompressedCache, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """tokens [B, T] one by one after what `mask` counts -> logits [B, T, V]."""
    out = []
    with torch.no_grad():
        for t in range(tokens.shape[1]):
            mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.int64)], 1)
            positions = (mask.cumsum(1) - 1)[:, -1:]
            given = {"attention_mask": mask, "position_ids": positions, CACHE: cache}
            out.append(model(input_ids=tokens[:, t : t + 1], **given).logits)
    return torch.cat(out, 1)


@pytest.mark.parametrize("first", [3, 6])  # in the middle of a stride, with scores still owed
def test_rows_of_the_batch_go_on_alone_and_several_times(first: int) -> None:
    model, policy = network("llama"), policy_for("llama", [2, 0], [2, 4], stride=8)
    image = torch.randint(2, WORDS, (2, TOKENS), generator=torch.Generator().manual_seed(9))
    given = prompts()
    ones = torch.ones(2, first, dtype=torch.int64)
    with compressed(model, policy):
        whole, split = CompressedCache(policy), CompressedCache(policy)
        for cache in (whole, split):
            model(**given, **{CACHE: cache})
            feed(model, cache, image[:, :first], given["attention_mask"])
        mask = torch.cat([given["attention_mask"], ones], 1)
        expected = feed(model, whole, image[:, first:], mask)
        split.batch_select_indices(torch.tensor([1]))
        split.batch_repeat_interleave(2)
        split.reorder_cache(torch.tensor([1, 0]))
        found = feed(model, split, image[[1, 1], first:], mask[[1, 1]])
    for row in found:
        torch.testing.assert_close(row, expected[1], rtol=1e-5, atol=1e-5)
    assert split.nbytes() == whole.nbytes()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_a_prompt_in_chunks_is_the_same_prompt_where_its_length_is_told(family: str, chunk: int) -> None:
    model, policy = network(family), policy_for(family, [3, 1], [0, 3], prompt=[1, 0])
    with compressed(model, policy):
        whole = generated(model, CompressedCache(policy), do_sample=False)
        told = CompressedCache(policy, prefix=PREFIX)
        assert torch.equal(generated(model, told, do_sample=False, prefill_chunk_size=chunk), whole)
        assert {layer.prefix for layer in told.compressed_layers} == {PREFIX}
        if chunk != 4:  # four tokens and then one may be a prompt and an image token
            with pytest.raises(CacheError, match=r"prefix=\.\.\."):
                generated(model, CompressedCache(policy), do_sample=False, prefill_chunk_size=chunk)
        with pytest.raises(CacheError, match="cross the end of the prompt"):
            generated(model, CompressedCache(policy, prefix=PREFIX - 1), do_sample=False)


def test_a_prompt_in_chunks_is_traced_where_its_length_is_told() -> None:
    model, policy = network("llama"), policy_for("llama", [3, 1], [0, 3], prompt=[0, 1])

    def traced(chunk: int | None, prefix: int | None) -> torch.Tensor:
        with compressed(model, policy), watch_live(model.model, Geometry(4, 4), prefix=prefix) as seen:
            generated(model, CompressedCache(policy, prefix=PREFIX), do_sample=False, prefill_chunk_size=chunk)
        return seen.layers[1].whole.columns

    whole = traced(None, None)
    torch.testing.assert_close(traced(2, PREFIX), whole)
    with pytest.raises(DataError, match=r"prefix=\.\.\."):
        traced(2, None)
    with pytest.raises(DataError, match="cross the end of the prompt"):
        traced(None, PREFIX - 1)


def second_turn(model: Any, cache: Any, hidden: int) -> torch.Tensor:
    """Logits [2, 1, V] after three more tokens, of which `hidden` are padding in the first row."""
    given = prompts()
    turn, seen = torch.tensor([[1, 9, 10], [11, 12, 13]]), torch.ones(2, 3, dtype=torch.int64)
    seen[0, :hidden] = 0
    mask = torch.cat([given["attention_mask"], seen], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        model(**given, position_ids=positions[:, :PREFIX], **{CACHE: cache})
        out = model(input_ids=turn, attention_mask=mask, position_ids=positions[:, PREFIX:], **{CACHE: cache})
    return out.logits[:, -1:]


def test_padding_after_the_prompt_is_refused_and_its_like_without_padding_is_right() -> None:
    model, policy = network("llama"), policy_for("llama", TOKENS - 1)
    expected = second_turn(model, DynamicCache(config=model.config), 0)
    with compressed(model, policy):
        found = second_turn(model, CompressedCache(policy, prefix=PREFIX), 0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        for hidden in (1, 2):
            with pytest.raises(CacheError, match="padding"):
                second_turn(model, CompressedCache(policy, prefix=PREFIX), hidden)


def test_a_padded_token_alone_is_refused_too() -> None:
    model, policy, given = network("llama"), policy_for("llama", [3, 1], [0, 3]), prompts()
    mask = torch.cat([given["attention_mask"], torch.tensor([[0], [1]])], 1)
    with compressed(model, policy), torch.no_grad():
        cache = CompressedCache(policy)
        model(**given, **{CACHE: cache})
        with pytest.raises(CacheError, match="padding"):
            model(input_ids=torch.tensor([[1], [9]]), attention_mask=mask, **{CACHE: cache})


def test_a_mask_that_adds_numbers_is_refused() -> None:
    model, policy, given = network("llama"), policy_for("llama", 3), prompts()
    mask = torch.zeros(2, 1, PREFIX, PREFIX).masked_fill(torch.ones(PREFIX, PREFIX).triu(1).bool(), -torch.inf)
    with compressed(model, policy), torch.no_grad(), pytest.raises(CacheError, match="adds numbers"):
        model(input_ids=given["input_ids"], attention_mask=mask - torch.eye(PREFIX), **{CACHE: CompressedCache(policy)})


def test_what_a_small_cache_can_not_do_is_refused_in_a_sentence(tiny: JanusModel) -> None:
    model, policy = network("llama"), policy_for("llama", 3)
    with (
        compressed(model, policy),
        pytest.raises((CacheError, ValueError), match="be cropped"),
    ):
        model.generate(
            prompts()["input_ids"][1:].repeat(1, 2)[:, :8],
            max_new_tokens=8,
            do_sample=False,
            prompt_lookup_num_tokens=2,
            eos_token_id=model.config.vocab_size - 1,  # the oldest transformers look for one
            **{CACHE: CompressedCache(policy)},
        )
    with pytest.raises(CacheError, match="use `with headscope"):
        generated(model, CompressedCache(policy), do_sample=False)
    with compressed(model, policy), pytest.raises(CacheError, match="must be a headscope CompressedCache"):
        generated(model, None, do_sample=False)
    with (
        pytest.raises(PolicyMismatch, match="this Qwen3ForCausalLM has 2, 4 and 2"),
        compressed(network("qwen3"), tiny_policy(tiny)),
    ):
        pass


def tiny_policy(tiny: JanusModel) -> Policy:
    return Policy.uniform(ModelShape("other", 3, 4, 2, 8, tiny.shape.geometry, "a", "w"), window=3, stride=1, prefix=4)
