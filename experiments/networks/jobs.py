"""Runs in parallel processes."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch

from experiments.filing import Record
from experiments.networks.protocol import Run, run


def attempt(asked: Run, weights: Path | None) -> Record | str:
    """The result of a run, or its error message, so that a failing run does not end all others."""
    try:
        return run(asked, weights)
    except Exception as error:
        return f"{asked.command} failed: {type(error).__name__}: {error}"


def carry_out(todo: Sequence[Run], weights: Path | None, jobs: int = 1, threads: int = 1) -> Iterator[Record | str]:
    """Yield each result or error message on completion, from ``jobs`` processes of ``threads`` threads each.

    Raises:
        ValueError: ``jobs`` is below 1.
    """
    if jobs < 1:
        raise ValueError(f"Expected jobs to be at least 1, got {jobs}.")
    one = partial(attempt, weights=weights)
    if jobs == 1 or not todo:
        yield from map(one, todo)
        return
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(todo)), fresh, torch.set_num_threads, (threads,)) as pool:
        for done in as_completed([pool.submit(one, asked) for asked in todo]):
            yield done.result()
