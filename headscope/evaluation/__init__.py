"""Evaluation: what became of images generated with a smaller cache, and which policies of a run to evaluate."""

from headscope.evaluation.evaluate import Evaluation, EvaluationConfig, Task, evaluate
from headscope.evaluation.features import need_packages
from headscope.evaluation.imported import read_results
from headscope.evaluation.layouts import LAYOUTS
from headscope.evaluation.runs import losses_of, policies_of

__all__ = [
    "LAYOUTS",
    "Evaluation",
    "EvaluationConfig",
    "Task",
    "evaluate",
    "losses_of",
    "need_packages",
    "policies_of",
    "read_results",
]
