"""Transfer of a policy to another model: what is known of that model, from its name, a run, or a map of its heads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from headscope.errors import DataError, HeadscopeError
from headscope.heads import Heads, read_scores
from headscope.models import ImageModel, lasting_name, load_model, published_shape, source_of
from headscope.pipeline.prompts import default_prompts
from headscope.pipeline.rules import run_rule, seen_by
from headscope.policy import CacheSpec, ModelShape, Policy
from headscope.run_folder import RunFolder
from headscope.storage import read_json
from headscope.tracing import TraceDataset
from headscope.tuning import LimitConfig, Seen, Source, Target, carry_over

# Tokens of the longest prompt where nothing says another number: a caption in a chat template.
PREFIX = 64


def transfer(
    policies: Policy | str | Path | Sequence[Policy | str | Path],
    to: str | ImageModel,
    *,
    limit: LimitConfig | None = None,
    trace: str | Path | None = None,
    head_map: str | Path | None = None,
    source: str | Path | None = None,
    prefix: int | None = None,
) -> Policy:
    """A policy for another model, of the best kind that is possible: by trace, by map, or by depth.

    By trace needs a run of that model with a trace: what its heads would lose is predicted from what they look at, by what the
    policy's own model lost. By map needs a score of each head, such as a published map. By depth needs nothing. Heads are never
    matched by their numbers. The policy is not measured on its model, and its provenance says so.

    Args:
        policies: a policy, the file or the name of one, or several, whose rules are learnt together.
        to: the model, by a name that `load_model` takes or loaded. A published Janus-Pro needs no download.
        limit: the byte limit there; by default the share of the first policy's own limit, else 20 %.
        trace: a run folder of that model, made by `headscope trace`.
        head_map: CSV of scores, a line a layer and a number a KV head, or head classes of another tool in safetensors.
        source: a run folder of the first policy's model, for a policy that carries no rule.
        prefix: tokens of the longest prompt; by default the run's, else those of the model's own prompts, else 64.

    Raises:
        BudgetError: nothing fits the limit.
        DataError: the trace is of another model or other weights, the map does not fit, or the policy is of another kind of
            model (text, images).
        ModelError: there is no such model.
        PolicyMismatch: a policy that can't be read.
    """
    several = [policies] if isinstance(policies, Policy | str | Path) else list(policies)
    sources = [_source(each) for each in several]
    if source is not None:
        sources[0] = _with_run(sources[0], RunFolder(Path(source)))
    known = _known(to, None if trace is None else RunFolder(Path(trace)))
    target = Target(known.shape, known.seen, None if head_map is None else _scores(head_map, known.shape))
    first = sources[0].policy
    share = None if first.limit is None else first.limit.share
    asked = limit or LimitConfig(keep=None if share is None else f"{share:.10g}")
    longest = prefix if prefix is not None else known.prefix
    return carry_over(sources, target, asked.limit(asked.spec(known.shape, longest, dtype="bfloat16", streams=known.streams)))


@dataclass(frozen=True)
class _Known:
    """What a name and a run say of a model.

    Attributes:
        shape: of it.
        prefix: tokens of its longest prompt.
        streams: rows of the batch that an image takes.
        seen: what its trace says, or None.
    """

    shape: ModelShape
    prefix: int
    streams: int
    seen: Seen | None = None


def _source(policy: Policy | str | Path) -> Source:
    if isinstance(policy, Policy):
        return Source(policy, name=policy.shape.name)
    return Source(Policy.load(policy), name=Path(policy).stem)


def _with_run(source: Source, run: RunFolder) -> Source:
    """The same policy with what a run of its model knows: a rule where the run has a sensitivity table, else its trace."""
    made, shape = source.policy.shape, _shape_of(run)
    if made.weights not in ("", shape.weights) or made.architecture != shape.architecture:
        raise DataError(
            f"{run.path}: is a run of {shape.name} (weights {shape.weights[:12]}), the policy is of {made.name} (weights "
            f"{made.weights[:12] or 'any'}): name a run of the policy's own model as `source`."
        )
    seen = seen_by(run, shape)
    return Source(source.policy, run_rule(run, shape, seen), seen, source.name)


def _shape_of(run: RunFolder) -> ModelShape:
    """The model that a run is of, without loading it."""
    run.read()
    return ModelShape.from_dict(read_json(run.json)["model"], str(run.json))


def _known(to: str | ImageModel, run: RunFolder | None) -> _Known:
    """By its run, where there is one; the model itself is loaded only where nothing else tells its shape."""
    if run is None:
        return _of_name(to)
    shape, facts = _shape_of(run), run.read()
    _check_run(run, shape, to)
    streams = 1 if float(TraceDataset(run.trace).samples().guidance) == 1.0 else 2
    return _Known(shape, int(facts.get("prefix", PREFIX)), streams, seen_by(run, shape))


def _check_run(run: RunFolder, shape: ModelShape, to: str | ImageModel) -> None:
    """Refuse a run of another model than `to`."""
    if isinstance(to, str):
        with suppress(HeadscopeError):
            if lasting_name(to) == source_of(run):
                return
    wanted = _of_name(to).shape
    if shape.architecture != wanted.architecture or wanted.weights not in ("", shape.weights):
        raise DataError(
            f"{run.path}: is a run of {shape.name} (weights {shape.weights[:12] or 'any'}), not of {wanted.name} (weights "
            f"{wanted.weights[:12] or 'any'}): trace that model, or name the other one."
        )


def _of_name(to: str | ImageModel) -> _Known:
    published = published_shape(to) if isinstance(to, str) else None
    if published is not None:
        return _Known(published, PREFIX, 2)
    model = load_model(to) if isinstance(to, str) else to
    prompts = default_prompts(to) if isinstance(to, str) else []
    spec = CacheSpec.of(model, int(model.tokenize(prompts).ids.shape[1]) if prompts else PREFIX)
    return _Known(model.shape, spec.prefix, spec.streams)


def _scores(path: str | Path, shape: ModelShape) -> torch.Tensor:
    """float32 [layers, kv_heads]: of a CSV file, of a published map by its name, or of head classes."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return Heads.load(path).scores()
    published = Path(str(files("headscope") / "bundled" / "head-maps" / f"{path}.csv"))
    if not path.suffix and len(path.parts) == 1 and published.is_file():
        path = published
    return read_scores(path, f"{shape.layers}x{shape.kv_heads}").scores()
