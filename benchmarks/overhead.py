"""Overhead of SAL and other methods per step: ``python -m benchmarks.overhead --workload mlp convnet gpt``.

Each method trains inside ``Trainer.fit``, after its first task; methods alternate, so that load of the machine affects
all of them. Ratios are of the mean step in one round. ``--logging`` measures the cost of SAL's logging instead;
``--device cuda --dtype bf16 --width 768 --depth 12 --heads 12 --sequences 16`` is GPT-2 with 16k tokens per step.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from rich.console import Console

from benchmarks import memory
from benchmarks.methods import METHODS, USUAL
from benchmarks.report import spread
from benchmarks.settings import WORKLOADS, Setting, add_flags, setting
from benchmarks.steps import Entry, Lap, enter, interleave
from experiments import console as show
from experiments.filing import Record, origin, read_all, save, source
from experiments.options import add_table
from experiments.pages import grid, rewrite

HEADINGS = ("method", "step, ms", "× first row", "least..most", "CPU ×", "kept, %", "peak, %", "RSS, %")
NOTE = """Written by `python -m benchmarks.overhead --from-records --table`, not by hand.

*Step*: median over all steps. *×*: mean step over that of the first row in the same round, median of the rounds.
*CPU ×*: the same in processor time. *Kept*: by the method, from step to step; *peak*: of torch's allocator, and *RSS*
of the process, beyond the first row's; all in percent of the parameters' bytes. `plain-again` shows the noise. Each
round is a new fit, whose first steps are not timed (`--lead`): in them SAL compares the data with those of the last.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    made.add_argument("--workload", choices=WORKLOADS, nargs="+", default=["mlp"])
    made.add_argument("--methods", choices=METHODS, nargs="+", default=USUAL, help="plain is always the first")
    made.add_argument(
        "--logging",
        type=int,
        nargs="?",
        const=50,
        metavar="N",
        help="sal with logging never, every N, always",
    )
    made.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="in one process per method",
    )
    made.add_argument("--out", type=Path, default=Path("results/cost"))
    made.add_argument("--from-records", action="store_true", help="measure nothing, write what has a record")
    add_table(made, "rewrite its cost section from all under --out")
    add_flags(made)
    return made


def compare(setting: Setting, methods: Sequence[str], console: Console, with_memory: bool) -> Record:
    """Compare the methods with plain training."""
    names = list(dict.fromkeys(["plain", *methods]))
    command = " ".join(["python -m benchmarks.overhead", *setting.flags(), "--methods", *names])
    record = run(setting, {name: partial(enter, setting, name) for name in names}, console)
    for row in record["rows"] if with_memory else []:
        row |= memory.in_fresh_process(setting, row["method"])
    return record | origin(command if with_memory else f"{command} --no-memory", setting.seed, setting.device)


def compare_logging(setting: Setting, every: int, console: Console) -> Record:
    """Compare SAL without logging, with logging every N steps, and in each step."""
    command = " ".join(["python -m benchmarks.overhead", *setting.flags(), f"--logging {every}"])
    often = {"never logged": 0, f"logged every {every} steps": every, "logged each step": 1}
    setting = replace(setting, steps=max(setting.steps, every))
    makers = {
        name: partial(enter, setting, "sal", log_every_n_steps=n, logger=DummyLogger() if n else False)
        for name, n in often.items()
    }
    record = run(setting, makers, console) | origin(command, setting.seed, setting.device)
    return record | {"title": f"{setting.title()}, logging of sal"}


def run(setting: Setting, makers: Mapping[str, Callable[[], Entry]], console: Console) -> Record:
    """Prepare all methods, then measure them in alternation."""
    laps: dict[str, list[Lap]] = {name: [] for name in makers}
    with show.bar(console) as progress:
        bar = progress.add_task(setting.title(), total=len(makers) * (setting.rounds + 1))
        entries = {}
        for name, make in makers.items():
            entries[name] = make()
            progress.advance(bar)
        for name, lap in interleave(entries, setting):
            laps[name].append(lap)
            progress.advance(bar)
    parameters = list(next(iter(entries.values())).model.parameters())
    return {
        "title": setting.title(),
        "setting": setting.relevant(),
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.nbytes for p in parameters),
        "rows": [row(name, laps[name], laps[next(iter(laps))]) for name in laps],
        "laps": {name: [lap._asdict() for lap in taken] for name, taken in laps.items()},
    }


def row(name: str, laps: Sequence[Lap], first: Sequence[Lap]) -> Record:
    """One method relative to the first."""
    rounds = list(zip(laps, first, strict=True))
    return {
        "method": name,
        "step_ms": 1e3 * median(second for lap in laps for second in lap.wall),
        "ratio": spread([fmean(lap.wall) / fmean(base.wall) for lap, base in rounds])._asdict(),
        "cpu_ratio": spread([fmean(lap.cpu) / fmean(base.cpu) for lap, base in rounds])._asdict(),
    }


def cells(row: Record, record: Record) -> list[str]:
    """A row as text, in the order of ``HEADINGS``."""
    ratio, first = row["ratio"], record["rows"][0]
    times = [f"{row['step_ms']:.2f}", f"{ratio['median']:.2f}", f"{ratio['least']:.2f}..{ratio['most']:.2f}"]
    beyond = {"kept": 0.0, "peak": first.get("peak", 0.0), "rss": first.get("rss", 0.0)}
    bytes_ = [f"{100 * (row[k] - less) / record['bytes']:.0f}" if k in row else "" for k, less in beyond.items()]
    return [row["method"], *times, f"{row['cpu_ratio']['median']:.2f}", *bytes_]


def markdown(records: Iterable[Record]) -> str:
    """One table a record."""
    parts = [
        f"### {r['title']}: {r['parameters'] / 1e6:.1f} M parameters\n\n"
        f"{grid(HEADINGS, (cells(row, r) for row in r['rows']))}\n{source(r)}"
        for r in records
    ]
    return "\n".join(["## Cost of a step\n", NOTE, *parts])


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console, records = Console(stderr=True), []
    for name in [] if args.from_records else args.workload:
        asked = setting(name, args)
        if args.logging:
            records.append(compare_logging(asked, args.logging, console))
        else:
            records.append(compare(asked, args.methods, console, args.memory))
        save(records[-1], args.out / f"{asked.slug()}{'-logging' if args.logging else ''}.json")
    print(markdown(read_all(args.out) if args.from_records else records))
    if args.table:
        rewrite(args.table, "cost", markdown(read_all(args.out)))


if __name__ == "__main__":
    main()
