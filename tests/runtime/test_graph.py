"""Drawing with the GPU's steps, in Triton's interpreter where there is no GPU: the same pictures as on the CPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from headscope.errors import NumberError
from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy
from headscope.runtime import CompressedCache, generate
from headscope.runtime.decoders.llama_cuda import DeviceDraw, draws_on_device
from headscope.samples import Samples
from tests.tiny import tiny_model

PROMPTS = ["red apple", "a blue car on a red background"]  # of different length
WINDOWS, HEAVY = torch.tensor([[5, 1], [0, 3]]), torch.tensor([[0, 3], [4, 0]])


def drawn(model: JanusModel, policy: Policy, guidance: float, top_k: int | None = None) -> tuple[torch.Tensor, DeviceDraw]:
    terms = {"guidance": guidance, "temperature": 1.0, "top_k": top_k}
    on_device = DeviceDraw(model, policy, model.encode(PROMPTS), [3, 4], **terms)
    return on_device.draw().to(torch.int32).cpu(), on_device


@pytest.mark.parametrize(("guidance", "top_k"), [(3.0, None), (1.0, 5)])
def test_the_same_pictures(tiny: JanusModel, guidance: float, top_k: int | None) -> None:
    policy = Policy.uniform(tiny.shape, window=WINDOWS, heavy=HEAVY, anchor=1, decay=0.9, stride=4, prefix=12)
    expected: Samples = generate(tiny, PROMPTS, [3, 4], policy=policy, guidance=guidance, top_k=top_k)
    found, on_device = drawn(tiny, policy, guidance, top_k)
    assert torch.equal(found, expected.tokens)
    again = on_device.draw().to(torch.int32).cpu()  # nothing of the first picture is left
    assert torch.equal(again, found)


def test_numbers_that_are_none_stop_the_picture_at_the_end_of_their_row() -> None:
    """Code 5 has an embedding that is none: the token after its first appearance can't be drawn."""
    model = tiny_model()
    policy = Policy.uniform(model.shape, window=WINDOWS, heavy=HEAVY, stride=4, prefix=12)
    samples = generate(model, PROMPTS, [3, 4], policy=policy)
    code = int(samples.tokens[0, 2])
    first = min(int((row == code).nonzero()[0]) for row in samples.tokens if code in row)
    with torch.no_grad():
        model.network.model.generation_embeddings.weight[code] = float("inf")
    steps: list[int] = []
    terms = {"guidance": samples.guidance, "temperature": 1.0, "top_k": None}
    on_device = DeviceDraw(model, policy, model.encode(PROMPTS), [3, 4], **terms)
    with pytest.raises(NumberError, match=rf"image token {first + 1} "):
        on_device.draw(steps.append)
    assert len(steps) <= first + 1 + model.shape.geometry.cols


def test_bytes_are_those_of_the_cpus_cache(tiny: JanusModel) -> None:
    policy = Policy.uniform(tiny.shape, window=WINDOWS, heavy=HEAVY, stride=4, prefix=12)
    _, on_device = drawn(tiny, policy, 3.0)
    cache = CompressedCache(policy)
    keys = torch.zeros(4, 2, on_device.prefix, 8)
    for layer in cache.compressed_layers:
        layer.lazy_initialization(keys, keys)
    assert on_device.nbytes() == cache.nbytes()


def test_without_a_gpu_the_cpus_way_is_taken(tiny: JanusModel) -> None:
    assert draws_on_device(tiny) == (tiny.device.type == "cuda")
