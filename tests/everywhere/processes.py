"""Two processes that stay: a job runs in both at once."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tests.forked import CONTEXT

COUNT = 2
PATIENCE = 200  # seconds until a job that hangs has failed
# Of Lightning 2.6 with this torch, and of small tests: as in pyproject.toml.
KNOWN = (r".*isinstance\(treespec, LeafSpec\)", ".*does not have many workers")


class Processes:
    """Runs a job ``f(rank, *args)`` in both processes and returns what both returned."""

    def __enter__(self) -> "Processes":
        self.pools = [ProcessPoolExecutor(1, mp_context=CONTEXT) for _ in range(COUNT)]
        return self

    def __exit__(self, *_: Any) -> None:
        for pool in self.pools:
            for process in list(pool._processes.values()):
                process.kill()  # one that waits for the other would wait for long
            pool.shutdown(wait=False, cancel_futures=True)

    def __call__(self, folder: Path, job: Callable[..., Any], *args: Any) -> list[Any]:
        place = folder / f"{job.__name__}-{len(list(folder.iterdir()))}"
        place.mkdir()
        runs = [pool.submit(_run, rank, place, job, *args) for rank, pool in enumerate(self.pools)]
        wait(runs, timeout=3 * PATIENCE)
        unfinished = [run for run in runs if not run.done()]
        assert not unfinished, f"Expected {job.__name__} to end in {3 * PATIENCE} s, got {len(unfinished)} that run on."
        # When one fails its connections close, and the other fails for that.
        for error in sorted(filter(None, (r.exception() for r in runs)), key=lambda e: "gloo" in str(e).lower()):
            raise error
        return [torch.load(place / f"{rank}.pt", weights_only=False) for rank in range(COUNT)]


def _run(rank: int, place: Path, job: Callable[..., Any], *args: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(COUNT)}  # as torchrun sets them
    meeting, patience = f"file://{place / 'meeting'}", timedelta(seconds=PATIENCE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in KNOWN:
            warnings.filterwarnings("ignore", message)
        distributed.init_process_group("gloo", meeting, patience, rank=rank, world_size=COUNT)
        try:
            torch.save(job(rank, *args), place / f"{rank}.pt")
        finally:
            distributed.destroy_process_group()
