"""What heads keep of a prompt that they drop: its first valid token, another in each row, and its last, begin of image."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headscope.policy import PROMPT_ENDS


@dataclass(frozen=True)
class PromptEnds:
    """Which tokens of the prompts stay.

    Example: prompts of 5 tokens, the second padded by 2 on the left: places [[0, 4], [2, 4]], nothing hidden. Padded by 4 it
    has one token, which both its slots would hold: places [4, 4], the first of them hidden.

    Attributes:
        places: int64 [1 or B, slots], numbers of tokens of the prompt, padding counted.
        hidden: bool [1 or B, slots], slots that no query sees, for they hold padding or what the other one holds.
    """

    places: torch.Tensor
    hidden: torch.Tensor

    @classmethod
    def of(cls, prefix: int, real: torch.Tensor | None, device: torch.device) -> PromptEnds:
        """The ends of prompts of `prefix` tokens, at least 1.

        Args:
            prefix: padding included.
            real: bool [1 or B, 1, 1, P], false at the padding; None: there is none.
            device: of the result.
        """
        seen = torch.ones(1, prefix, dtype=torch.bool, device=device) if real is None else real[:, 0, 0].to(device)
        first = seen.long().argmax(1)  # of equals the first
        last = torch.full_like(first, prefix - 1)
        places = torch.stack([first, last], 1)
        hidden = ~seen.gather(1, places)
        hidden[:, 0] |= first == last
        slots = min(prefix, PROMPT_ENDS)
        return cls(places[:, -slots:], hidden[:, -slots:])

    def of_prompt(self, tokens: torch.Tensor) -> torch.Tensor:
        """The ends of keys or values [B, h, P, D] -> [B, h, slots, D]."""
        batch, heads, _, size = tokens.shape
        places = self.places[:, None, :, None].expand(batch, heads, -1, size)
        return tokens.gather(2, places)

    def bias(self, like: torch.Tensor, slots: int) -> torch.Tensor | None:
        """What is added to the logits of a bucket's first `slots` slots, [1 or B, 1, 1, slots] like these numbers; or None."""
        if not bool(self.hidden.any()):
            return None
        added = like.new_zeros(len(self.hidden), 1, 1, slots)
        added[:, 0, 0, : self.hidden.shape[1]].masked_fill_(self.hidden, -torch.inf)
        return added

    def rows(self, indices: torch.Tensor) -> PromptEnds:
        """Those of some rows of the batch."""
        if len(self.places) == 1:
            return self
        return PromptEnds(*(part.index_select(0, indices.to(part.device)) for part in (self.places, self.hidden)))

    def shown(self, tokens: torch.Tensor, seen: torch.Tensor, prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What a bucket's slots hold and queries see, corrected where slots of the prompt hold its ends.

        Args:
            tokens: int64 [1 or B, 1 or h, S], image tokens; those of a prompt count from -prefix to -1.
            seen: bool [B, 1 or h, T, S].
            prefix: tokens of the prompt.
        """
        slots = self.places.shape[1]
        tokens = tokens.expand(len(seen), -1, -1).clone()
        tokens[..., :slots] = self.places[:, None] - prefix
        seen = seen.clone()
        seen[..., :slots] &= ~self.hidden[:, None, None]
        return tokens, seen
