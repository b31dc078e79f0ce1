"""Step `tokens`: captured graphs on the device give the tokens that the CPU's decoder gives, batch after batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from headscope.benchmarks.gpu import faults
from headscope.benchmarks.gpu.context import Context
from headscope.benchmarks.gpu.variants import DRY_SHARE, decoder_of, shared
from headscope.benchmarks.shapes import SIZES, random_janus
from headscope.models import load_model
from headscope.models.janus import JanusModel
from headscope.policy import Policy, load_policy
from headscope.runtime import Sampling, decoder_name, generate
from headscope.runtime.decoders.llama_cuda import LlamaCudaDecoder
from headscope.runtime.sampling import Sampler

PROMPTS = ("red apple, noto style", "dog face, twemoji style, blue background")
_Case = tuple[JanusModel, JanusModel, str, Policy]


def run(context: Context) -> None:
    """Record the share of equal tokens of every model and policy, in float32; with bits beside that of two ways of the CPU."""
    torch.set_num_threads(1)  # of models this small, more threads cost more than they save
    for there, here, name, policy in _cases(context):
        about = {"shape": there.name, "dtype": "float32", "variant": name}
        try:
            _compare(context, there, here, policy, about)
        except Exception as error:  # the other policies go on
            context.fault(faults.sentence(error, f"{there.name} with {name}"), **about)
        faults.forget()


def _cases(context: Context) -> Iterator[_Case]:
    """(model on the device, the same on the CPU, name of the policy, policy), one after the other."""
    name = "dry" if context.dry else "tiny"
    here = random_janus(name, torch.float32, "cpu")
    # Copied as a whole: made there, a device would draw its own weights and compute its own angles.
    there = JanusModel(copy.deepcopy(here.network).to(context.device), here.tokenizer, name)
    random = shared(here, SIZES[name].prefix, DRY_SHARE if context.dry else 0.4)
    if context.dry:
        yield from ((there, here, label, policy) for label, policy in _with_bits("heavy heads", random, (16, 8)))
        return
    bundled, reference = (_stickers(device) for device in (context.device, "cpu"))
    shipped = load_policy("stickers-20", reference.shape)
    heavy = shared(reference, shipped.prefix, 0.4)
    for bits in (16, 8, 4):
        for label, policy in (*_with_bits("stickers-20", shipped, (bits,)), *_with_bits("heavy heads", heavy, (bits,))):
            yield bundled, reference, label, policy
        yield from ((there, here, label, policy) for label, policy in _with_bits("heavy heads", random, (bits,)))


def _with_bits(label: str, policy: Policy, each: tuple[int, ...]) -> Iterator[tuple[str, Policy]]:
    """The policy with so many bits in every head; 16 stand for the weights' own."""
    for bits in each:
        yield label if bits == 16 else f"{label}, {bits} bits", _at(policy, bits)


def _at(policy: Policy, bits: int) -> Policy:
    return policy.replace(bits=torch.full_like(policy.bits, bits))


def _stickers(device: str) -> JanusModel:
    model = load_model("stickers", device=device, dtype=torch.float32)
    assert isinstance(model, JanusModel)
    return model


def _compare(context: Context, there: JanusModel, here: JanusModel, policy: Policy, about: dict[str, str]) -> None:
    """Two batches through one decoder, each against the CPU's."""
    decoder = decoder_of(context, there, policy)
    prompts = list(PROMPTS)
    for batch, seeds in enumerate(([0, 1],) if policy.quantized else ([0, 1], [7, 8])):
        found = _image_tokens(decoder, there, prompts, seeds)
        wanted = generate(here, prompts, seeds, policy=policy, batch_size=len(prompts)).tokens.long()
        same, expected = found == wanted, 1.0
        if policy.quantized:  # a number on the edge between two codes falls to either side, and the image goes another way
            other = generate(here, prompts, seeds, policy=policy, batch_size=len(prompts), decoder="transformers").tokens
            expected = float((other == wanted).float().mean())
        shown = {"batch_number": batch, "decoder": decoder.name, "reference": decoder_name(here, policy)}
        context.record("tokens equal to the CPU's", float(same.float().mean()), "share", predicted=expected, **shown, **about,
                       **first_difference(same))  # fmt: skip


def first_difference(same: torch.Tensor) -> dict[str, int]:
    """The first token that differs in any image, and the image; nothing where all are equal.

    Args:
        same: bool [n, N].
    """
    if bool(same.all()):
        return {}
    token = int((~same).any(0).int().argmax())
    return {"first_token": token, "first_image": int((~same[:, token]).int().argmax())}


@torch.inference_mode()
def _image_tokens(decoder: LlamaCudaDecoder, model: JanusModel, prompts: list[str], seeds: list[int]) -> torch.Tensor:
    sampling = Sampling(seed=seeds).of(model)
    hidden = decoder.prefill(model.tokenize(prompts), sampling.guided)
    return decoder.image_tokens(hidden, Sampler(model, sampling, seeds), lambda count: None).cpu().long()
