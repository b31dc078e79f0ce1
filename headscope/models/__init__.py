"""Model families, and the one place where attention is reached."""

from headscope.models.attention import (
    answer,
    goes_through_cache,
    is_observed,
    leave_handle,
    may_chunk_prompts,
    observe,
    through_cache,
)
from headscope.models.card import is_raster_folder, raster_prompts
from headscope.models.expected import expect_decoder, expect_model, expect_module, kind_of
from headscope.models.groups import Group, plain_groups, split_mask
from headscope.models.intercept import attach
from headscope.models.listing import ListedModel, list_models, told_without_path
from headscope.models.llamagen_files import is_llamagen_folder
from headscope.models.llamagen_loading import llamagen_prompts
from headscope.models.loading import Placed
from headscope.models.model_name import split_name, with_settings
from headscope.models.own_file import check_members
from headscope.models.protocol import ImageModel, Prefix
from headscope.models.published import published_shape
from headscope.models.raster import RasterModel
from headscope.models.registry import (
    bundled_folder,
    is_own,
    known_models,
    lasting_name,
    load_model,
    register_model,
    resolve_device,
    resolve_dtype,
    source_of,
    writes_text,
)
from headscope.models.row_ends import evenly, logits_of, random_codes
from headscope.models.stored import stored_numbers
from headscope.models.tokens import warn_of_unknown_words
from headscope.samples import Samples

__all__ = [
    "Group",
    "ImageModel",
    "ListedModel",
    "Placed",
    "Prefix",
    "RasterModel",
    "Samples",
    "answer",
    "attach",
    "bundled_folder",
    "check_members",
    "evenly",
    "expect_decoder",
    "expect_model",
    "expect_module",
    "goes_through_cache",
    "is_llamagen_folder",
    "is_observed",
    "is_own",
    "is_raster_folder",
    "kind_of",
    "known_models",
    "lasting_name",
    "leave_handle",
    "list_models",
    "llamagen_prompts",
    "load_model",
    "logits_of",
    "may_chunk_prompts",
    "observe",
    "plain_groups",
    "published_shape",
    "random_codes",
    "raster_prompts",
    "register_model",
    "resolve_device",
    "resolve_dtype",
    "source_of",
    "split_mask",
    "split_name",
    "stored_numbers",
    "through_cache",
    "told_without_path",
    "warn_of_unknown_words",
    "with_settings",
    "writes_text",
]
