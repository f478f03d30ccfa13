"""A run: one judge on the labels of one data set."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from experiments.calibration.constrained import ConstrainedModel
from experiments.calibration.judges import AlwaysViolation, Judge, LanguageModel, RefusalWords
from experiments.calibration.pyrit import VALUES, Data, labels
from experiments.calibration.server import serving
from safi_agent.calibration.judging import Judgement, Judges, judge_cases
from safi_agent.calibration.labels import Case, Labels, read_labels, write_labels
from safi_agent.offline_model import OfflineChatModel

JUDGES = ("always", "refusal-words", "offline-rules", "smollm2")
NAMES = {"smollm2": "SmolLM2-135M-Instruct"}
ORDER_SEED = 0  # of the order in which cases are judged


class Run(NamedTuple):
    """A judge, a data set and folders: of PyRIT's data, of intermediate files, and of the language model.

    With ``most`` only that many labels, drawn at random, are used.
    """

    judge: str
    data: Data
    pyrit: Path
    out: Path
    model: Path | None = None
    most: int | None = None

    @property
    def name(self) -> str:
        """File name of the run."""
        return f"{self.data}-{self.judge}"

    @property
    def judgements_file(self) -> Path:
        """The judgements, which are continued."""
        return self.out / f"{self.name}.judged.jsonl"

    @property
    def labels_file(self) -> Path:
        """The labels, which contain PyRIT's texts."""
        return self.out / f"{self.data}{f'-{self.most}' * (self.most is not None)}.jsonl"

    def labels(self) -> Labels:
        """The labels, written in a random order."""
        rows = labels(self.pyrit, self.data)
        random.Random(ORDER_SEED).shuffle(rows)
        self.out.mkdir(parents=True, exist_ok=True)
        write_labels(rows[: self.most], self.labels_file)
        return read_labels(self.labels_file, VALUES)


class Judged(NamedTuple):
    """The judges and their judgements; CPU seconds and calls of the language model, over all parts of the run."""

    judges: Judges
    labels: Labels
    found: dict[Case, Judgement]
    seconds: float
    calls: int


def judged(run: Run, advance: Callable[[], None] = lambda: None) -> Judged:
    """Judge what has no judgement yet.

    Raises:
        FileNotFoundError: a folder is missing.
    """
    given = run.labels()
    file, costs = run.judgements_file, run.out / f"{run.name}.costs.jsonl"
    if run.judge == "offline-rules":
        judges = Judges(VALUES, OfflineChatModel(), OfflineChatModel())
        return Judged(judges, given, judge_cases(given.cases(), judges, file, advance=advance), 0, 0)
    judge, model = served(run)
    name = NAMES.get(run.judge, run.judge)
    with serving({name: judge}) as url:
        chat = ChatOpenAI(
            model=name, base_url=url, api_key=SecretStr("none"), temperature=0, max_retries=0, timeout=600
        )
        judges = Judges(VALUES, chat, chat, "each", "continuous")
        try:
            found = judge_cases(given.cases(), judges, file, at_once=2, advance=advance)
        finally:
            if model is not None and model.calls:
                with costs.open("a") as lines:
                    lines.write(json.dumps({"seconds": model.seconds, "calls": model.calls}) + "\n")
    spent = [json.loads(line) for line in costs.read_text().splitlines()] if costs.is_file() else []
    seconds, calls = sum(one["seconds"] for one in spent), sum(one["calls"] for one in spent)
    return Judged(judges, given, found, seconds, calls)


def served(run: Run) -> tuple[Judge, ConstrainedModel | None]:
    """The judge behind the server, and its language model if it has one."""
    if run.judge == "always":
        return AlwaysViolation(), None
    if run.judge == "refusal-words":
        return RefusalWords(), None
    if run.model is None or not run.model.is_dir():
        raise FileNotFoundError(
            f"model: expected a folder with SmolLM2-135M-Instruct, got {str(run.model)!r}: it is "
            "HuggingFaceTB/SmolLM2-135M-Instruct, or is made from a package by experiments.finetune.convert."
        )
    model = ConstrainedModel(run.model)
    return LanguageModel(model), model
