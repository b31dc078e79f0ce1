"""Study definitions: a `RunConfig` as a TOML file.

    model = "stickers"
    policy = "stickers-20.safetensors"     # what to write, into RUN/policies/

    [limit]
    keep = "20%"                           # or: memory = "12MiB", batch = 16

    [search]
    trials = 60

What is not said has its default. The prompts' file and a model that is a folder count from the folder of the TOML file.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from headscope.errors import DataError
from headscope.models import known_models
from headscope.storage import read_text
from headscope.tuning.config import RunConfig, config_from


def read_config(path: str | Path) -> RunConfig:
    """Read and check a study definition.

    Returns:
        It, with the prompts' file and a model's folder as absolute paths, whatever the working folder is.

    Raises:
        DataError: no such file, not TOML, or a key that is unknown, missing or wrong; the sentence names it.
    """
    try:
        content = tomllib.loads(read_text(path, "study definition"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a TOML file ({error}).") from None
    config = config_from(content, str(path))
    folder = Path(path).absolute().parent
    prompts = config.prompts
    if prompts.file is not None:
        prompts = prompts.replace(file=str(folder / prompts.file))
    return config.replace(model=_model(config.model, folder, path), prompts=prompts)


def _model(name: str, folder: Path, path: str | Path) -> str:
    """A path in a definition counts from the file that it stands in; a name stays one."""
    if "/" not in name and name in (known for known, _ in known_models()[:-1]):
        return name
    if (folder / name).is_dir():
        return str(folder / name)
    if not Path(name).is_absolute() and Path(name).is_dir():
        raise DataError(f"{path}: model: {name} is no folder beside this file, and a path in it counts from {folder}.")
    return name
