"""What a decoder is: a way to take tokens through a model and its cache, chosen by name and told in every output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch

from headscope.models import ImageModel, Prefix
from headscope.policy import Policy
from headscope.runtime.sampling import Sampler


class Decoder(Protocol):
    """One batch of images: `prefill` once, then a `step` for every image token but the last. `prefill` begins anew.

    Nothing is allocated before `prefill`. All calls are made under `torch.inference_mode`.

    Args:
        model: whose tokens are decoded.
        policy: what each head keeps; None keeps everything.

    Attributes:
        name: by which it is chosen.
        model: whose tokens are decoded.
    """

    name: ClassVar[str]
    model: ImageModel

    def __init__(self, model: ImageModel, policy: Policy | None) -> None: ...

    @classmethod
    def lacking(cls, model: ImageModel, policy: Policy | None) -> str | None:
        """What it lacks to decode this model with this policy, as in "needs a policy"; None: nothing."""
        ...

    def prefill(self, prefix: Prefix, guided: bool) -> torch.Tensor:
        """Take the prompts in, of n images -> hidden [streams * n, C] of their last token; [streams * n, 0] of no token.

        Args:
            prefix: the encoded prompts.
            guided: whether the unconditional streams run too, as rows after the conditional ones.

        Raises:
            CacheError: a prompt that is too long for the policy's limit.
        """
        ...

    def step(self, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """Feed image token t of every image, int64 [n] -> hidden [streams * n, C]."""
        ...

    def kept(self) -> Iterable[Sequence[torch.Tensor]]:
        """Keys and values that are kept, layer by layer, to tell where numbers went wrong."""
        ...

    def nbytes(self) -> int:
        """Bytes of every tensor that is kept between calls; 0 before `prefill`."""
        ...


@runtime_checkable
class ImageDecoder(Decoder, Protocol):
    """A decoder that runs the loop over an image's tokens itself, sampling included, because its device needs no host."""

    def image_tokens(self, hidden: torch.Tensor, sampler: Sampler, report: Callable[[int], None]) -> torch.Tensor:
        """Sample and feed all tokens after `prefill` -> int64 [n, N].

        Args:
            hidden: what `prefill` gave, [streams * n, C].
            sampler: of the batch.
            report: called with the number of tokens that every image has.

        Raises:
            NumberError: NaN or infinite logits; names the token.
        """
        ...
