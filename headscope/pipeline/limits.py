"""The byte limit of a run, and what it counts."""

from __future__ import annotations

from typing import Any

from headscope.models.protocol import ImageModel
from headscope.pipeline.settings import Settings
from headscope.policy.footprint import CacheSpec, Limit


def limit_of(model: ImageModel, settings: Settings, prefix: int) -> Limit:
    """The byte limit in force.

    Raises:
        BudgetError: below the smallest possible, or above the full cache.
    """
    spec = counted_for(model, settings, prefix)
    return Limit.of_share(settings.keep or "20%", spec) if settings.memory is None else Limit.of_memory(settings.memory, spec)


def counted_for(model: ImageModel, settings: Settings, prefix: int) -> CacheSpec:
    """What the byte limit counts; the dtype and the streams that the model runs with here, unless the settings say others."""
    guided = settings.limit_guidance
    return CacheSpec(
        model.shape,
        prefix,
        batch=settings.batch,
        streams=streams_of(model, settings) if guided is None else 1 + guided,
        dtype=settings.limit_dtype or str(model.dtype),
        count_prefix=settings.of == "all",
    )


def streams_of(model: ImageModel, settings: Settings) -> int:
    """Rows of the batch that one image takes: two under guidance."""
    return 1 if (model.guidance if settings.guidance is None else settings.guidance) == 1.0 else 2


def limit_facts(limit: Limit, settings: Settings) -> dict[str, Any]:
    return {
        "text": settings.memory or settings.keep,
        "bytes": limit.bytes,
        "batch": limit.spec.batch,
        "streams": limit.spec.streams,
        "dtype": limit.spec.dtype,
        "of": settings.of,
        "plain_bytes": limit.spec.full_bytes,
    }
