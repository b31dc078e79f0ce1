"""Workers: more processes that work on the same study, on this machine or, by Ray, on a cluster.

Whoever leads measures the table, the presets and the incumbents, then calls the others in; all propose until the study has
its trials. What one measures, the others learn from the storage. A worker that dies costs its trial, which is queued again
by the first that notices.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.errors import HeadscopeError
from headscope.models import load_model, source_of
from headscope.pipeline.opened import Run
from headscope.pipeline.steps.paths import SearchPaths
from headscope.pipeline.steps.search import search_of
from headscope.run_folder import RunFolder
from headscope.tuning import RunConfig

# How often Ray starts a worker again that died.
RESTARTS = 3


@dataclass(frozen=True)
class Workers:
    """Who shares work.

    Attributes:
        count: processes.
        engine: "processes" of this machine, or "ray" on a cluster.
        address: of the Ray cluster, None for one on this machine.
        storage: where a study is kept, see `open_storage`; by default a SQLite file in the run folder, a journal for more
            processes than one.
    """

    count: int = 1
    engine: str = "processes"
    address: str | None = None
    storage: str | None = None


def work(source: str, device: str, folder: str, config: RunConfig, paths: SearchPaths, storage: str) -> str:
    """One worker: load the model and propose until the study has its trials.

    Args:
        source: where the model comes from.
        device: to load it on.
        folder: the run folder.
        config: of the run, with the dtype that the model is loaded in.
        paths: where the search keeps its files.
        storage: of the study, see `open_storage`.

    Returns:
        Which process it was, in words.
    """
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    model = load_model(source, device=device, dtype=config.dtype)
    search_of(Run(model, RunFolder(Path(folder)), config), paths, storage).join()
    return f"process {os.getpid()}"


@contextmanager
def join_search(run: Run, paths: SearchPaths, workers: Workers) -> Iterator[None]:
    """Call `workers.count - 1` others in; they are waited for at the end of the block, unless it ends with an error.

    Args:
        run: whose search.
        paths: where the search keeps its files.
        workers: who they are, and the study's storage, which has to be named.

    Raises:
        HeadscopeError: Ray is not installed, or its cluster does not answer.
    """
    storage = str(workers.storage)
    arguments = (
        source_of(run.folder),
        str(run.model.device),
        str(run.folder.path),
        run.config.replace(dtype=str(run.model.dtype).removeprefix("torch.")),
        paths,
        storage if "://" in storage else str(Path(storage).absolute()),
    )
    with _on_ray(arguments, workers) if workers.engine == "ray" else _processes(arguments, workers.count - 1):
        yield


@contextmanager
def _processes(arguments: tuple[Any, ...], count: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_quietly, args=arguments, daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        yield
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
    if failed := [worker.exitcode for worker in workers if worker.exitcode not in (0, None)]:
        print(f"{len(failed)} of {count} workers ended early; their trials were made by the others.", file=sys.stderr)


def _quietly(*arguments: Any) -> None:
    """A worker whose errors are one line: the leader's own say what a user needs."""
    try:
        work(*arguments)
    except (HeadscopeError, KeyboardInterrupt, OSError) as error:
        print(f"worker {os.getpid()}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def _on_ray(arguments: tuple[Any, ...], workers: Workers) -> Iterator[None]:
    with _cluster(workers) as ray:
        remote = ray.remote(num_cpus=1, max_retries=RESTARTS)(work)
        running = [remote.remote(*arguments) for _ in range(workers.count - 1)]
        yield
        for task in running:
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                print(f"a Ray worker ended early ({type(error).__name__}); its trial was made by the others.", file=sys.stderr)


def map_tasks(
    job: Callable[..., str], each: Sequence[tuple[Any, ...]], workers: Workers, done: Callable[[int, int], None]
) -> list[str]:
    """`job(*arguments)` for every tuple of `each`, on processes or a Ray cluster; what dies is begun again.

    Args:
        job: a function at the top of a module.
        each: its arguments, a tuple a task.
        workers: who shares the work.
        done: told how many are finished, and how many there are.

    Raises:
        HeadscopeError: what a job raised, workers that die again and again, or Ray is missing or does not answer.
    """
    if workers.engine == "ray":
        with _cluster(workers) as ray:
            remote = ray.remote(num_cpus=1, max_retries=RESTARTS)(job)
            waiting = every = [remote.remote(*arguments) for arguments in each]
            while waiting:
                _, waiting = ray.wait(waiting)
                done(len(every) - len(waiting), len(every))
            try:
                return list(ray.get(every))
            except ray.exceptions.RayTaskError as error:
                raise HeadscopeError(str(error.cause)) from None
    return _in_processes(job, each, workers.count, done)


def _in_processes(
    job: Callable[..., str], each: Sequence[tuple[Any, ...]], workers: int, done: Callable[[int, int], None]
) -> list[str]:
    found: dict[int, str] = {}
    for _ in range(RESTARTS + 1):
        before = set(multiprocessing.active_children())
        # Stopping is the leader's. A function of ours would have each process load all of the pipeline before its job is known.
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        )
        try:
            futures = {pool.submit(job, *arguments): n for n, arguments in enumerate(each) if n not in found}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                done(len(found), len(each))
            pool.shutdown()
            return [found[n] for n in range(len(each))]
        except BrokenProcessPool:
            print("a worker ended early; what it was at is begun again.", file=sys.stderr)
        except BaseException:  # a stop is a stop: nothing that waits is begun
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
            raise
    raise HeadscopeError(f"Workers ended early {RESTARTS + 1} times, for want of memory perhaps; try fewer `workers`.")


@contextmanager
def _cluster(workers: Workers) -> Iterator[Any]:
    """Ray, connected to `workers.address` or to a cluster of its own on this machine."""
    try:
        import ray
    except ImportError:
        raise HeadscopeError("engine ray: needs the package ray; pip install 'headscope[ray]'.") from None
    begun = not ray.is_initialized()
    if begun:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # workers and leader share the work, so they share the machine evenly
        try:
            ray.init(
                address=workers.address,
                num_cpus=None if workers.address else workers.count,
                include_dashboard=None if workers.address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise HeadscopeError(f"address {workers.address}: no Ray cluster answers ({str(error).splitlines()[0]}).") from None
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()
