"""The whole job: all steps for one model, into one run folder."""

from headscope.pipeline.budgets import free_memory, what_fits
from headscope.pipeline.estimate import Estimate
from headscope.pipeline.fronts import search_front
from headscope.pipeline.generating import GenerateInProcesses
from headscope.pipeline.images import Request, generate_images, plan_images
from headscope.pipeline.measuring import measure_policy, measured_target
from headscope.pipeline.model_check import Finding, check_model
from headscope.pipeline.needs import Needs
from headscope.pipeline.opened import Run, begin_run, open_run
from headscope.pipeline.prompts import default_prompts, read_prompts
from headscope.pipeline.recorded import unseen_images
from headscope.pipeline.run import finish, run
from headscope.pipeline.searching import run_definition, search_many, search_one, search_smallest
from headscope.pipeline.shards import trace_in_shards
from headscope.pipeline.steps import heads_step, sensitivity_step, trace_step
from headscope.pipeline.steps.paths import SearchPaths
from headscope.pipeline.tables import groups_of
from headscope.pipeline.transferring import transfer
from headscope.pipeline.verify import verify_model
from headscope.pipeline.workers import Workers
from headscope.run_folder import RunFolder

__all__ = [
    "Estimate",
    "Finding",
    "GenerateInProcesses",
    "Needs",
    "Request",
    "Run",
    "RunFolder",
    "SearchPaths",
    "Workers",
    "begin_run",
    "check_model",
    "default_prompts",
    "finish",
    "free_memory",
    "generate_images",
    "groups_of",
    "heads_step",
    "measure_policy",
    "measured_target",
    "open_run",
    "plan_images",
    "read_prompts",
    "run",
    "run_definition",
    "search_front",
    "search_many",
    "search_one",
    "search_smallest",
    "sensitivity_step",
    "trace_in_shards",
    "trace_step",
    "transfer",
    "unseen_images",
    "verify_model",
    "what_fits",
]
