"""What the full cache predicted, kept so that many policies can be measured against it: whole where it fits, else its top.

A compact table keeps the k most likely codes of every position and the mass of all others. The divergence is then taken
with the others as one code, which can only lower it (the log-sum inequality), and by at most `bound`:

    sum over the others of p log(p / q) - P log(P / Q)  <=  P (log(p_k / P) + log(Q / q_min)),

P and Q being the mass of the others under both, p_k the least probability that is kept, q_min the least of the measured
distribution.
"""

from __future__ import annotations

import torch

# A table as large as this is kept whole: 55 images of Janus-Pro.
ROOM = 2 * 2**30
# Bytes of a kept code: its log-probability and its number.
_CODE = 8


class FullCachePredictions:
    """Log-probabilities [images, positions, V] of one distribution, whole or compact.

    Args:
        images: how many will be kept.
        positions: of each image.
        vocabulary: V, codes at each position.
        room: bytes that it may take; what does not fit whole keeps its top.
    """

    def __init__(self, images: int, positions: int, vocabulary: int, room: int = ROOM) -> None:
        self.vocabulary = vocabulary
        whole = images * positions * vocabulary * 4
        self.codes = vocabulary if whole <= room else max(min(room // (images * positions * _CODE), vocabulary // 2), 1)
        self._whole: list[torch.Tensor] = []
        self._top: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    @property
    def compact(self) -> bool:
        """Whether only the top is kept."""
        return self.codes < self.vocabulary

    def add(self, logp: torch.Tensor) -> None:
        """Keep the next images' log-probabilities, float32 [n, positions, V]."""
        if not self.compact:
            self._whole.extend(logp)
            return
        for image in logp:
            top = image.topk(self.codes, -1)
            rest = _without(image, top.indices).clamp(min=-50.0)
            self._top.append((top.values, top.indices.int(), rest))

    def nbytes(self) -> int:
        """Bytes of what is kept."""
        kept = [*self._whole, *(tensor for three in self._top for tensor in three)]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def divergence(self, measured: torch.Tensor, images: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward KL of `measured` against these, in nats, and by how much it may be too low: the `bound` of this file's top.

        Image by image, to keep the temporaries small.

        Args:
            measured: log-probabilities, float32 [n, positions, V].
            images: which n of the kept images they belong to.

        Returns:
            KL and bound, float32 [n, positions] each.
        """
        if not self.compact:
            kl = torch.stack([kl_divergence(p, q) for p, q in zip(self._whole[images], measured, strict=True)])
            return kl, torch.zeros_like(kl)
        both = [_from_top(*top, q) for top, q in zip(self._top[images], measured, strict=True)]
        return torch.stack([kl for kl, _ in both]), torch.stack([bound for _, bound in both])


def kl_divergence(reference: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """Forward KL in nats of log-probabilities [..., V] -> [...]."""
    return ((reference - measured) * reference.exp()).sum(-1)


def _from_top(
    values: torch.Tensor, codes: torch.Tensor, rest: torch.Tensor, measured: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """values, codes [positions, k], rest [positions], measured [positions, V] -> KL and bound [positions]."""
    kept = measured.gather(-1, codes.long())
    others = _without(measured, codes.long()).clamp(min=-1e4)
    mass = rest.exp()
    kl = ((values - kept) * values.exp()).sum(-1) + mass * (rest - others)
    bound = mass * (values[:, -1] - rest + others - measured.amin(-1)).clamp(min=0.0)
    return kl, bound


def _without(logp: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Log of the probability of all but `codes` [positions, k] -> [positions]; one minus theirs would lose its digits."""
    return logp.scatter(-1, codes, -torch.inf).logsumexp(-1)
