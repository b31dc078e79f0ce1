"""Replay measures what generating would see: against masks, token by token, and under the full cache."""

from __future__ import annotations

import pytest
import torch

from headscope.errors import DataError
from headscope.models import Samples
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec
from headscope.policy.policy import Policy
from headscope.runtime import CompressedCache, compressed, generate
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.replay import Replay, chunks
from headscope.tuning.measure.single_head import SingleHeadLoss, alone_policy
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def generated(tiny: JanusModel) -> Samples:
    return generate(tiny, ["red apple", "a blue car on a red background", "dog"], 7)


@pytest.fixture(scope="module")
def replay(tiny: JanusModel, generated: Samples) -> Replay:
    return Replay(tiny, generated, batch_size=2)


def mixed(model: JanusModel, stride: int) -> Policy:
    return Policy.uniform(
        model.shape,
        window=torch.tensor([[5, 1], [2, 4]]),
        heavy=torch.tensor([[0, 3], [4, 0]]),
        stride=stride,
        prefix=10,
    )


def slow_kl(model: JanusModel, samples: Samples, policy: Policy) -> torch.Tensor:
    """Guided KL [n, N - 1], one image, one stream and one token at a time."""
    result = []
    with torch.inference_mode():
        for number, prompt in enumerate(samples.prompts):
            prefix = model.tokenize([prompt])
            tokens = samples.tokens[number : number + 1].long()
            streams = []
            for ids in (prefix.ids, prefix.unconditional_ids):
                words, image = model.embed_prefix(ids), model.embed_tokens(tokens[:, :-1])
                full = model.logits(model.forward(torch.cat([words, image], 1), None))[0, ids.shape[1] :]
                cache, parts = CompressedCache(policy), []
                with compressed(model, policy):
                    model.forward(words, prefix.mask, cache)
                    for t in range(image.shape[1]):
                        mask = torch.ones(1, ids.shape[1] + t + 1, dtype=torch.int64)
                        parts.append(model.logits(model.forward(image[:, t : t + 1], mask, cache))[0])
                streams.append((full, torch.cat(parts)))
            (full_c, kept_c), (full_u, kept_u) = streams
            p = torch.log_softmax((full_u + 3.0 * (full_c - full_u)), -1)
            q = torch.log_softmax((kept_u + 3.0 * (kept_c - kept_u)), -1)
            result.append((p.exp() * (p - q)).sum(-1))
    return torch.stack(result)


def slow_full(model: JanusModel, samples: Samples, number: int) -> torch.Tensor:
    """Guided log-probabilities of one image under the full cache, float32 [N - 1, V], without padding."""
    prefix, tokens = model.tokenize([samples.prompts[number]]), samples.tokens[number : number + 1].long()
    streams = []
    for ids in (prefix.ids, prefix.unconditional_ids):
        given = torch.cat([model.embed_prefix(ids), model.embed_tokens(tokens[:, :-1])], 1)
        streams.append(model.logits(model.forward(given, None))[0, ids.shape[1] :].float())
    return torch.log_softmax(streams[1] + 3.0 * (streams[0] - streams[1]), -1)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_replay_in_chunks_equals_decoding_token_by_token(
    tiny: JanusModel, generated: Samples, replay: Replay, stride: int
) -> None:
    policy = mixed(tiny, stride)
    found = replay.measure(policy)
    torch.testing.assert_close(found.divergence, slow_kl(tiny, generated, policy), rtol=1e-3, atol=1e-5)
    assert found.kl > 1e-4
    assert found.cache_bytes == CompressedBytes(tiny, policy, replay.prefix)


def CompressedBytes(model: JanusModel, policy: Policy, prefix: int) -> int:  # noqa: N802

    return CacheSpec(policy.shape, prefix, dtype="float32").bytes_of(policy)


def test_a_copy_of_the_model_loses_what_rounding_does(replay: Replay, generated: Samples) -> None:
    assert float(replay.measure_full(tiny_model()).divergence.abs().max()) < 1e-6
    copy = tiny_model()
    copy.network.to(torch.bfloat16)
    rounded = replay.measure_full(copy)
    assert rounded.divergence.shape == (len(generated), 15)
    slow = []
    with torch.inference_mode():
        for number in range(len(generated)):
            p, q = (slow_full(of, generated, number) for of in (replay.model, copy))
            slow.append((p.exp() * (p - q)).sum(-1).mean())
    assert float(torch.stack(slow).mean()) == pytest.approx(rounded.kl, rel=0.3)  # rounding depends on padding too
    assert 1e-6 < rounded.kl < 0.05


def test_everything_kept_loses_nothing(tiny: JanusModel, replay: Replay) -> None:
    result = replay.measure(Policy.uniform(tiny.shape, window=8, heavy=8, stride=4, prefix=10))
    assert abs(result.kl) < 1e-6
    assert result.top1 == 1.0
    assert abs(result.extra_nats) < 1e-5


def test_rows_and_images_are_means_of_the_same_numbers(tiny: JanusModel, replay: Replay) -> None:
    result = replay.measure(mixed(tiny, 4))
    by_row = result.divergence.double()
    assert result.kl_by_row[0] == pytest.approx(float(by_row[:, :3].mean()))
    assert result.kl_by_row[3] == pytest.approx(float(by_row[:, 11:].mean()))
    assert float(result.kl_by_image.mean()) == pytest.approx(result.kl)


def test_chunks_end_where_strides_end(tiny: JanusModel) -> None:
    geometry = tiny.shape.geometry
    assert list(chunks(mixed(tiny, 8), geometry)) == [(0, 4), (4, 8), (8, 12), (12, 15)]
    assert len(list(chunks(mixed(tiny, 1), geometry))) == 15
    assert list(chunks(Policy.uniform(tiny.shape, window=3, stride=1, prefix=9), geometry)) == [(0, 15)]


@pytest.mark.parametrize("anchor", [0, 2])
@pytest.mark.parametrize("option", [Option(1), Option(4), Option(0, 3), Option(2, 2, 0.0)])
def test_one_head_alone_costs_what_a_plain_replay_says(replay: Replay, option: Option, anchor: int) -> None:
    alone = SingleHeadLoss(replay, stride=4, anchor=anchor)
    assert alone.shortcut
    for layer in range(2):
        for heads in ((0,), (1,), (0, 1)):
            plain = replay.measure(alone_policy(replay, layer, heads, option, 4, anchor)).kl
            assert alone._short(layer, heads, option) == pytest.approx(plain, rel=1e-3, abs=1e-7)


def test_images_of_another_model_are_refused(tiny: JanusModel, generated: Samples) -> None:
    with pytest.raises(DataError, match="samples are empty"):
        Replay(tiny, generated.select([]))
    with pytest.raises(DataError, match="15 image tokens, tiny generates 16"):
        Replay(tiny, Samples(**{**vars(generated), "tokens": generated.tokens[:, 1:]}))
    with pytest.raises(DataError, match="of temperature 0, which leaves no distribution to compare"):
        Replay(tiny, Samples(**{**vars(generated), "temperature": 0.0}))
    with pytest.raises(DataError, match="other weights"):
        Replay(tiny, Samples(**{**vars(generated), "weights": "feedbeef"}))
