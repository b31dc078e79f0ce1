"""A policy with another lead, or none with one: what `headscope generate --lead` makes."""

from __future__ import annotations

from headscope.errors import HeadscopeError, PolicyMismatch
from headscope.policy.policy import Policy
from headscope.policy.shape import ModelShape


def with_lead(policy: Policy | None, shape: ModelShape, prefix: int, lead: int) -> Policy | None:
    """The same policy, whose rows begin `lead` columns after the one above.

    Another lead leaves it no byte limit, as windows of several rows take more slots (`Policy.slots`), and no results, which
    were measured with the first one.

    Args:
        policy: what is kept; None keeps everything.
        shape: the model.
        prefix: prompt length in tokens that the byte accounting assumes where everything is kept.
        lead: columns, 1 to a row's length, which generates row after row.

    Returns:
        None where everything is kept row after row.

    Raises:
        PolicyMismatch: no such lead, or a text, which has a single row.
    """
    try:
        shape.geometry.check_lead(lead)
    except HeadscopeError as error:
        raise PolicyMismatch(str(error)) from None
    if policy is None:
        if lead == shape.geometry.row_length:
            return None
        origin = {"method": "full", "origin": "with a lead"}
        window = shape.geometry.tokens - 1
        return Policy.uniform(shape, window=window, stride=1, prefix=prefix, lead=lead, provenance=origin)
    return policy if lead == policy.lead else policy.replace(lead=lead, limit=None, results={})
