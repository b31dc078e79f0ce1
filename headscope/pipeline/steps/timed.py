"""What a step took, noted in the run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from headscope.pipeline.memory import peak_bytes
from headscope.run_folder import RunFolder


@contextmanager
def timed(folder: RunFolder, step: str) -> Iterator[None]:
    """Note a step's seconds, and the process' peak memory so far, once it has ended well."""
    started = time.monotonic()
    yield
    facts = {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": peak_bytes()}
    folder.note(steps={step: facts})
