"""Decoding with the GPU's steps, in Triton's interpreter where there is no GPU: the same images as on the CPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from headscope.errors import DataError, NumberError
from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy
from headscope.runtime import CompressedCache, Sampling, generate
from headscope.runtime.decoders import choose
from headscope.runtime.decoders.llama_cuda import LlamaCudaDecoder
from headscope.runtime.decoders.protocol import ImageDecoder
from headscope.runtime.sampling import Sampler
from headscope.samples import Samples
from tests.tiny import tiny_model

PROMPTS = ["red apple", "a blue car on a red background"]  # of different length
WINDOWS, HEAVY = torch.tensor([[5, 1], [0, 3]]), torch.tensor([[0, 3], [4, 0]])


@torch.inference_mode()
def generated(decoder: LlamaCudaDecoder, sampler: Sampler, steps: list[int]) -> torch.Tensor:
    hidden = decoder.prefill(decoder.model.tokenize(PROMPTS), sampler.guided)
    return decoder.image_tokens(hidden, sampler, steps.append).to(torch.int32).cpu()


@pytest.mark.triton
@pytest.mark.parametrize(("guidance", "top_k"), [(3.0, None), (1.0, 5)])
def test_the_same_images(tiny: JanusModel, guidance: float, top_k: int | None) -> None:
    policy = Policy.uniform(tiny.shape, window=WINDOWS, heavy=HEAVY, anchor=1, decay=0.9, stride=4, prefix=12)
    sampling = Sampling(guidance, top_k=top_k).of(tiny)
    expected: Samples = generate(tiny, PROMPTS, [3, 4], policy=policy, sampling=sampling)
    decoder, sampler = LlamaCudaDecoder(tiny, policy), Sampler(tiny, sampling, [3, 4])
    assert isinstance(decoder, ImageDecoder)
    found = generated(decoder, sampler, [])
    assert torch.equal(found, expected.tokens)
    assert torch.equal(generated(decoder, sampler, []), found)  # nothing of the first image is left


@torch.inference_mode()
def test_a_step_that_is_not_captured_gives_the_same_hidden_states(tiny: JanusModel) -> None:
    policy = Policy.uniform(tiny.shape, window=WINDOWS, heavy=HEAVY, stride=4, prefix=12)
    decoders = [LlamaCudaDecoder(tiny, policy), choose(tiny, policy, "transformers")]
    prefix, codes = tiny.tokenize(PROMPTS), torch.randint(0, 16, (5, 2), generator=torch.Generator().manual_seed(1))
    for guided in (True, False):  # another number of rows: what was allocated does not fit
        found = [[one.prefill(prefix, guided), *(one.step(row, t) for t, row in enumerate(codes))] for one in decoders]
        torch.testing.assert_close(torch.stack(found[0]), torch.stack(found[1]), rtol=1e-4, atol=1e-4)


def test_numbers_that_are_none_stop_the_image_at_the_end_of_their_row() -> None:
    """Code 5 has an embedding that is none: the token after its first appearance can't be sampled."""
    model = tiny_model()
    policy = Policy.uniform(model.shape, window=WINDOWS, heavy=HEAVY, stride=4, prefix=12)
    samples = generate(model, PROMPTS, [3, 4], policy=policy)
    code = int(samples.tokens[0, 2])
    first = min(int((row == code).nonzero()[0]) for row in samples.tokens if code in row)
    with torch.no_grad():
        model.network.model.generation_embeddings.weight[code] = float("inf")
    steps: list[int] = []
    with pytest.raises(NumberError, match=rf"image token {first + 1} "):
        generated(LlamaCudaDecoder(model, policy), Sampler(model, Sampling().of(model), [3, 4]), steps)
    assert len(steps) <= first + 1 + model.shape.geometry.cols


def test_bytes_are_those_of_the_cpus_cache(tiny: JanusModel) -> None:
    policy = Policy.uniform(tiny.shape, window=WINDOWS, heavy=HEAVY, stride=4, prefix=12)
    decoder = LlamaCudaDecoder(tiny, policy)
    assert decoder.nbytes() == 0
    decoder.prefill(tiny.tokenize(PROMPTS), guided=True)
    cache = CompressedCache(policy)
    keys = torch.zeros(4, 2, decoder.prefix, 8)
    for layer in cache.compressed_layers:
        layer.lazy_initialization(keys, keys)
    assert decoder.nbytes() == cache.nbytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_and_the_cpus_way_is_taken(tiny: JanusModel) -> None:
    policy = Policy.uniform(tiny.shape, window=3, stride=4, prefix=12)
    assert choose(tiny, policy).name == "llama_cpu"
    with pytest.raises(DataError, match=r"CUDA device; .*llama_cpu, transformers"):
        choose(tiny, policy, "llama_cuda")
