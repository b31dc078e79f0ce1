"""Policies: what each head keeps, in how many bytes, in which file, and the known methods as presets."""

from headscope.policy.bucket import Bucket
from headscope.policy.footprint import (
    CACHE_DTYPES,
    CODE_GROUP,
    CacheSpec,
    Limit,
    code_bytes,
    code_groups,
    dtype_name,
    parse_share,
    parse_size,
)
from headscope.policy.policy import Policy, load_policy, save_policy
from headscope.policy.preset import Preset
from headscope.policy.presets import CONTROLS, PRESETS, make_preset, register_preset, tighter
from headscope.policy.project import fit, project
from headscope.policy.shape import ModelShape
from headscope.policy.tensors import BITS, HEAD_TENSORS

__all__ = [
    "BITS",
    "CACHE_DTYPES",
    "CODE_GROUP",
    "CONTROLS",
    "HEAD_TENSORS",
    "PRESETS",
    "Bucket",
    "CacheSpec",
    "Limit",
    "ModelShape",
    "Policy",
    "Preset",
    "code_bytes",
    "code_groups",
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
