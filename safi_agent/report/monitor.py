"""A hook that logs every turn to a W&B run."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from safi_agent.hooks import Alert

INSTALL = 'SpiritMonitor needs wandb: pip install "sal-lightning[wandb]".'


class SpiritMonitor:
    """Logs each committed turn under ``safi/``: ``create_safi_chain(hooks=[SpiritMonitor(run)])``.

    ``turns`` is the x-axis of all other metrics. ``spirit`` is in [1, 10], ``drift`` in [0, 1], ``mu/<value>`` is the
    long-term profile; ``refusals`` and ``failed`` (audits) are counted since the monitor was created; ``lag`` is the
    time from the prompt to the end of the audit in seconds, to within one second, the resolution of a record's
    timestamp. A figure that a turn does not have is not logged.

    A turn whose hooks are called again after a crash is counted again. Errors of the monitor do not affect the turn.

    Args:
        run: the W&B run; by default the active run, ``wandb.run``.
        key: log only turns of this memory key, under ``safi/<key>/``. By default all turns are logged, and ``mu`` is
            the profile of the turn's key.

    Raises:
        ImportError: no ``run`` is given and wandb is not installed.
        ValueError: no ``run`` is given and none is active.
    """

    every_turn = True

    def __init__(self, run: Any = None, key: str | None = None) -> None:
        self._run = _active() if run is None else run
        self.key = key
        self._prefix = "safi/" if key is None else f"safi/{key}/"
        self._counts = {"turns": 0, "refusals": 0, "failed": 0}
        self._lock = threading.Lock()  # hooks of different memory keys run concurrently
        self._run.define_metric(f"{self._prefix}turns")
        self._run.define_metric(f"{self._prefix}*", step_metric=f"{self._prefix}turns")

    def __call__(self, alert: Alert) -> None:
        """Log a turn; alerts of other kinds are ignored, because the figures of the turn include them."""
        record = alert.record
        if alert.kind != "turn" or self.key not in (None, record["memoryKey"]):
            return
        with self._lock:
            self._counts["turns"] += 1
            self._counts["refusals"] += record["willDecision"] == "violation"
            self._counts["failed"] += record["auditStatus"] == "failed"
            metrics = {**self._counts, **figures(record, datetime.now(UTC))}
            self._run.log({f"{self._prefix}{name}": figure for name, figure in metrics.items()})


def figures(record: Mapping[str, Any], now: datetime) -> dict[str, float]:
    """The figures of a record; empty without an audit.

    >>> figures({"timestamp": "2026-03-01T08:00:00Z", "auditStatus": "none"}, datetime(2026, 3, 1, 8, tzinfo=UTC))
    {}
    """
    if record["auditStatus"] == "none":
        return {}
    metrics = {"spirit": record["spiritScore"], "drift": record["drift"]}
    metrics |= {f"mu/{value}": mean for value, mean in record["mu"].items()}
    metrics["lag"] = max(0.0, (now - datetime.fromisoformat(record["timestamp"])).total_seconds())
    return {name: figure for name, figure in metrics.items() if figure is not None}


def _active() -> Any:
    try:
        import wandb
    except ImportError:
        raise ImportError(INSTALL) from None
    if wandb.run is None:
        raise ValueError("run: expected a W&B run, got none, and no run is active. Call wandb.init() first.")
    return wandb.run
