"""Which decoders there are, and which one runs: the fastest that can, or the one that is named."""

from __future__ import annotations

from headscope.errors import DataError
from headscope.models import ImageModel
from headscope.policy import Policy
from headscope.runtime.decoders.llama_cpu import LlamaCpuDecoder
from headscope.runtime.decoders.llama_cuda import LlamaCudaDecoder
from headscope.runtime.decoders.protocol import Decoder
from headscope.runtime.decoders.transformers import TransformersDecoder

AUTO = "auto"
# By name, the fastest first: `auto` takes the first that lacks nothing.
DECODERS: dict[str, type[Decoder]] = {kind.name: kind for kind in (LlamaCudaDecoder, LlamaCpuDecoder, TransformersDecoder)}


def choose(model: ImageModel, policy: Policy | None = None, backend: str = AUTO) -> Decoder:
    """A decoder for one batch of images; it allocates nothing before its `prefill`.

    Args:
        model: whose tokens are decoded.
        policy: what the cache keeps; None keeps everything.
        backend: a name of DECODERS, or "auto" for the fastest that can run here.

    Raises:
        DataError: an unknown name, or a decoder that cannot run this model and policy here; lists those that can.
    """
    usable = usable_decoders(model, policy)
    if not usable:
        raise DataError(f"{model.name}: no decoder can run it with this policy; {_reasons(model, policy)}.")
    if backend == AUTO:
        return DECODERS[usable[0]](model, policy)
    if backend not in usable:
        why = DECODERS[backend].lacking(model, policy) if backend in DECODERS else "is not known"
        raise DataError(f"decoder {backend}: {why}; use one that can run here: {', '.join([AUTO, *usable])}.")
    return DECODERS[backend](model, policy)


def _reasons(model: ImageModel, policy: Policy | None) -> str:
    """`transformers needs ...; llama_cpu needs ...`."""
    return "; ".join(f"{name} {kind.lacking(model, policy)}" for name, kind in reversed(DECODERS.items()))


def passed_over(model: ImageModel, policy: Policy | None = None) -> str | None:
    """Why the GPU's own decoder does not run a model that is on a GPU, as in "llama_cuda needs Triton"; None: it does, or there
    is no GPU.
    """
    if model.device.type != "cuda":
        return None
    lacking = LlamaCudaDecoder.lacking(model, policy)
    return None if lacking is None else f"{LlamaCudaDecoder.name} {lacking}"


def usable_decoders(model: ImageModel, policy: Policy | None = None) -> list[str]:
    """Names of those that can run this model and policy here, the fastest first."""
    return [name for name, kind in DECODERS.items() if kind.lacking(model, policy) is None]


def decoder_name(model: ImageModel, policy: Policy | None = None, backend: str = AUTO) -> str:
    """The name of the decoder that `generate` takes, for records of a run. Raises as `choose` does."""
    return choose(model, policy, backend).name
