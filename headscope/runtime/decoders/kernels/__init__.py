"""Triton kernels of a decoding step on a GPU.

Nothing depends on numbers that only the device knows, so a captured graph may launch them; the number of the token is read
from the device. Without a GPU they run in Triton's interpreter: TRITON_INTERPRET=1 before this package is imported.
"""

import os

# A product and a sum become one instruction, as in every Triton so far; 3.9 warns that this will change unless it is said.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
