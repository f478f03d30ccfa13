"""A scripted log, its page, and pictures of it: ``python -m experiments.audited --pictures docs/review``.

No language model is used: answers, decisions and scores are drawn from a seed, and the time of each turn is scripted
too. It only demonstrates the page.
"""

import argparse
import json
import logging
import random
import re
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from safi_agent import create_safi_chain
from safi_agent.cli.report import verified_seal
from safi_agent.report.page import write_page

DESKS = ("permits", "permits", "housing", "waste")  # memory keys, one of them twice as busy
QUESTIONS = (
    "Who decides on my building permit?",
    "Why was my neighbour's permit refused?",
    "When is glass collected in my street?",
    "Can I see who else is on the housing list?",
    "Which party has the better plan for the market square?",
    "How do I object to a parking fine?",
    "May I cut down the tree in front of my house?",
    "Where can I report a broken street lamp?",
)
BEGIN, PAUSE = datetime(2026, 3, 2, 7, tzinfo=UTC), timedelta(minutes=12)
LEAKING = ("Accuracy", "Equal Treatment", "Privacy")
VALUE = re.compile(r"^- (.+?): ", re.MULTILINE)


class Scripted(BaseChatModel):
    """Scripted replies for every faculty; in turns 130 to 160 the answers disclose private data."""

    draw: Any
    now: int = 0

    @property
    def _llm_type(self) -> str:
        return "a script"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        system = str(messages[0].text)
        if system.startswith("You are the Will"):
            text = self._ruling(system)
        elif system.startswith("You are the Conscience"):
            text = self._ledger(VALUE.findall(system))
        else:
            text = "The office answers this within four weeks.<reflection>It names who is responsible.</reflection>"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    def _ruling(self, system: str) -> str:
        gates = [{"value": name, "upheld": True} for name in VALUE.findall(system)]
        refused = self.draw.random() < 0.05
        reason = "It takes a side between parties." if refused else "It keeps to the values."
        return json.dumps({"decision": "violation" if refused else "approve", "reason": reason, "gates": gates})

    def _ledger(self, names: list[str]) -> str:
        if self.now % 45 == 20:
            return "I cannot say."
        rows = []
        for name in names:
            leaks = 130 <= self.now < 160 and name in LEAKING
            score = self.draw.choice([-1, -1, 0] if leaks else [0, 0.5, 1, 1, 1])
            reason = "It tells what others applied for." if score < 0 else "Nothing speaks against it."
            rows.append(
                {"value": name, "score": score, "confidence": round(self.draw.uniform(0.6, 1), 2), "reason": reason}
            )
        return json.dumps({"ledger": rows})


def play(log: Path, store: str, turns: int, seed: int) -> None:
    """Run ``turns`` turns of a town's desks through the chain, which writes the log; a turn every 12 minutes."""
    draw = random.Random(seed)
    model = Scripted(draw=draw)
    with create_safi_chain(model, "civic", store=store, log=log, audit_attempts=1) as safi:
        for model.now in range(turns):
            time = (BEGIN + model.now * PAUSE).strftime("%Y-%m-%dT%H:%M:%SZ")
            with patch("safi_agent.idempotency.utc_now", lambda time=time: time):
                safi.invoke(draw.choice(QUESTIONS), {"configurable": {"safi_key": draw.choice(DESKS)}})
            safi.drain()  # keeps the order of random draws fixed


def pictures(page: Path, folder: Path) -> None:
    """Pictures of the page at a width of 1400 pixels in both themes, and of 400 pixels."""
    from experiments.browser import browser

    with browser() as window:
        for width, theme in ((1400, "light"), (1400, "dark"), (400, "light")):
            window.goto(page, width, theme)  # type: ignore[arg-type]
            window.ask("document.querySelector('details.turn').open = true")
            window.wait()
            window.picture(folder / f"audit-{width}-{theme}.png", height=1300 if width > 1000 else 2000)


def main() -> None:
    """Run the script, write the page, and take pictures if a folder for them is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="the folder for pictures of the page")
    asked = parser.parse_args()
    logging.getLogger("safi_agent").setLevel(logging.CRITICAL)  # some audits fail by design
    folder = Path(tempfile.mkdtemp(prefix="safi-"))
    log, store = folder / "saf-spirit-log.json", f"sqlite:///{folder}/safi.db"
    play(log, store, asked.turns, asked.seed)
    found = write_page(log, folder / "audit.html", seal=verified_seal(log, store))
    print(f"{folder / 'audit.html'}: {found.turns} turns, {found.flagged} to review.")
    if asked.pictures:
        pictures(folder / "audit.html", asked.pictures)


if __name__ == "__main__":
    main()
