"""A process under load that waits to be killed. It notes each turn, with one write, once its answer is in hand."""

import asyncio
import json
import os
import sys
from pathlib import Path

from safi_agent import create_safi_chain
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, approve

SCORES = (-1, 0, 0.5, 1)


def judged(text: str) -> str:
    """A ledger that differs from turn to turn, so that the order of commits shows in μ."""
    n = sum(map(ord, text.partition("<user_prompt>")[2].partition("</user_prompt>")[0]))
    rows = [
        {"value": v.name, "score": SCORES[(n + 3 * i) % 4], "confidence": 0.25 + (n % 4) / 8, "reason": str(n)}
        for i, v in enumerate(THREE.values)
    ]
    return json.dumps({"ledger": rows})


def ruled(text: str) -> str:
    return VIOLATION if "0?" in text else approve()


def model(delay: float = 0.004) -> Fake:
    return Fake(will=ruled, conscience=judged, delay=delay / 2, audit_delay=delay)


async def work(folder: Path, turns: int) -> None:
    safi = create_safi_chain(model(), THREE, store=f"sqlite:///{folder}/safi.db", log=folder / "log.json")
    seen = os.open(folder / "seen", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def lane(name: str) -> None:
        for i in range(turns):
            key = f"k{(i + ord(name)) % 2}"
            answer = await safi.ainvoke(f"{name}{i}?", {"configurable": {"safi_key": key}})
            told = answer.response_metadata["safi"]
            os.write(seen, f"{told['turnId']} {told['willDecision']}\n".encode())

    await asyncio.gather(*map(lane, "abcdef"))
    safi.close()


if __name__ == "__main__":
    print("up", flush=True)
    asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2])))
