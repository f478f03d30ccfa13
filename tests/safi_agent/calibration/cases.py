"""Labelled answers for tests of calibration."""

from safi_agent.calibration.labels import Label


def labelled(count: int = 40) -> list[Label]:
    """Answers on Truth, every second of which is broken, two per prompt; a broken one says "wrong"."""
    return [
        Label(
            prompt=f"question {i // 2}",
            answer=f"a {'wrong' if i % 2 else 'right'} answer {i}",
            value="Truth",
            verdict="violation" if i % 2 else "approve",
        )
        for i in range(count)
    ]
