"""Rows and table computed from laps, and whether the goals were met."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.governance.peers import PEERS
from benchmarks.governance.rounds import Lap, Level
from benchmarks.report import Spread
from experiments.filing import Record, source
from experiments.pages import grid

NAMES = {
    "bare": "LangChain, one call",
    "twice": "LangChain, two calls",
    "chain": "**SAFi chain**",
    "agent": "LangChain agent, one call",
    "middleware": "**SAFi middleware in the agent**",
    "nemo": "NeMo Guardrails",
    "guardrails-ai": "Guardrails AI",
}
GOVERNED = ("chain", "middleware")
PER_SECOND = 500
FLAT = 0.01  # largest relative growth of resident memory over the second half of the turns
SIGNING = 0.05  # largest share of a turn's CPU time that signing may add
FOUR = 4
SCALE = 3.0  # smallest factor by which four workers are faster than one, where audits wait for the model
TRACING = 0.05  # largest relative overhead of an OpenTelemetry SDK, in CPU a turn
OFF_THE_PATH = ("audit",)
HEADINGS = ("way", "at once", "calls", "added p50, ms", "added p99, ms", "turns/s", "CPU a turn, ms")
NOTE = """A model on loopback, in a process of its own, takes {answer_ms:g} ms for an answer or a check and
{audit_ms:g} ms for an audit. *Calls*: of the model, for one turn, before its answer leaves, as the model counts them.
*Added*: latency less what those calls take; HTTP and LangChain are in it for all. *CPU*: of the process, while turns
were under way, so SAFi's has part of its audits in it and the others have none. Ways took turns, {rounds} rounds.
"""


TRACED = {"chain": "SAFi chain over HTTP", "instant": "model of 0 ms in the same process"}
TRACED_WAYS = {"sampled": "one trace in ten", "traces": "all traces", "all": "all traces, events and metrics"}
TRACING_HEADINGS = (
    "way",
    "at once",
    "no SDK, ms",
    *(head for name in TRACED_WAYS.values() for head in (f"{name}, ms", "")),
)
TRACING_NOTE = """CPU of a turn and its audit on 15 values in the answering process: without an OpenTelemetry SDK, and
with one that exports in batches over OTLP/HTTP to a collector in another process. Medians of {rounds} rounds of {turns}
turns, in alternation; an overhead is the median of the rounds' ratios, with the least and the most.
"""


WORKERS_HEADINGS = (
    "audit, ms",
    "workers",
    "audited turns/s",
    "ratio",
    "least and most",
    "CPU of workers a turn, ms",
    "of PostgreSQL, ms",
)
WORKERS_NOTE = """Workers are `safi worker` processes on one machine, with PostgreSQL {postgresql} in its default
settings and a model on loopback that takes the time in the first column for an audit. {turns} turns of {keys} memory
keys wait when they begin. Medians of {rounds} rounds in alternation; the ratio is to the first number of workers in the
same round.
"""


def worker_cells(row: Record) -> list[str]:
    ratio = row["ratio"]
    return [
        f"{row['audit_ms']:g}",
        str(row["count"]),
        f"{row['per_s']:.1f}",
        f"× {ratio.median:.2f}",
        f"{ratio.least:.2f} to {ratio.most:.2f}",
        f"{row['worker_cpu_ms']:.1f}",
        f"{row['server_cpu_ms']:.1f}",
    ]


def percentages(overhead: Spread) -> str:
    """
    >>> percentages(Spread(0.1, 0.05, 0.2))
    '+10.0% (+5.0 to +20.0)'
    """
    return f"{overhead.median:+.1%} ({100 * overhead.least:+.1f} to {100 * overhead.most:+.1f})"


def tracing_cells(row: Record) -> list[str]:
    cpu, overhead = row["cpu"], row["overhead"]
    exported = [cell for way in TRACED_WAYS for cell in (f"{cpu[way]:.2f}", percentages(overhead[way]))]
    return [f"{cpu['without']:.2f}", *exported]


def quantile(values: Sequence[float], q: float) -> float:
    """
    >>> quantile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def per_turn(calls: Mapping[str, int], turns: int) -> float:
    """
    >>> per_turn({"draft": 4, "will": 4, "audit": 3}, 4)
    2.0
    """
    return sum(n for role, n in calls.items() if role not in OFF_THE_PATH) / turns


def row(who: str, level: Level, laps: Sequence[Lap], calls: float, answer_ms: float) -> Record:
    """One contender at one level."""
    latencies = [latency for lap in laps for latency in lap["latencies"]]
    return {
        "who": who,
        "at_once": level.at_once,
        "calls": calls,
        "turns": len(latencies),
        "p50": quantile(latencies, 0.5) - calls * answer_ms,
        "p99": quantile(latencies, 0.99) - calls * answer_ms,
        "rounds_p50": [quantile(lap["latencies"], 0.5) - calls * answer_ms for lap in laps],
        "per_s": len(latencies) / sum(lap["seconds"] for lap in laps),
        "cpu": 1e3 * sum(lap["cpu_seconds"] for lap in laps) / len(latencies),
    }


def slower(rows: Sequence[Record]) -> list[str]:
    """Cases in which SAFi adds at least as much as a peer with as many calls; ratios are medians over the rounds."""
    found = []
    for own in (r for r in rows if r["who"] in GOVERNED):
        for peer in (r for r in rows if r["who"] in PEERS):
            if (peer["at_once"], peer["calls"]) == (own["at_once"], own["calls"]):
                ratio = median(a / b for a, b in zip(own["rounds_p50"], peer["rounds_p50"], strict=True))
                if ratio >= 1:
                    found.append(f"{own['who']} / {peer['who']} at {own['at_once']}: × {ratio:.2f}")
    return found


def worker_goals(record: Record) -> list[str]:
    """The goals of several workers, and whether they were met; none without such rows."""
    if "workers" not in record:
        return []
    said = [
        f"{one['count']} workers are at least {SCALE:g} times as fast as one with audits of {one['audit_ms']:g} ms: "
        f"× {one['ratio'].median:.2f}, {'yes' if one['ratio'].median >= SCALE else 'no'}."
        for one in record["workers"]
        if one["audit_ms"] and one["count"] == FOUR
    ]
    return [*said, f"Turns that were audited or logged twice: {record['repeated']}."]


def goals(record: Record) -> list[str]:
    """The goals, and whether they were met."""
    said = []
    rows = record.get("rows", [])
    if any(r["who"] in PEERS for r in rows):
        where = slower(rows)
        said.append(
            f"Fewer added ms than each peer at each level: {'no (' + '; '.join(where) + ')' if where else 'yes'}."
        )
    if fast := record.get("turns_per_second"):
        reached = [("answers", fast["answers_per_s"]), ("audited turns", fast["audited_per_s"])]
        texts = [f"{name} {per_s:.0f}/s, {'yes' if per_s >= PER_SECOND else 'no'}" for name, per_s in reached]
        said.append(f"{PER_SECOND} a second, model of 0 ms, one process: {'; '.join(texts)}.")
    if kept := record.get("memory"):
        half, end = (kept[mark] / 2**20 for mark in ("half", "end"))
        flat = "yes" if end < half * (1 + FLAT) else "no"
        said.append(f"Flat memory over {kept['turns']} turns: {half:.1f} MiB after half, {end:.1f} at the end, {flat}.")
    if traced := record.get("tracing"):
        for way, name in TRACED_WAYS.items():
            most = max(row["overhead"][way].median for row in traced if row["who"] == "chain")
            said.append(
                f"At most {TRACING:.0%} more CPU a turn of the chain over HTTP with {name}: {most:+.1%}, "
                f"{'yes' if most <= TRACING else 'no'}."
            )
        said.append(
            f"Without an SDK, the spans and metrics of a turn and its audit take {record['without_sdk_us']:.0f} µs."
        )
    if open_ := record.get("backlog"):
        half, end = (open_[mark] / 2**20 for mark in ("half", "end"))
        held = "yes" if open_["deepest"] <= open_["bound"] and end < half * (1 + FLAT) and not open_["left"] else "no"
        said.append(
            f"{open_['turns']} turns, audits of {open_['audit_ms']:g} ms, at most {open_['bound']} open: at most "
            f"{open_['deepest']} were, the oldest {open_['oldest_s']:.1f} s old; {half:.1f} MiB after half, "
            f"{end:.1f} at the end, {open_['left']} left, {held}."
        )
    for one in record.get("signing", {}).get("rows", []):
        share = one["signing_cpu_ms"] / (one["turn_cpu_ms"] - one["signing_cpu_ms"])
        said.append(
            f"{record['signing']['turns']} turns in {one['writes']} writes to the log: signing adds "
            f"{one['signing_cpu_ms']:.2f} ms of CPU to a turn of {one['turn_cpu_ms']:.1f}, {share:.1%}; at most "
            f"{SIGNING:.0%}: {'yes' if share <= SIGNING else 'no'}."
        )
    said += worker_goals(record)
    said.append(f"Answers without their audit: {record['lost']} of {record['answers']}.")
    return said


def cells(row: Record) -> list[str]:
    numbers = [
        f"{row['calls']:g}",
        *(f"{row[k]:.1f}" for k in ("p50", "p99")),
        f"{row['per_s']:.0f}",
        f"{row['cpu']:.1f}",
    ]
    return [NAMES[row["who"]], str(row["at_once"]), *numbers]


def markdown(record: Record) -> str:
    """The section of the page."""
    parts = []
    if rows := record.get("rows"):
        left_out = [[NAMES[who], "", why, "", "", "", ""] for who, why in record["missing"].items()]
        parts += [NOTE.format(**record), grid(HEADINGS, [*map(cells, rows), *left_out])]
    if traced := record.get("tracing"):
        table = [[TRACED[r["who"]], str(r["at_once"]), *tracing_cells(r)] for r in traced]
        parts += [TRACING_NOTE.format(**record), grid(TRACING_HEADINGS, table)]
    if "workers" in record:
        table = [worker_cells(row) for row in record["workers"]]
        parts += [WORKERS_NOTE.format(**record), grid(WORKERS_HEADINGS, table)]
    parts.append("".join(f"* {line}\n" for line in goals(record)))
    return "\n".join([*parts, source(record)])


def totals(laps: Sequence[tuple[str, Level, Lap]]) -> dict[str, dict[str, int]]:
    """Numbers of answers and audits of the contenders with audits."""
    found: dict[str, dict[str, Any]] = {}
    for who, _, lap in laps:
        if who in GOVERNED:
            one = found.setdefault(who, {"answers": 0, "audited": 0})
            one["answers"] += len(lap["latencies"])
            one["audited"] += lap["audited"]
    return found
