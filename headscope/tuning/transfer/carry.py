"""Carrying a policy over: the best kind that policy and target allow, under the target's limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headscope.errors import DataError
from headscope.policy import Limit, ModelShape, Policy, Rule
from headscope.tuning.config import BUCKETS
from headscope.tuning.propose.knapsack import solve
from headscope.tuning.propose.strides import fitting_strides
from headscope.tuning.transfer.learn import predicted
from headscope.tuning.transfer.neighbours import nearest_settings
from headscope.tuning.transfer.target import Seen, Target


@dataclass(frozen=True)
class Source:
    """A policy to be transferred.

    Attributes:
        policy: the policy.
        rule: that is learnt from, by default the policy's own; None where none is known.
        seen: what a trace of its model says, where there is no rule.
        name: that provenance gives it.
    """

    policy: Policy
    rule: Rule | None = None
    seen: Seen | None = None
    name: str = ""

    @property
    def learns_from(self) -> Rule | None:
        """The rule in force."""
        return self.policy.rule if self.rule is None else self.rule

    def told(self) -> str:
        """What provenance calls it."""
        return self.name or self.policy.shape.name


def carry_over(sources: Sequence[Source], target: Target, limit: Limit, buckets: int = BUCKETS, seed: int = 0) -> Policy:
    """A policy for another model, never measured there; its provenance says by which kind, and from what.

    With rules, the target's whole sensitivity table is predicted and solved under the limit. Without one, heads take the
    numbers of the nearest heads of the first source, and these are projected onto the limit.

    Args:
        sources: policies; the rules of all that have one are learnt together.
        target: what is known of the other model.
        limit: of the target.
        buckets: most kinds of heads in a layer.
        seed: of what learns.

    Raises:
        BudgetError: nothing fits.
        DataError: the policy's model writes what the target does not (text, images), or its rule lacks a feature.
    """
    for source in sources:
        _check_alike(source.policy.shape, target.shape)
    first, shape = sources[0].policy, target.shape
    rules = [(each.learns_from, each.policy.shape) for each in sources]
    known = [(rule, made) for rule, made in rules if rule is not None]
    target = target if known else _comparable(sources[0], target)
    wanted = first.stride / first.shape.geometry.stride_row * shape.geometry.stride_row
    stride = min(fitting_strides(limit), key=lambda each: (abs(each - wanted), each))
    if known:
        made = solve(predicted(known, target, seed), limit, stride, buckets)
        made = made.replace(semantic_score=target.semantic_score())
    else:
        made = nearest_settings(first, sources[0].seen, target, limit, stride, buckets)
    learnt = "the losses of its heads" if known else "the numbers of its heads alone"
    facts: dict[str, Any] = {
        "from": ", ".join(source.told() for source in sources),
        "weights": [source.policy.shape.weights for source in sources],
        "kind": target.kind,
        "by": learnt,
        "rule": bool(known),
        "measured": False,
    }
    origin = {name: value for name, value in made.provenance.items() if name == "predicted_loss"}
    told = f"{target.kind} from {facts['from']}, by {learnt}"
    return made.replace(limit=limit, provenance={"method": "transferred", "origin": told, "transferred": facts, **origin})


def _comparable(source: Source, target: Target) -> Target:
    """What of the target can be compared with a policy without a rule: traces of both, scores of both, or depth."""
    if target.seen is not None and source.seen is not None:
        return target
    known, scores = float(source.policy.semantic_score.std(correction=0)) > 0, target.scores
    if known and target.seen is not None:
        scores = target.semantic_score()
    return Target(target.shape, None, scores if known else None)


def _check_alike(made: ModelShape, target: ModelShape) -> None:
    """Refuse a policy of a model of text for one of images, and the other way."""
    if (made.geometry.rows > 1) != (target.geometry.rows > 1):
        words = {True: "images", False: "text, a single row of tokens"}
        raise DataError(
            f"The policy is of {made.name}, which writes {words[made.geometry.rows > 1]}; {target.name} writes "
            f"{words[target.geometry.rows > 1]}: transfer a policy of a model of that kind, or search one."
        )
