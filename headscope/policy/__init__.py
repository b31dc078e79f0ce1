"""Policies: what each head keeps, in how many bytes, in which file, and the known methods as presets."""

from headscope.policy.footprint import CacheSpec, Limit, dtype_name, parse_share, parse_size
from headscope.policy.methods import Preset
from headscope.policy.policy import Bucket, Policy, load_policy, save_policy
from headscope.policy.presets import CONTROLS, PRESETS, make_preset, register_preset, tighter
from headscope.policy.project import fit, project
from headscope.policy.shape import ModelShape
from headscope.policy.tensors import HEAD_TENSORS

__all__ = [
    "CONTROLS",
    "HEAD_TENSORS",
    "PRESETS",
    "Bucket",
    "CacheSpec",
    "Limit",
    "ModelShape",
    "Policy",
    "Preset",
    "dtype_name",
    "fit",
    "load_policy",
    "make_preset",
    "parse_share",
    "parse_size",
    "project",
    "register_preset",
    "save_policy",
    "tighter",
]
