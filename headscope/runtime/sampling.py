"""How image tokens are sampled: guidance, temperature, top-k and seeds as one record, and the one function for each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from headscope.errors import DataError
from headscope.models import ImageModel, evenly, logits_of
from headscope.runtime.finite import finite_choice
from headscope.runtime.noise import Noise
from headscope.samples import Samples


@dataclass(frozen=True)
class Sampling:
    """How images are sampled. What is None is the model's own; `of` fills it in.

    Attributes:
        guidance: scale s of u + s(c - u), 0 to 100; 1 leaves the unconditional stream out.
        temperature: divides the logits, 0 to 100; 0 takes the most likely code.
        top_k: only the k most likely codes are sampled, from 1; None after `of`: all of them.
        seed: one an image, or one number s for s, s + 1, ...; of 64 bits.
        cfg_interval: as LlamaGen counts: token 0 and the next n + 1 are guided, later ones follow the conditional stream
            alone; -1 guides all.

    Raises:
        DataError: a number out of range.

    Example:
        Sampling(guidance=3.0, seed=7) samples as the model does by default, but for the guidance.
    """

    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    seed: int | Sequence[int] = 0
    cfg_interval: int | None = None

    def __post_init__(self) -> None:
        if self.guidance is not None and not 0.0 <= self.guidance <= 100.0:
            raise DataError(f"guidance {self.guidance:g}: expected a scale from 0 to 100 (1 leaves guidance out).")
        if self.temperature is not None and not 0.0 <= self.temperature <= 100.0:
            raise DataError(f"temperature {self.temperature:g}: expected 0 (most likely code) to 100.")
        if self.top_k is not None and self.top_k < 1:
            raise DataError(f"top-k {self.top_k}: expected a number of codes from 1.")
        if self.cfg_interval is not None and self.cfg_interval < -1:
            raise DataError(f"cfg_interval {self.cfg_interval}: expected a number of tokens from 0, or -1 to guide all.")
        seeds = [self.seed] if isinstance(self.seed, int) else [int(seed) for seed in self.seed]
        if wrong := [seed for seed in seeds if not -(2**63) <= seed < 2**63]:
            raise DataError(f"seed {wrong[0]}: expected a number of 64 bits, from -2^63 to 2^63 - 1.")
        if not isinstance(self.seed, int):
            object.__setattr__(self, "seed", tuple(seeds))  # a list could be changed, and is not hashable

    def of(self, model: ImageModel) -> Sampling:
        """With the model's own numbers where none were given.

        Args:
            model: whose guidance, temperature and top-k fill in what is None.

        Raises:
            DataError: more codes than the model has, or guidance where it has no stream to guide by.
        """
        if self.guidance not in (None, 1.0) and not getattr(model, "can_guide", True):
            raise DataError(
                f"guidance {self.guidance:g}: {model.name} has no stream to guide by (`unconditional`), expected 1."
            )
        top_k = model.top_k if self.top_k is None else int(self.top_k)
        if top_k is not None and top_k > model.vocabulary:
            raise DataError(f"top-k {top_k}: expected 1 to {model.vocabulary}, the number of image codes.")
        return replace(
            self,
            guidance=float(model.guidance if self.guidance is None else self.guidance),
            temperature=float(model.temperature if self.temperature is None else self.temperature),
            top_k=top_k,
            cfg_interval=getattr(model, "cfg_interval", -1) if self.cfg_interval is None else self.cfg_interval,
        )

    @classmethod
    def of_samples(cls, samples: Samples) -> Sampling:
        """How recorded images were sampled, but for their seeds.

        Args:
            samples: the recorded images.
        """
        return cls(samples.guidance, samples.temperature, samples.top_k, cfg_interval=samples.cfg_interval)

    @property
    def guided(self) -> bool:
        """Whether the unconditional stream runs too."""
        return self.guidance != 1.0

    @property
    def streams(self) -> int:
        """Rows of the cache that one image takes."""
        return 2 if self.guided else 1

    def seeds(self, count: int) -> list[int]:
        """One seed an image.

        Args:
            count: images.

        Raises:
            DataError: another number of seeds was given, or the last ones have more than 64 bits.
        """
        if isinstance(self.seed, int):
            if count and self.seed + count > 2**63:
                raise DataError(f"seed {2**63}: expected a number of 64 bits, from -2^63 to 2^63 - 1.")
            return [self.seed + number for number in range(count)]
        if len(self.seed) != count:
            raise DataError(f"Found {len(self.seed)} seeds for {count} prompts: give one a prompt, or a single number.")
        return list(self.seed)


def scales(guidance: float, cfg_interval: int, tokens: torch.Tensor) -> float | torch.Tensor:
    """What `guide` takes at some image tokens.

    Args:
        guidance: scale of guidance, not 1.
        cfg_interval: see `Sampling`.
        tokens: int64 of any shape, their numbers.

    Returns:
        The scale where all are guided, else float32 of that shape, 1 where a token is not.
    """
    if cfg_interval < 0:
        return guidance
    return torch.where(tokens <= cfg_interval + 1, guidance, 1.0).float()


def guide(logits: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance: u + scale * (c - u).

    Args:
        logits: [2 * n, ..., V], conditional streams c first, then the unconditional ones u; [n, ..., V] at scale 1.
        scale: s; the number 1 gives the logits as they are. Or a tensor that goes with [n, ..., V].

    Returns:
        float32 [n, ..., V].
    """
    logits = logits.float()
    if not isinstance(scale, torch.Tensor) and scale == 1.0:
        return logits
    conditional, unconditional = logits.chunk(2)
    return torch.lerp(unconditional, conditional, scale)


def sample(
    logits: torch.Tensor, noise: torch.Tensor | None, *, temperature: float = 1.0, top_k: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One code a row: argmax(logits / temperature + noise), a draw from the softmax where the noise is Gumbel's.

    Nothing in it waits for the device, so that a captured graph may hold it.

    Args:
        logits: float32 [n, V], guided.
        noise: float32 [n, V], see `Noise`; None only at temperature 0.
        temperature: 0 takes the most likely code, without noise and top-k.
        top_k: only the k most likely codes are sampled.

    Returns:
        Codes int64 [n], and bool [n]: whether they were chosen among finite numbers.
    """
    if temperature == 0.0:
        return finite_choice(logits)
    if top_k is not None:
        floor = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    assert noise is not None
    return finite_choice(logits / temperature + noise)


class Sampler:
    """Samples the tokens of a batch of images from the logits of all its streams.

    Args:
        model: gives logits, the number of tokens and codes, and the device.
        sampling: filled in, see `Sampling.of`.
        seeds: one an image.
    """

    def __init__(self, model: ImageModel, sampling: Sampling, seeds: Sequence[int]) -> None:
        assert sampling.guidance is not None
        assert sampling.temperature is not None
        assert sampling.cfg_interval is not None
        self.guidance, self.temperature, self.top_k = sampling.guidance, sampling.temperature, sampling.top_k
        self.guided, self.cfg_interval, self.model = sampling.guided, sampling.cfg_interval, model
        self.noise = Noise(seeds, model.shape.geometry.tokens, model.vocabulary, model.device)

    def __call__(self, logits: torch.Tensor, token: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [streams * n, V] of image token `token` (int64 [1] where only the device knows it) -> see `sample`."""
        noise = None
        if self.temperature != 0.0:
            noise = self.noise.of(token) if isinstance(token, torch.Tensor) else self.noise.at(token)
        return sample(guide(logits, self._scale(logits, token)), noise, temperature=self.temperature, top_k=self.top_k)

    def after(self, hidden: torch.Tensor, token: int, *, alone: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [streams * n, C] of the tokens before image token `token` -> see `sample`; where C is 0 there is none,
        and every code is as likely. `alone`: the next token asked for is not the one behind it."""
        at = torch.tensor([token], device=self.model.device) if alone else token
        if hidden.shape[1]:
            return self(logits_of(self.model, hidden[:, None], token)[:, 0], at)
        return self(evenly(self.model, len(hidden), token, hidden.device), at)

    def _scale(self, logits: torch.Tensor, token: int | torch.Tensor) -> float | torch.Tensor:
        if not self.guided or self.cfg_interval < 0:
            return self.guidance
        return scales(self.guidance, self.cfg_interval, torch.as_tensor(token, device=logits.device))
