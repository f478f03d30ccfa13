"""The tables of a page: methods at an equal loss on the new text, and every strength."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from experiments import filing
from experiments.continual.metrics import estimate
from experiments.figure import INK
from experiments.filing import Record
from experiments.finetune.measures import Measures
from experiments.finetune.methods import METHODS
from experiments.finetune.questions import QUESTIONS
from experiments.finetune.settings import LR, Scale
from experiments.language.curves import Curve, Point, envelope
from experiments.language.figure import LINES, Line, trade_off
from experiments.language.results import at_equal_loss, origins
from experiments.pages import grid

GRID = 0.05  # distance of matched losses in nats
LOWER, FEWER, STRAIGHT = "lower rates", "fewer steps", "WiSE-FT"
COLORS = LINES | {
    "mixed": "#d19a2a",
    "lora-mlp": "#b79ad6",
    "rslora": "#5b3a8c",
    "corda": "#2f8f6b",
    "osf": "#7d5a45",
}
STYLES = {LOWER: ":", FEWER: "--", STRAIGHT: "-."}
NOTE = """\
Loss in nats a token, mean ± standard error over seeds. *New*: on a part of the new text that nothing was trained on;
*trained*: on the part that was trained on. *Forgotten*: the loss on held-out texts that the model had written itself,
less that of the model before; *KL*: how far its predictions on them have moved from those of the model before.
*Answers*, *prose*, *programs*: the losses on short answers, plays and Python, less those before. *Facts*: of
{questions} questions, those that are answered with the right word. *Strength*: of `plain` the learning rate, of `mixed`
the share of the model's own samples in each batch, of `lora`, `lora-mlp`, `rslora` and `corda` the rank, of `osf` the
share of each weight's singular directions that are frozen. `fewer steps` and `WiSE-FT` (between the weights before and
after) are read from the run of `plain` at {lr:g}.
"""
TITLES = {
    "german": "a German handbook",
    "code": "Python programs",
    "german-code": "a German handbook, then Python programs",
}
SETTING = """\
{model} is trained for {steps} steps of {batch} × {context} tokens. No method has data of its pretraining: some use
{samples} texts of {context} tokens that the model wrote itself. Forgetting is measured on {measured} others.
"""
MATCHED = """\
Forgotten where the loss is the same (between two strengths, along a straight line), and as a multiple of what a lower
learning rate forgets there; blank where the strengths that were run do not come. Where another strength of the same
method learned more and forgot less, that one counts.
"""
HEADINGS = (
    *("method", "strength", "rate", "seeds", "new", "trained", "forgotten", "KL"),
    *("answers", "prose", "programs", "facts", "seconds", "state"),
)


class Row(NamedTuple):
    """One measured model."""

    method: str
    strength: float
    lr: float
    seed: int
    now: Measures
    record: Record


def read_all(folder: Path, scale: Scale, model: str, stream: str) -> list[Record]:
    """All records of a scale, a model and a stream, in the order of methods, strengths and seeds."""
    wanted = (asdict(scale), model, stream)
    found = [r["settings"] | {"record": r} for r in filing.read_all(folder)]
    mine = [s for s in found if (s["scale"], s["model"], s["stream"]) == wanted]
    mine.sort(key=lambda s: (list(METHODS).index(s["method"]), s["lr"], s["strength"], s["seed"]))
    return [s["record"] for s in mine]


def rows(records: Sequence[Record]) -> list[Row]:
    """The models after the last text, and those that are read from plain training."""
    made = []
    for r in records:
        s = r["settings"]
        made.append(Row(s["method"], s["strength"], s["lr"], s["seed"], r["stages"][-1], r))
        if s["lr"] == LR:
            for name, now in r["others"].items():
                kind, part = name.split()
                made.append(Row(FEWER if kind == "steps" else STRAIGHT, float(part), LR, s["seed"], now, r))
    return made


def curves(found: Sequence[Row], reached: str) -> dict[str, dict[int, Curve]]:
    """Forgetting over the loss that was reached, by curve, then by seed."""
    points: dict[str, dict[int, list[Point]]] = {}
    for row in found:
        usual = METHODS[row.method].lr if row.method in METHODS else LR
        names = [LOWER] if row.method == "plain" else [row.method + f" at {row.lr:g}" * (row.lr != usual)]
        if row.method == "plain" and row.lr == LR:
            names += [FEWER, STRAIGHT]  # the whole way, and all steps
        point = Point(row.now[reached], row.now["own"] - row.record["before"]["own"])
        for name in names:
            points.setdefault(name, {}).setdefault(row.seed, []).append(point)
    return {name: {seed: envelope(curve) for seed, curve in seeds.items()} for name, seeds in points.items()}


def matched(records: Sequence[Record], reached: str) -> str:
    """The table of methods at an equal loss; empty without plain training."""
    return at_equal_loss(curves(rows(records), reached), LOWER, GRID)


def cells(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """One line per method, strength and rate."""
    groups: dict[tuple[str, float, float], list[Row]] = {}
    for row in rows(records):
        groups.setdefault((row.method, row.strength, row.lr), []).append(row)
    return [(name, f"{x:g}", f"{lr:g}", *numbers(group)) for (name, x, lr), group in groups.items()]


def numbers(group: Sequence[Row]) -> tuple[str, ...]:
    """The remaining cells of a line: values over seeds."""
    new = group[0].record["settings"]["stream"].split("-")[-1]
    found = [
        [row.now[new] for row in group],
        [row.now[f"{new} trained"] for row in group],
        [row.now["own"] - row.record["before"]["own"] for row in group],
        [row.now["kl"] for row in group],
        *([row.now[name] - row.record["before"][name] for row in group] for name in ("answers", "prose", "programs")),
    ]
    seconds = estimate([sum(row.record["seconds"]) for row in group]).mean
    facts = estimate([row.now["facts"] for row in group]).mean
    state = group[0].record["memory"].get("state")
    return (
        str(len(group)),
        *(str(estimate(values)) for values in found),
        f"{facts:.1f}",
        f"{seconds:.0f}",
        "" if state is None else f"{state / 2**20:.0f} MiB",
    )


def source(records: Sequence[Record]) -> str:
    """The command that reproduces the records, and their provenance."""
    settings = records[0]["settings"]
    methods, seeds = (list(dict.fromkeys(str(r["settings"][key]) for r in records)) for key in ("method", "seed"))
    command = (
        f"python -m experiments.finetune --model {settings['model']} --texts FOLDER {Scale(**settings['scale']).form}"
        f"--streams {settings['stream']} --methods {' '.join(methods)} --seeds {' '.join(seeds)}"
    )
    return f"`{command}`; each record holds its own.\n\n{origins(records)}"


def markdown(records: Sequence[Record], figure: str) -> str:
    """All tables of a stream under a heading."""
    settings = records[0]["settings"]
    new = settings["stream"].split("-")[-1]
    before = records[0]["before"]
    known = ", ".join(f"{name} {before[name]:.3f}" for name in (new, "own", "answers", "prose", "programs"))
    setting = SETTING.format(model=settings["model"], **settings["scale"])
    parts = [
        f"## A pretrained language model: {TITLES[settings['stream']]}\n\n![Forgotten against learned]({figure})\n",
        f"{setting}\nBefore: {known}; {before['facts']:.0f} of {len(QUESTIONS)} questions.\n",
        f"### At the same loss on the new text\n\n{MATCHED}\n{matched(records, new)}",
        "### At the same loss on the text that was trained on\n",
        f"{MATCHED}\n{matched(records, f'{new} trained')}",
        f"### Each strength on {new}\n\n{NOTE.format(questions=len(QUESTIONS), lr=LR)}",
        grid(HEADINGS, cells(records)),
        source(records),
    ]
    return "\n".join(parts)


def draw(records: Sequence[Record], file: Path) -> None:
    """Write the figure: forgetting against the loss on the new text, one line per method and seed."""
    new = records[0]["settings"]["stream"].split("-")[-1]
    lines = [
        Line(curve, None if i else name, COLORS.get(name.split()[0], INK), STYLES.get(name, "-"))
        for name, seeds in curves(rows(records), new).items()
        for i, curve in enumerate(seeds.values())
    ]
    trade_off(lines, f"loss on {new}, nats a token", "loss added on the model's own texts", file)
