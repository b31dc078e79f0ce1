"""What rows at once lose: replay, a step at a time, against one parallel pass under the mask of times; and free running."""

from __future__ import annotations

import pytest
import torch

from headscope.geometry import Geometry
from headscope.models import ImageModel, logits_of
from headscope.models.janus import JanusModel
from headscope.policy import Policy
from headscope.runtime import generate
from headscope.samples import Samples
from headscope.tuning import Replay, measure_free_running
from tests.models.test_raster import llama, model_of

PROMPTS = ["dog", "a blue car on a red background", "red apple"]


def everything(model: ImageModel, lead: int) -> Policy:
    tokens = model.shape.geometry.tokens
    return Policy.uniform(model.shape, window=tokens - 1, stride=1, prefix=model.max_prefix, lead=lead)


@torch.inference_mode()
def in_one_pass(model: ImageModel, samples: Samples, lead: int) -> torch.Tensor:
    """KL [n, N - 1] of the conditional and unconditional streams' guided distribution, everything fed in one forward."""
    geometry = model.shape.geometry
    length, count = geometry.row_length, geometry.tokens
    ids, mask = model.tokenize(list(samples.prompts)).stacked(samples.guidance != 1.0)
    prompt, streams = model.embed_prefix(ids), len(ids) // len(samples)
    image = model.embed_tokens(samples.tokens.long()).repeat(streams, 1, 1)
    rows = range(geometry.rows - 1)
    own = [(row + 1) * length - 1 for row in rows]
    # The row's first token, and the end of the row before where it was fed by then.
    there = [[row * length, *([row * length - 1] if row and 2 * lead >= length else [])] for row in rows]
    source = [[end] for end in own] if geometry.row_end else there
    stands = [image[:, some].mean(1, keepdim=True) for some in source]
    times = torch.tensor([t // length * lead + t % length for t in range(count)] + [(row + 1) * lead - 1 for row in rows])
    at = torch.tensor([*range(count), *own])
    seen = (at[None, :count] <= at[:, None]) & (times[None, :count] <= times[:, None])
    seen = torch.cat([seen, torch.zeros(len(at), len(rows), dtype=torch.bool)], 1) | torch.eye(len(at), dtype=torch.bool)
    prefix = ids.shape[1]
    whole = torch.zeros(len(ids), 1, prefix + len(at), prefix + len(at), dtype=torch.bool)
    whole[:, 0, :, :prefix] = mask[:, None] > 0
    whole[:, 0, :prefix, :prefix] &= torch.ones(prefix, prefix, dtype=torch.bool).tril()
    whole[:, 0, :prefix, :prefix] |= torch.eye(prefix, dtype=torch.bool)
    whole[:, 0, prefix:, prefix:] = seen
    places = torch.cat([torch.arange(prefix), prefix + at])
    hidden = model.forward_at(torch.cat([prompt, image, *stands], 1), places, mask, whole)[:, prefix:]  # type: ignore[attr-defined]
    told = list(range(count - 1))
    if lead < length:
        for row, end in zip(rows, own, strict=True):
            told[end] = count + row
    full = model.forward(torch.cat([prompt, image[:, :-1]], 1), torch.cat([mask, mask.new_ones(len(ids), count - 1)], 1))
    logp = []
    for states in (full[:, prefix:], hidden[:, told]):
        logits = logits_of(model, states, 1).float() / samples.temperature
        if streams == 2:
            conditional, unconditional = logits.chunk(2)
            logits = torch.lerp(unconditional, conditional, samples.guidance)
        logp.append(torch.log_softmax(logits, -1))
    return ((logp[0] - logp[1]) * logp[0].exp()).sum(-1)


@pytest.mark.parametrize("lead", [1, 2, 3])
def test_replay_measures_what_one_pass_under_the_mask_of_times_gives(tiny: JanusModel, lead: int) -> None:
    samples = generate(tiny, PROMPTS, 3)
    found = Replay(tiny, samples, batch_size=2).measure(everything(tiny, lead))
    expected = in_one_pass(tiny, samples, lead)
    assert found.kl == pytest.approx(float(expected.mean()), rel=1e-4)
    torch.testing.assert_close(found.kl_by_image.float(), expected.mean(1), rtol=1e-3, atol=1e-5)
    assert found.kl > 1e-3
    assert Replay(tiny, samples).measure(everything(tiny, 4)).kl == pytest.approx(0, abs=1e-5)


def test_replay_knows_row_ends() -> None:
    model = model_of(llama(), geometry=Geometry(3, 4, 1), row_end=19)
    samples = generate(model, ["cat", "dog"], 3)
    found = Replay(model, samples).measure(everything(model, 2))
    torch.testing.assert_close(found.kl_by_image.float(), in_one_pass(model, samples, 2).mean(1), rtol=1e-3, atol=1e-5)


def test_free_running_compares_images_of_its_own(tiny: JanusModel) -> None:
    samples, policy = generate(tiny, PROMPTS, 3), everything(tiny, 2)
    own = generate(tiny, PROMPTS, 3, policy=policy)
    found = measure_free_running(tiny, samples, policy)
    torch.testing.assert_close(found.kl_by_image.float(), in_one_pass(tiny, own, 2).mean(1), rtol=1e-3, atol=1e-5)
