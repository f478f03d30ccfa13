"""A store with committed turns and the log that it writes."""

import json
from pathlib import Path

from safi_agent.log.key import find_key
from safi_agent.log.verify import Verdict, verify
from safi_agent.store import Commit, Store
from safi_agent.store.log_state import read_anchor


def fill(store: Store, path: str, *ids: str) -> None:
    store.save_values("v", "{}")
    for i in ids:
        body = {"id": i, "key": "k", "valueSet": "s", "text": "\u2028\ud800 ü"}
        store.add_turn(body, "v", path, audit=False)
    store.commit_ready(["k"], lambda row, before: Commit({"turnId": row.id, "text": row.body["text"]}, None))


def ids(path: str) -> list[str]:
    return [json.loads(line)["turnId"] for line in Path(path).read_bytes().splitlines()]


def verdict(store: Store | None, path: str) -> Verdict:
    key = find_key(path)
    assert key
    return verify(path, key, store and read_anchor(store, path))
