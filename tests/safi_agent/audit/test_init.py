"""Which branch a store gets."""

from pathlib import Path
from typing import Any

import pytest


def test_workers_need_a_shared_store(make: Any, tmp_path: Path) -> None:
    for store in (f"sqlite:///{tmp_path}/safi.db", None):
        with pytest.raises(ValueError, match="audit_mode: expected 'in_process' with this store, got 'worker'"):
            make(store=store, audit_mode="worker")
