"""Processes that write on one log and are killed leave one chain, with each line once."""

import json
import os
import random
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from safi_agent.log import flush
from safi_agent.log.key import find_key
from safi_agent.log.reconciliation import check
from safi_agent.log.rotation import log_files
from safi_agent.log.tree_files import index_file, rebuild_tree, tree_file
from safi_agent.log.verify_signed import verify_signed
from safi_agent.store import open_store
from safi_agent.store.log_account import read_log_account
from safi_agent.store.log_state import read_anchor, read_unlogged
from tests import forked
from tests.safi_agent.log.signed_logs import SIGNER
from tests.safi_agent.log.writer import work

pytestmark = pytest.mark.slow

MOMENTS = int(os.environ.get("SAFI_KILLS", "10")) // 10


def start(folder: Path) -> tuple[BaseProcess, "Connection[int, int]"]:
    said, say = forked.CONTEXT.Pipe(duplex=False)
    return forked.start(work, str(folder), say.send), said


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", range(MOMENTS))
def test_writers_killed_at_random_moments_leave_one_chain_over_many_files(
    seed: int, signed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if signed:
        monkeypatch.setenv("SAFI_SIGNING_KEY", SIGNER.encode())
    rng, log = random.Random(seed), tmp_path / "log.json"
    writers = [start(tmp_path) for _ in range(3)]
    for _, said in writers:
        assert said.poll(60)
        assert said.recv() == 0
    for process, said in writers:
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
        said.close()
    store = open_store(f"sqlite:///{tmp_path}/safi.db")
    flush(store, str(log), 3000)  # what the last writer left; where it was killed between two, that is nothing
    key, anchor = find_key(log), read_anchor(store, str(log))
    assert key
    assert anchor
    assert len(log_files(log)) > 2
    checked = check(log, key, store, read_log_account(store, str(log)))
    verdict = checked.verdict
    assert (verdict.faults, checked.foreign, checked.waiting) == ((), 0, 0)
    written = [json.loads(line)["turnId"] for file in log_files(log) for line in file.read_bytes().splitlines()]
    assert len(set(written)) == len(written) == verdict.lines == anchor.lines
    assert not read_unlogged(store, str(log))[1]
    if signed:
        assert verify_signed(log, [SIGNER.public]).verdict[:3] == ((), 0, verdict.lines)
        tree, _ = rebuild_tree(log, verdict.lines)
        assert (tree_file(log).read_bytes(), index_file(log).read_bytes()) == (tree.nodes, tree.entries)
