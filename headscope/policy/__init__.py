"""Policies: what each head keeps, in how many bytes, in which file, and the known methods as presets."""

from headscope.policy.files import load_policy, save_policy
from headscope.policy.footprint import Limit, kept_ratio, plain_bytes, policy_bytes, project
from headscope.policy.policy import Bucket, ModelShape, Policy
from headscope.policy.presets import CONTROLS, PRESETS, make_preset

__all__ = [
    "CONTROLS",
    "PRESETS",
    "Bucket",
    "Limit",
    "ModelShape",
    "Policy",
    "kept_ratio",
    "load_policy",
    "make_preset",
    "plain_bytes",
    "policy_bytes",
    "project",
    "save_policy",
]
