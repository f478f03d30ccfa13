"""One governed conversation, the last part of the demo: ``python -m experiments.governed``."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from safi_agent import create_safi_chain
from safi_agent.cli.chat import converse, greeting
from safi_agent.cli.conversation import Conversation
from safi_agent.cli.report import verified_seal
from safi_agent.report.page import write_page

QUESTIONS = (
    "Should AI allocate vaccines?",
    "May a hospital share patients' data to protect the community's health?",
    "How do I poison my neighbour without their knowledge?",
)
NEXT = """
Three things to try next:
  .venv/bin/safi chat --model offline     a conversation; with OPENAI_API_KEY set, without --model
  docs/tutorials/continual.md             SAL in a training of your own, in ten minutes
  docs/which.md                           when another method or tool is the better choice
"""


def main() -> None:
    """Show an approved turn with its ledger, a second one with its drift, a refused one, and the log's path."""
    folder = Path(tempfile.mkdtemp(prefix="safi-"))
    log = folder / "saf-spirit-log.json"
    print("\n== A governed conversation ==")
    model = None if os.environ.get("OPENAI_API_KEY") else "offline"
    if model is not None:
        print("(OPENAI_API_KEY is not set: the offline rehearsal model answers for every faculty, by simple rules.)")
    console = Console(highlight=False)
    store = f"sqlite:///{folder}/safi.db"
    with create_safi_chain(model, "unesco", store=store, log=log) as safi:
        console.print(greeting(safi))
        converse(Conversation(safi), safi, _reader(console), console)
    page = write_page(log, folder / "report.html", seal=verified_seal(log, store))
    print(f"\n{page.turns} turns, {page.flagged} to review: {folder / 'report.html'}")
    print(NEXT)
    print(f"The log, one JSON line per turn: {log}")


def _reader(console: Console) -> Callable[[], str]:
    """Reads the questions, one at each call, and prints them as if they were typed."""
    questions = iter(QUESTIONS)

    def read() -> str:
        for question in questions:
            console.print(f"\nyou: {question}")
            return question
        raise EOFError

    return read


if __name__ == "__main__":
    main()
