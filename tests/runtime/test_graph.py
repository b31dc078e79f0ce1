"""Decoding with the GPU's steps, in Triton's interpreter where there is no GPU: the same images as on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

from headscope.errors import CacheError, DataError, NumberError
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec
from headscope.policy.policy import Policy
from headscope.runtime import CompressedCache, Sampling, generate
from headscope.runtime.decoders import choose, gpu_work, trial
from headscope.runtime.decoders.gpu_work import GpuWork
from headscope.runtime.decoders.llama_cuda import LlamaCudaDecoder
from headscope.runtime.decoders.protocol import ImageDecoder
from headscope.runtime.sampling import Sampler
from tests.runtime.test_scores import tables
from tests.tiny import tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPTS = ["red apple", "a blue car on a red background"]  # of different length
WINDOWS, HEAVY = torch.tensor([[5, 1], [0, 3]]), torch.tensor([[0, 3], [4, 0]])
BITS = torch.tensor([[4, 16], [8, 4]], dtype=torch.uint8)
PROMPT = torch.tensor([[1, 0], [0, 1]])  # 1 the whole prompt, 0 its ends


@pytest.fixture
def there() -> Iterator[JanusModel]:
    """The tiny model where kernels run."""
    model = tiny_model()
    model.network.to(DEVICE)
    yield model
    gpu_work.release(model)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[GpuWork]:
    """Every work that is made from here on."""
    found: list[GpuWork] = []
    make = GpuWork.__init__

    def told(self: GpuWork, *args: object) -> None:
        found.append(self)
        make(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(GpuWork, "__init__", told)
    return found


def policy_for(model: JanusModel, **more: object) -> Policy:
    numbers = {"window": WINDOWS, "heavy": HEAVY, "anchor": 1, "decay": 0.9, "stride": 4, "prefix": 12, **more}
    return Policy.uniform(model.shape, **numbers)  # type: ignore[arg-type]


@torch.inference_mode()
def generated(decoder: LlamaCudaDecoder, sampler: Sampler, steps: list[int], prompts: list[str] = PROMPTS) -> torch.Tensor:
    hidden = decoder.prefill(decoder.model.tokenize(prompts), sampler.guided)
    return decoder.image_tokens(hidden, sampler, steps.append).to(torch.int32).cpu()


def compare(tiny: JanusModel, there: JanusModel, policy: Policy, sampling: Sampling) -> None:
    sampling = sampling.of(tiny)
    expected = generate(tiny, PROMPTS, [3, 4], policy=policy, sampling=sampling).tokens
    assert torch.equal(generated(LlamaCudaDecoder(there, policy), Sampler(there, sampling, [3, 4]), []), expected)


@pytest.mark.triton
@pytest.mark.parametrize(
    "sampling", [Sampling(3.0), Sampling(0.3, temperature=0.8), Sampling(3.0, temperature=0.0), Sampling(3.0, top_k=16)]
)
def test_the_same_images_however_they_are_sampled(tiny: JanusModel, there: JanusModel, sampling: Sampling) -> None:
    compare(tiny, there, policy_for(tiny), sampling)


@pytest.mark.triton
@pytest.mark.parametrize("bits", [8, 4, BITS])
def test_the_same_images_in_fewer_bits(tiny: JanusModel, there: JanusModel, bits: int | torch.Tensor) -> None:
    compare(tiny, there, policy_for(tiny, bits=bits, prompt=PROMPT), Sampling(3.0))


@torch.inference_mode()
def test_unconditional_rows_of_one_length_share_a_prefix(tiny: JanusModel, there: JanusModel) -> None:
    alike, policy = ["red apple", "blue car"], policy_for(tiny, prompt=PROMPT)
    decoder, sampling = LlamaCudaDecoder(there, policy), Sampling(3.0).of(tiny)
    expected = generate(tiny, alike, [3, 4], policy=policy, sampling=sampling).tokens
    assert torch.equal(generated(decoder, Sampler(there, sampling, [3, 4]), [], alike), expected)
    spec = CacheSpec(there.shape, decoder.prefix, batch=2, streams=2, dtype="float32")
    slots = int(PROMPT.sum()) * decoder.prefix + int((PROMPT == 0).sum()) * 2
    once = slots * spec.shape.head_dim * 2 * 4
    assert decoder.nbytes() == spec.bytes_of(policy) - once


def test_one_work_gives_the_same_images_batch_after_batch(tiny: JanusModel, there: JanusModel, made: list[GpuWork]) -> None:
    policy = policy_for(tiny, score=torch.tensor([[0, 2], [1, 0]])).replace(tables=tables(tiny.shape))
    sampling = Sampling(1.0, temperature=2.0, top_k=3).of(tiny)
    for prompts, seeds in ((PROMPTS, [3, 4]), (PROMPTS[1:], [5])):  # nothing of the first batch is left in the second, of fewer
        expected = generate(tiny, prompts, seeds, policy=policy, sampling=sampling).tokens
        decoder = LlamaCudaDecoder(there, policy)
        assert isinstance(decoder, ImageDecoder)
        assert torch.equal(generated(decoder, Sampler(there, sampling, seeds), [], prompts), expected)
    assert len(made) == 1


@torch.inference_mode()
def test_another_shape_policy_or_place_of_weights_makes_a_new_one(there: JanusModel, made: list[GpuWork]) -> None:
    policy, other = policy_for(there), policy_for(there, decay=0.5)
    for kept, guided in ((policy, False), (policy, True), (other, True), (other, True)):
        decoder = LlamaCudaDecoder(there, kept)
        decoder.prefill(there.tokenize(PROMPTS), guided)
        decoder._leave()
    assert len(made) == 3
    with torch.inference_mode(False):
        parameter = there.decoder.layers[0].self_attn.o_proj.weight  # type: ignore[union-attr, index]
        parameter.data = parameter.detach().clone()
    LlamaCudaDecoder(there, other).prefill(there.tokenize(PROMPTS), True)
    assert len(made) == 4


@torch.inference_mode()
def test_two_that_run_at_once_do_not_share(there: JanusModel, made: list[GpuWork]) -> None:
    policy = policy_for(there)
    first, second = LlamaCudaDecoder(there, policy), LlamaCudaDecoder(there, policy)
    for decoder in (first, second):
        decoder.prefill(there.tokenize(PROMPTS), False)
    assert len(made) == 2


def test_weights_that_lie_together_are_saved_and_trained_as_before(tiny: JanusModel, there: JanusModel, tmp_path) -> None:
    LlamaCudaDecoder(there, policy_for(there)).prefill(there.tokenize(PROMPTS), False)
    there.network.save_pretrained(tmp_path)
    loaded = type(there.network).from_pretrained(tmp_path).state_dict()
    for name, weight in tiny.network.state_dict().items():
        assert torch.equal(loaded[name], weight), name
    there.decoder(inputs_embeds=torch.ones(1, 2, 32, device=DEVICE)).last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for name, parameter in there.decoder.named_parameters() if "proj" in name)


def test_kernels_are_tried_against_the_model(there: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.trial(there) is None
    assert trial.difference(there) < 1e-5
    monkeypatch.setattr(trial, "difference", lambda model: 0.3)
    assert trial.trial(there) is None  # the verdict holds
    assert trial._tried(there) == "gives other numbers than the model here, by 0.3 of the largest"

    def broken(model: JanusModel) -> float:
        raise RuntimeError("ptxas\nfailed.")

    monkeypatch.setattr(trial, "difference", broken)
    assert trial._tried(there) == "has kernels that Triton cannot run here (ptxas failed)"


def test_memory_that_runs_out_is_a_sentence(there: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: GpuWork, *args: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(GpuWork, "prefill", full)
    with pytest.raises(CacheError, match=r"memory does not hold 4 rows with prompts of \d+ tokens"):
        LlamaCudaDecoder(there, policy_for(there)).prefill(there.tokenize(PROMPTS), True)


@torch.inference_mode()
def test_a_step_that_is_not_captured_gives_the_same_hidden_states(there: JanusModel) -> None:
    policy = Policy.uniform(there.shape, window=WINDOWS, heavy=HEAVY, stride=4, prefix=12)
    decoders = [LlamaCudaDecoder(there, policy), choose(there, policy, "transformers")]
    codes = torch.randint(0, 16, (5, 2), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    prefix = there.tokenize(PROMPTS)
    for guided in (True, False):  # another number of rows: what was allocated does not fit
        found = [[one.prefill(prefix, guided), *(one.step(row, t) for t, row in enumerate(codes))] for one in decoders]
        torch.testing.assert_close(torch.stack(found[0]), torch.stack(found[1]), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:All-NaN")  # of the interpreter's maximum
def test_numbers_that_are_none_stop_the_image_at_the_end_of_their_row() -> None:
    """Code 5 has an embedding that is none: the token after its first appearance can't be sampled."""
    model = tiny_model()
    model.network.to(DEVICE)
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


@pytest.mark.parametrize("bits", [16, BITS])
def test_bytes_are_those_of_the_cpus_cache(there: JanusModel, bits: int | torch.Tensor) -> None:
    policy = policy_for(there, bits=bits, prompt=PROMPT)
    decoder = LlamaCudaDecoder(there, policy)
    assert decoder.nbytes() == 0
    decoder.prefill(there.tokenize(PROMPTS), guided=True)
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
