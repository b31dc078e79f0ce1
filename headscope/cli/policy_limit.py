"""The limit that `--keep` or `--memory` asks of a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from headscope.policy import Limit, Policy


def limit_for(policy: Policy, keep: str | None, memory: str | None, batch: int | None) -> Limit | None:
    """Counted as the policy's own limit is, or for one guided image in bfloat16; None where neither is asked for.

    Args:
        policy: what it is for.
        keep: a share.
        memory: a size.
        batch: images that the size is for, None for as many as the policy's own limit is for.

    Raises:
        typer.BadParameter: both, or a batch without a size.
        BudgetError: not a share or a size, or below the smallest possible.
    """
    from headscope.policy import Limit, parse_size

    if keep is not None and memory is not None:
        raise typer.BadParameter("give --keep or --memory, not both.")
    if batch is not None and memory is None:
        raise typer.BadParameter("--batch is how many images --memory is for: give both.")
    if keep is not None:
        return Limit.of_share(keep, policy.spec())
    if memory is None:
        return None
    spec = policy.spec() if batch is None else policy.spec().replace(batch=batch)
    return Limit(parse_size(memory), spec) if parse_size(memory) > spec.full_bytes else Limit.of_memory(memory, spec)
