"""A model of 3 layers, 4 KV heads of size 8, 6 x 6 tokens."""

from __future__ import annotations

from headscope.geometry import Geometry
from headscope.policy import ModelShape

SHAPE = ModelShape("toy", 3, 8, 4, 8, Geometry(6, 6), "archi", "weights")
