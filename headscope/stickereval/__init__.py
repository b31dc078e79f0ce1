"""StickerEval: scenes of stickers, graded by a bundled detector."""

from headscope.stickereval.detector import WEIGHTS, Detection, StickerDetector, known_names
from headscope.stickereval.grader import StickerEval, category_scores, judge, paired_difference, relations
from headscope.stickereval.prompts import PROMPTS, TAGS, GradingPrompt, Wanted, grading_if_ours, read_grading_prompts

__all__ = [
    "PROMPTS",
    "TAGS",
    "WEIGHTS",
    "Detection",
    "GradingPrompt",
    "StickerDetector",
    "StickerEval",
    "Wanted",
    "category_scores",
    "grading_if_ours",
    "judge",
    "known_names",
    "paired_difference",
    "read_grading_prompts",
    "relations",
]
