"""Provenance of results: commit, hardware and versions."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

OUTPUT = ("results", "docs")  # folders that experiments write
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "lightning", "torchmetrics", "numpy", "sal-lightning")


def commit(folder: Path = ROOT) -> str:
    """The current commit, with ``-dirty`` appended if tracked files that can affect results differ.

    Stored results and pages do not count: each run changes them for the next. ``unknown`` outside git.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{name}" for name in OUTPUT))
        return git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu() -> str:
    """The processor's name, if the system provides it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def hardware(accelerator: str = "cpu") -> dict[str, str | int]:
    """Processor, cores, threads in use, and the GPU if it is used."""
    machine: dict[str, str | int] = {"cpu": cpu(), "cores": os.cpu_count() or 1, "threads": torch.get_num_threads()}
    return machine if accelerator == "cpu" or not torch.cuda.is_available() else machine | {"gpu": gpu()}


def gpu() -> str:
    """The first GPU's name."""
    return str(torch.cuda.get_device_name(0))


def versions() -> dict[str, str]:
    """Versions of Python and of packages that can affect results; ``absent`` if not installed."""
    return {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES}


def installed(name: str) -> str:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
