"""A hook that draws every turn in a run of W&B."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from safi_agent.hooks import Alert

INSTALL = 'The monitor needs wandb: pip install "sal-lightning[wandb]".'


class SpiritMonitor:
    """Logs each turn once it is committed, under ``safi/``; ``create_safi_chain(hooks=[SpiritMonitor(run)])``.

    ``turns`` is the axis of all others. ``spirit`` is in [1, 10], ``drift`` in [0, 1], ``mu/<value>`` is the long-term
    profile; ``refusals`` and ``failed`` (audits) are counted since the monitor was made; ``lag`` is in seconds from the
    prompt to the end of the audit, within one, because records tell the second. A turn without a figure logs none.

    A turn whose hooks are called again after a crash is counted again. A monitor that fails harms nothing.

    Args:
        run: where to log; by default the run that ``wandb.init`` began.
        key: only turns of this memory key, under ``safi/<key>/``; by default all, and ``mu`` is that of the turn's key.

    Raises:
        ImportError: there is no ``run`` and wandb is not installed.
        ValueError: there is no ``run`` and none was begun.
    """

    every_turn = True

    def __init__(self, run: Any = None, key: str | None = None) -> None:
        self._run = _active() if run is None else run
        self.key = key
        self._prefix = "safi/" if key is None else f"safi/{key}/"
        self._counts = {"turns": 0, "refusals": 0, "failed": 0}
        self._lock = threading.Lock()  # turns of several memory keys end side by side
        self._run.define_metric(f"{self._prefix}turns")
        self._run.define_metric(f"{self._prefix}*", step_metric=f"{self._prefix}turns")

    def __call__(self, alert: Alert) -> None:
        """Log a turn; of what it raises its figures tell already."""
        record = alert.record
        if alert.kind != "turn" or self.key not in (None, record["memoryKey"]):
            return
        with self._lock:
            self._counts["turns"] += 1
            self._counts["refusals"] += record["willDecision"] == "violation"
            self._counts["failed"] += record["auditStatus"] == "failed"
            told = {**self._counts, **figures(record, datetime.now(UTC))}
            self._run.log({f"{self._prefix}{name}": figure for name, figure in told.items()})


def figures(record: Mapping[str, Any], now: datetime) -> dict[str, float]:
    """What a record says in numbers; nothing where it says nothing.

    >>> figures({"timestamp": "2026-03-01T08:00:00Z", "auditStatus": "none"}, datetime(2026, 3, 1, 8, tzinfo=UTC))
    {}
    """
    if record["auditStatus"] == "none":
        return {}
    found = {"spirit": record["spiritScore"], "drift": record["drift"]}
    found |= {f"mu/{value}": mean for value, mean in record["mu"].items()}
    found["lag"] = max(0.0, (now - datetime.fromisoformat(record["timestamp"])).total_seconds())
    return {name: figure for name, figure in found.items() if figure is not None}


def _active() -> Any:
    try:
        import wandb
    except ImportError:
        raise ImportError(INSTALL) from None
    if wandb.run is None:
        raise ValueError("run: expected a run of W&B, or one that wandb.init() began, got none.")
    return wandb.run
