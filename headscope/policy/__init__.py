"""Policies: what each head keeps, in how many bytes, in which file, and the known methods as presets."""

from headscope.policy.bucket import Bucket
from headscope.policy.diff import LayerChange, PolicyDiff, diff
from headscope.policy.edits import read_edits
from headscope.policy.exchange import FORMATS, Exported, export_policy, import_policy
from headscope.policy.footprint import (
    CACHE_DTYPES,
    CODE_GROUP,
    CacheSpec,
    Limit,
    code_bytes,
    code_groups,
    dtype_name,
    image_slots,
    parse_share,
    parse_size,
)
from headscope.policy.lead import Schedule, StandIn, Step, schedule
from headscope.policy.leading import with_lead
from headscope.policy.merge import Edit, check_fits_limit, merge
from headscope.policy.policy import Policy, load_policy, save_policy
from headscope.policy.preset import Preset
from headscope.policy.presets import CONTROLS, PRESETS, make_preset, register_preset, tighter
from headscope.policy.project import fit, project
from headscope.policy.rule import Rule
from headscope.policy.score_table import ScoreTable
from headscope.policy.scores import BUILT_IN, EXPECTED, FLOOR, RECEIVED, SCORES, VALUE, Candidates, ScoreKind, register_score
from headscope.policy.shape import PROMPT_ENDS, ModelShape
from headscope.policy.shipped import policy_file
from headscope.policy.tensors import BITS, FEATURES, HEAD_TENSORS
from headscope.policy.validate import ValidPolicy, unmeasured, validate

__all__ = [
    "BITS",
    "BUILT_IN",
    "CACHE_DTYPES",
    "CODE_GROUP",
    "CONTROLS",
    "EXPECTED",
    "FEATURES",
    "FLOOR",
    "FORMATS",
    "HEAD_TENSORS",
    "PRESETS",
    "PROMPT_ENDS",
    "RECEIVED",
    "SCORES",
    "VALUE",
    "Bucket",
    "CacheSpec",
    "Candidates",
    "Edit",
    "Exported",
    "LayerChange",
    "Limit",
    "ModelShape",
    "Policy",
    "PolicyDiff",
    "Preset",
    "Rule",
    "Schedule",
    "ScoreKind",
    "ScoreTable",
    "StandIn",
    "Step",
    "ValidPolicy",
    "check_fits_limit",
    "code_bytes",
    "code_groups",
    "diff",
    "dtype_name",
    "export_policy",
    "fit",
    "image_slots",
    "import_policy",
    "load_policy",
    "make_preset",
    "merge",
    "parse_share",
    "parse_size",
    "policy_file",
    "project",
    "read_edits",
    "register_preset",
    "register_score",
    "save_policy",
    "schedule",
    "tighter",
    "unmeasured",
    "validate",
    "with_lead",
]
