"""The `headscope` command: one small file a verb; every one parses, calls the Python API, and prints."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from headscope.cli.console import errors, say, say_error, settle_streams
from headscope.errors import HeadscopeError, UnknownWords

# Set before torch is loaded; whoever sets one of these keeps it. The libraries' own bars and notes: ours say what a user needs.
# And threads that sleep while they wait: spinning ones made two images take 149 s in place of 4 with other work on two cores.
ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
# A notebook's shell hands on the name of a backend that this environment need not have; a command opens no window.
BACKEND = {"MPLBACKEND": "Agg"}
# glibc gives blocks above 128 KiB back to the system when they are freed, and gets them page by page anew: of two minutes of
# generating 16 images with a growing cache, 44 s went there, with these 1 s, for a sixth more memory at the peak. Processes
# that this one starts read them from their environment; for itself it is too late: `mallopt` (names in malloc.h).
KEPT_BYTES = str(1 << 30)
MALLOC = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
INTERRUPTED = 130  # 128 and SIGINT, as shells count

WITH_RESUME = ("run", "demo", "trace")
GOES_ON = ("search", "sensitivity", "generate", "evaluate")

HELP = "Learn what the attention heads of an image-generating transformer need to remember, and keep only that."
# Where each verb stands, as module:function, in the order of --help. A group of verbs is the `app` of its module.
VERBS = {
    "demo": "demo:demo",
    "run": "run:run",
    "trace": "trace:trace",
    "merge": "trace:merge",
    "heads": "heads:heads",
    "sensitivity": "sensitivity:sensitivity",
    "search": "search:search",
    "budget": "budget:budget",
    "generate": "generate:generate",
    "figures": "figures:figures",
    "evaluate": "evaluate:evaluate",
    "report": "report:report",
    "policy": "policy:app",
    "bench": "bench:app",
    "models": "models:app",
}


def __getattr__(name: str) -> typer.Typer:
    """`app`, the whole command, made when it is asked for."""
    if name != "app":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return app_of(VERBS)


def app_of(verbs: Iterable[str]) -> typer.Typer:
    """The command with some of VERBS. Only their modules are loaded, and what these need: `bench` runs without optuna.

    Args:
        verbs: their names, in the order of --help.
    """
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help=HELP
    )
    app.callback()(_root)
    for verb in verbs:
        module, _, name = VERBS[verb].partition(":")
        found = getattr(import_module(f"headscope.cli.{module}"), name)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb)
        else:
            app.command(verb)(found)
    return app


def _show_version(asked: bool) -> None:
    if not asked:
        return
    try:
        say(f"headscope {version('headscope')}")
    except PackageNotFoundError:
        say("headscope, from a folder of sources")
    raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it, and stop.")
    ] = False,
) -> None:
    """Learn what the attention heads of an image-generating transformer need to remember, and keep only that."""


def main() -> None:
    """Entry point: what a user did wrong is one sentence and exit status 2; Ctrl-C leaves files that go on."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.update(BACKEND)
    settle_streams()
    _keep_freed_memory()
    verb = sys.argv[1:2]
    try:
        with _telling_unknown_words():
            status = app_of(verb if verb and verb[0] in VERBS else VERBS)(standalone_mode=False)
        if status == INTERRUPTED:  # typer has turned the KeyboardInterrupt into this
            raise KeyboardInterrupt
        if status:  # and `typer.Exit` into this
            raise SystemExit(status)
    except HeadscopeError as error:
        say_error(str(error))
        raise SystemExit(2) from None
    except typer.Exit as error:
        raise SystemExit(error.exit_code) from None
    except (typer.Abort, KeyboardInterrupt):
        errors.print(f"\nstopped; {_after_a_stop(sys.argv[1:])}", soft_wrap=True)
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as error:
        raise SystemExit(0 if _reader_has_gone() else error.code) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say_error(f"{where}{error.strerror or error}.")
        raise SystemExit(2) from None
    except Exception as error:
        if _is_usage(error):
            error.show()  # type: ignore[attr-defined]
            if re.fullmatch(r"-\d", option := str(getattr(error, "option_name", ""))):
                errors.print(f"A prompt that begins with - goes behind `--`: -- {option}...", markup=False, soft_wrap=True)
            raise SystemExit(2) from None
        raise


@contextmanager
def _telling_unknown_words() -> Iterator[None]:
    """Print the first warning of words that the model does not know, which names all of them; what follows repeats it."""
    plain, told = warnings.showwarning, False

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        nonlocal told
        if not issubclass(category, UnknownWords):
            plain(message, category, *place, **more)
        elif not told:
            told = True
            errors.print(str(message), markup=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UnknownWords)
        warnings.showwarning = show
        yield


def _reader_has_gone() -> bool:
    """Whether typer has met a broken pipe, `--help | head` for example: it ends with 1, and leaves streams that swallow it."""
    return type(sys.stdout).__name__ == "PacifyFlushWrapper"


def _keep_freed_memory() -> None:
    """Let large blocks be used again rather than given back: of glibc, and unless the user has said otherwise."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for name, parameter in MALLOC.items():
        if name not in os.environ:
            os.environ[name] = KEPT_BYTES
            if mallopt is not None:
                mallopt(parameter, int(KEPT_BYTES))


def _after_a_stop(words: list[str]) -> str:
    """How to go on after Ctrl-C, by command."""
    command = " ".join(word for word in words[:2] if not word.startswith("-"))
    verb = command.split(" ")[0]
    if verb in WITH_RESUME:
        instead = " in place of --overwrite" if "--overwrite" in words else ""
        return f"the same command with --resume{instead} goes on with what the folder holds."
    if verb in GOES_ON:
        return "the same command goes on with what is there."
    if verb == "merge":
        return "the folder of --out may hold a part of the trace: remove it, and the same command starts from the beginning."
    return "the same command starts from the beginning."


def _is_usage(error: Exception) -> bool:
    """Typer brings its own copy of click, or uses the installed one: told by what it can do."""
    return hasattr(error, "show") and hasattr(error, "exit_code")
