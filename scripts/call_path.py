"""Print the files that one training step and one governed turn pass through, in order of their first call.

For each file: the number of its functions that are called, and of its lines that are executed. It runs in the folder of
a commit, whose packages it imports; scripts/call_path runs it for one commit or more.
"""

import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import lightning as L
from fingerprint import QUESTIONS, Net, digits
from torch.utils.data import DataLoader

import safi_agent
import sal_lightning
from safi_agent.models import resolve


class Trace:
    """The functions and lines of a package that were executed, by file."""

    def __init__(self, package: ModuleType) -> None:
        self.package = f"{Path(str(package.__file__)).parent}{os.sep}"
        self.running = False
        self.functions: dict[str, set[CodeType]] = {}
        self.lines: dict[str, set[int]] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        """Trace this call if it is one of the package's functions."""
        file = frame.f_code.co_filename
        if not self.running or not file.startswith(self.package) or frame.f_code.co_name == "<module>":
            return None
        self.functions.setdefault(file, set()).add(frame.f_code)
        executed = self.lines.setdefault(file, set())

        def follow(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            if event == "line":
                executed.add(frame.f_lineno)
            return follow

        return follow

    def rows(self) -> Iterator[str]:
        """A line of a table for each file."""
        for file, functions in self.functions.items():
            name = Path(file).relative_to(Path(self.package).parent)
            yield f"| {name} | {len(functions)} | {len(self.lines[file])} |"

    def start(self) -> None:
        """Trace this thread; others are traced that began after ``threading.settrace``."""
        self.running = True
        sys.settrace(self)

    def stop(self) -> None:
        """Trace no more."""
        sys.settrace(None)
        self.running = False


class At(L.Callback):
    """Calls a function before or after the training batch with this number."""

    def __init__(self, call: Callable[[], None], before: int = -1, after: int = -1) -> None:
        self.call, self.before, self.after = call, before, after

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before."""
        if batch_idx == self.before:
            self.call()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After."""
        if batch_idx == self.after:
            self.call()


def training_step() -> Trace:
    """A step of an MLP with the default callback, when something is held."""
    trace, loader = Trace(sal_lightning), DataLoader(digits(), batch_size=32)
    L.seed_everything(0, verbose=False)
    last = len(loader) - 2  # without the work at the end of the epoch
    callbacks = [At(trace.start, before=last), sal_lightning.SALCallback(), At(trace.stop, after=last)]
    quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, logger=False, **quiet)
    trainer.fit(Net("mlp"), loader)
    return trace


def turn() -> Trace:
    """A question of a user, its answer, and its audit."""
    trace = Trace(safi_agent)
    threading.settrace(trace)
    with tempfile.TemporaryDirectory() as folder:
        store, log = f"sqlite:///{folder}/safi.db", Path(folder) / "log.json"
        with safi_agent.create_safi_chain(resolve("offline", "model"), "unesco", store=store, log=log) as chain:
            trace.start()
            chain.invoke(QUESTIONS[0])
            chain.drain()
            trace.stop()
    return trace


def main() -> None:
    """Print a table for the training step, and one for the turn."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for title, trace in (("One training step", training_step()), ("One governed turn, and its audit", turn())):
        lines = sum(map(len, trace.lines.values()))
        print(f"\n{title}: {len(trace.functions)} files, {lines} lines\n")
        print("| file | functions | lines |\n| --- | --- | --- |")
        print("\n".join(trace.rows()))


if __name__ == "__main__":
    main()
