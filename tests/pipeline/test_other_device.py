"""What a search is made of, it does wherever the model is: nothing is left on the CPU, and nothing comes out otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.other_device import work


def test_another_device_gives_what_the_cpu_gives(tiny_folder: Path) -> None:
    process = subprocess.run([sys.executable, "-m", "tests.other_device", str(tiny_folder)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    there, here = json.loads(process.stdout.splitlines()[-1]), work(str(tiny_folder), "cpu")
    for name in here:  # attention is not fused there, and rounds otherwise
        np.testing.assert_allclose(there[name], here[name], rtol=1e-3, atol=1e-5, err_msg=name)
