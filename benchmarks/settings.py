"""Settings of a measurement: a frozen dataclass that also defines the command line of ``benchmarks.overhead``."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

WORKLOADS = ("mlp", "convnet", "gpt")
SHAPE = ("width", "depth", "heads", "vocab", "context", "sequences")  # of ``gpt``; the others have one shape


def _option(default: int | str, text: str, choices: Sequence[str] | None = None) -> Any:
    return field(default=default, metadata={"help": f"{text} (default: %(default)s)", "choices": choices})


@dataclass(frozen=True)
class Setting:
    """One workload on one device, and the numbers of steps and rounds."""

    workload: str = "mlp"
    width: int = _option(384, "gpt: width of the residual stream")
    depth: int = _option(6, "gpt: number of blocks")
    heads: int = _option(6, "gpt: attention heads")
    vocab: int = _option(50257, "gpt: size of the vocabulary")
    context: int = _option(1024, "gpt: length of a sequence")
    sequences: int = _option(4, "gpt: sequences per step")
    device: str = _option("cpu", "where it runs", ("cpu", "cuda"))
    dtype: str = _option("fp32", "bf16 is autocast, with weights in single precision", ("fp32", "bf16"))
    threads: int = _option(1, "CPU threads of torch")
    rounds: int = _option(5, "number of rounds; each method runs once per round")
    steps: int = _option(16, "timed steps per round")
    warmup: int = _option(4, "untimed steps before the consolidation")
    settle: int = _option(20, "untimed steps after the consolidation")
    lead: int = _option(18, "untimed steps of each round, which is a new fit: SAL first compares its data")
    history: int = _option(50, "published-history: number of steps kept")
    seed: int = _option(0, "random seed of the weights and the batches")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and name != "seed" and value < 1:
                raise ValueError(f"Expected {name} to be a whole number >= 1, got {value}.")
        if self.width % self.heads:
            raise ValueError(f"Expected width to be a multiple of heads={self.heads}, got {self.width}.")

    def relevant(self) -> dict[str, Any]:
        """The fields that apply to this workload."""
        return {k: v for k, v in asdict(self).items() if self.workload == "gpt" or k not in SHAPE}

    def flags(self) -> list[str]:
        """The command line of this setting, without defaults."""
        usual = {f.name: f.default for f in fields(self)}
        given = {k: v for k, v in self.relevant().items() if k != "workload" and v != usual[k]}
        return ["--workload", self.workload, *(word for k, v in given.items() for word in (f"--{k}", str(v)))]

    def title(self) -> str:
        """A title that identifies this setting."""
        shape = [f"{name} {getattr(self, name)}" for name in SHAPE] if self.workload == "gpt" else []
        return ", ".join([self.workload, *shape, f"{self.device} {self.dtype}", f"threads {self.threads}"])

    def slug(self) -> str:
        """The title as a file name."""
        return self.title().replace(", ", "-").replace(" ", "")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per field, except for the workload."""
    for f in fields(Setting):
        if f.metadata:
            parser.add_argument(f"--{f.name}", type=type(f.default), default=f.default, **f.metadata)


def setting(workload: str, args: argparse.Namespace) -> Setting:
    """The setting defined by the flags."""
    return Setting(workload, **{f.name: getattr(args, f.name) for f in fields(Setting) if f.metadata})
