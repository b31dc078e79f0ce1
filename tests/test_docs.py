"""What the documentation shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from headscope.models.cache_name import cache_name

DOCS = Path(__file__).parents[1] / "docs"


def test_the_runtime_page_draws_a_picture_in_the_users_own_code() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "runtime.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("cache=Comp", f"{cache_name()}=Comp"), names)  # transformers before 5.24 have another name
    assert names["tokens"].shape == (1, 256)
    assert names["pictures"].shape == (1, 64, 64, 3)
    assert names["pictures"].dtype == torch.uint8
