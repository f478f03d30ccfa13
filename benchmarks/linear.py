"""Growth of run time with the length of a model's output: ``python -m benchmarks.linear``.

Each function of the gate that processes a model's output is timed on hostile inputs of 1 thousand to 1 million
characters. The exit status is non-zero if ten times the length takes more than 15 times as long; longer inputs of this
kind are then skipped. The search for a value set's patterns has a timeout of one second, after which the Will refuses.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from langchain_core.messages import ToolCall

from benchmarks.report import publish
from experiments.filing import Record, origin, source
from experiments.pages import grid
from experiments.provenance import installed
from safi_agent import ValueSet, load_values
from safi_agent.agents.replies import call_draft
from safi_agent.faculties.fence import neutralize
from safi_agent.faculties.reflection import split
from safi_agent.faculties.will import rules
from safi_agent.parsing import parse_text
from safi_agent.turn import Draft
from safi_agent.unicode_text import plain
from safi_agent.values import shipped

SIZES = (1_000, 10_000, 100_000, 1_000_000)  # characters
MOST = 15.0  # largest ratio of times for ten times the length
FLOOR = 1e-3  # seconds; shorter times are noise and are raised to this
ROUND = 0.5  # seconds; longer measurements are not repeated
Work = Callable[[str], object]

UNITS: Mapping[str, tuple[str, str]] = {  # prefix, and repeated unit
    "letters": ("", "guarantee "),
    "dashes": ("", "-"),
    "less-than signs": ("", "<"),
    "one < and spaces": ("<", " "),
    "< and spaces, again and again": ("", "<" + " " * 40),
    "names of fences, unfinished": ("", "</user_promp"),
    "opening tags": ("", "<reflection "),
    "a code fence and line breaks": ("```", "\n"),
    "code fences": ("", "```json\n"),
    "empty objects": ("", "{}"),
    "opening braces": ("", '{"a":'),
    "opening brackets": ("", "["),
    "quotation marks and backslashes": ('{"a": "', '\\"'),
    "zero-width spaces": ("", "\u200b"),
    "combining marks in the wrong order": ("a", "\u0315\u0300"),
    "a letter that NFKC makes 18 of": ("", "\ufdfa"),
    "open thoughts": ("", "<think>"),
}


def text(kind: str, size: int) -> str:
    """
    >>> text("one < and spaces", 4)
    '<   '
    """
    start, unit = UNITS[kind]
    return (start + unit * (size // len(unit) + 1))[:size]


def works() -> dict[str, Work]:
    """The functions by name. The rules have no length limit, so that the search for patterns is reached."""
    made: dict[str, Work] = {"fence": neutralize, "plain text": plain, "the judge's reply": parse_text, "split": split}
    for name in shipped():
        values = load_values(name).model_copy(update={"max_chars": 10**9})
        made[f"rules, {name}"] = partial(ruled, values, Draft)
        made[f"rules on a call, {name}"] = partial(ruled, values, lambda answer: call_draft(call(answer)))
    return made


def ruled(values: ValueSet, drafted: Callable[[str], Draft], answer: str) -> None:
    rules(drafted(answer), values)


def call(answer: str) -> ToolCall:
    """A tool call with the text as one string argument, and again in short strings."""
    half = len(answer) // 2
    short = [answer[i : i + 10] for i in range(half, len(answer), 10)]
    return ToolCall(name="send", args={"text": answer[:half], "parts": short}, id="1", type="tool_call")


def seconds(work: Work, given: str, rounds: int) -> float:
    """The minimum of several CPU times, independent of the machine's load; long ones are measured once."""
    least, spent = float("inf"), 0.0
    for _ in range(rounds):
        start = time.thread_time()
        work(given)
        took = time.thread_time() - start
        least, spent = min(least, took), spent + took
        if spent > ROUND:
            break
    return least


def growth(times: Sequence[float], sizes: Sequence[int]) -> float:
    """The largest growth of time from one size to the next, scaled to ten times the length.

    >>> growth([0.001, 0.010, 0.100], [1, 10, 100])
    10.0
    >>> growth([0.000001, 0.001], [1, 10])
    1.0
    """
    steps = zip(times, times[1:], sizes, sizes[1:], strict=False)
    grown = [max(b, FLOOR) / max(a, FLOOR) * 10 * m / n for a, b, m, n in steps]
    return round(max(grown, default=1.0), 2)


def measure(name: str, work: Work, kind: str, sizes: Sequence[int], rounds: int) -> Record:
    """A row with the time in seconds at each size, up to the one where growth exceeds the limit twice in succession."""
    times: list[float] = []
    for i, size in enumerate(sizes):
        times.append(seconds(work, text(kind, size), rounds))
        if i and growth(times, sizes) > MOST:
            times[-2:] = [seconds(work, text(kind, size), 3 * rounds) for size in sizes[i - 1 : i + 1]]
        if growth(times, sizes) > MOST:
            break
    return {"what": name, "input": kind, "seconds": times, "growth": growth(times, sizes)}


def faults(rows: Sequence[Record]) -> Iterator[str]:
    for row in rows:
        if row["growth"] > MOST:
            yield f"{row['what']}: {row['growth']:.0f} times as long for ten times of {row['input']}."


def markdown(record: Record) -> str:
    """A row for each function: the input with the longest time, and the one with the largest growth."""
    lines = []
    for name in dict.fromkeys(row["what"] for row in record["rows"]):
        own = [row for row in record["rows"] if row["what"] == name]
        worst = max(own, key=lambda row: (len(row["seconds"]) < len(record["sizes"]), row["seconds"][-1:]))
        most = max(own, key=lambda row: float(row["growth"]))
        times = [f"{1e3 * taken:.3g}" for taken in worst["seconds"]]
        times += ["-"] * (len(record["sizes"]) - len(times))
        lines.append([name, worst["input"], *times, f"{most['growth']:.1f}"])
    head = [
        "what",
        "slowest input",
        *(f"{size:,} characters, ms" for size in record["sizes"]),
        "most growth for 10 times",
    ]
    return grid(head, lines) + "\n" + source(record)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="N", help="characters, ascending")
    made.add_argument("--rounds", type=int, default=5, help="repetitions; the minimum counts (default: %(default)s)")
    made.add_argument("--table", type=Path, metavar="FILE.md", help="rewrite its part on time")
    made.add_argument("--out", type=Path, default=Path("results/linear/linear.json"))
    return made


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    rows = [measure(name, work, kind, args.sizes, args.rounds) for name, work in works().items() for kind in UNITS]
    sizes = "" if args.sizes == list(SIZES) else f" --sizes {' '.join(map(str, args.sizes))}"
    rounds = "" if args.rounds == 5 else f" --rounds {args.rounds}"
    record = {"title": "time by length", "sizes": args.sizes, "rounds": args.rounds, "rows": rows}
    record |= origin(f"python -m benchmarks.linear{sizes}{rounds}", 0, "cpu")
    record["versions"] = {"regex": installed("regex")}
    publish(record, args.out, markdown(record), args.table, "linear")
    if found := [*faults(rows)]:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
