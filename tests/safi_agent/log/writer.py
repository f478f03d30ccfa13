"""A process that does nothing but write on a log, with small files, until it is killed."""

import itertools
import os
from collections.abc import Callable

from safi_agent.log import flush
from safi_agent.store import Commit, open_store


def work(folder: str, say: Callable[[int], object]) -> None:
    store, log = open_store(f"sqlite:///{folder}/safi.db"), f"{folder}/log.json"
    store.save_values("v", "{}")
    for i in itertools.count():
        for n in range(3):
            body = {"id": f"{os.getpid()}-{i}-{n}", "key": str(os.getpid()), "valueSet": "s"}
            store.add_turn(body, "v", log, audit=False)
        store.commit_ready([str(os.getpid())], lambda row, before: Commit({"turnId": row.id, "text": "x" * 200}, None))
        flush(store, log, 3000)
        say(i)
