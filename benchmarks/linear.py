"""How time grows with the length of what a model wrote: ``python -m benchmarks.linear``.

Each function of the gate that runs on a model's output is timed on hostile inputs of 1 thousand to 1 million
characters. It ends non-zero where ten times the length takes more than 15 times as long; such an input is not made
longer. Searching for the patterns of a value set ends after a second, whatever they are, and is then a refusal.
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
MOST = 15.0  # times as long, for ten times the length
FLOOR = 1e-3  # seconds below which a time counts as this: less is noise
ROUND = 0.5  # seconds after which a time is not taken again
Work = Callable[[str], object]

UNITS: Mapping[str, tuple[str, str]] = {  # what it begins with, and what is repeated
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
    """The functions by name. In the rules the length has no bound, so that patterns are searched for."""
    made: dict[str, Work] = {"fence": neutralize, "plain text": plain, "the judge's reply": parse_text, "split": split}
    for name in shipped():
        values = load_values(name).model_copy(update={"max_chars": 10**9})
        made[f"rules, {name}"] = partial(ruled, values, Draft)
        made[f"rules on a call, {name}"] = partial(ruled, values, lambda answer: call_draft(call(answer)))
    return made


def ruled(values: ValueSet, drafted: Callable[[str], Draft], answer: str) -> None:
    rules(drafted(answer), values)


def call(answer: str) -> ToolCall:
    """A call whose arguments are the text as a string, and again in short strings."""
    half = len(answer) // 2
    short = [answer[i : i + 10] for i in range(half, len(answer), 10)]
    return ToolCall(name="send", args={"text": answer[:half], "parts": short}, id="1", type="tool_call")


def seconds(work: Work, given: str, rounds: int) -> float:
    """The least of several times, of the processor: a busy machine is no growth. Of one where it is long."""
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
    """The most by which time grew from one size to the next, for ten times the length.

    >>> growth([0.001, 0.010, 0.100], [1, 10, 100])
    10.0
    >>> growth([0.000001, 0.001], [1, 10])
    1.0
    """
    steps = zip(times, times[1:], sizes, sizes[1:], strict=False)
    grown = [max(b, FLOOR) / max(a, FLOOR) * 10 * m / n for a, b, m, n in steps]
    return round(max(grown, default=1.0), 2)


def measure(name: str, work: Work, kind: str, sizes: Sequence[int], rounds: int) -> Record:
    """A row: times in seconds at each size, up to the one at which it grew too fast, twice in succession."""
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
    """A row for each function: of all inputs the one that takes longest, and the one that grows most."""
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
    made.add_argument("--rounds", type=int, default=5, help="of which the least time counts (default: %(default)s)")
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
