"""The store's anchor of a log, sealed with the log's key: write access to the store alone cannot move it.

``Anchor.key`` is ``ID.COUNT.SEAL``: the id of the key, how many turns of this store are in the log, and an HMAC-SHA256
in hex over the log's path, its size, its lines, its last mac and that count. If the log and the store are both restored
to an earlier state together, the anchor of that state is genuine again; this can only be detected with a copy that is
kept elsewhere.
"""

import hmac
import json
import re

from safi_agent.errors import LogError
from safi_agent.log.hash_chain import Tip
from safi_agent.log.key import key_id
from safi_agent.store import Anchor

_KEY = re.compile(r"([0-9a-f]{16})\.(0|[1-9]\d{0,17})\.([0-9a-f]{64})")
CHANGED = "the store's anchor of it was not made with the log's key: it was changed, or comes from an older version"


def make_anchor(log: str, size: int, tip: Tip, turns: int, key: bytes) -> Anchor:
    """The anchor of a log that ends with ``tip`` and contains ``turns`` turns of this store."""
    return Anchor(size, *tip, f"{key_id(key)}.{turns}.{_seal(log, size, tip, turns, key)}")


def anchor_key_id(anchor: Anchor) -> str:
    """The id of the key that an anchor names, sealed or not."""
    return str(anchor.key).partition(".")[0]


def sealed_turns(log: str, anchor: Anchor, key: bytes) -> int | None:
    """The number of the store's turns in the log; None if the anchor is not genuine."""
    if [type(part) for part in anchor] != [int, int, str, str] or (match := _KEY.fullmatch(anchor.key)) is None:
        return None  # SQLite accepts text in a numeric column
    turns, tip = int(match[2]), Tip(anchor.lines, anchor.mac)
    genuine = hmac.compare_digest(_seal(log, anchor.size, tip, turns, key), match[3])
    return turns if genuine and match[1] == key_id(key) else None


def checked_turns(log: str, anchor: Anchor, key: bytes) -> int:
    """The number of the store's turns in the log.

    Raises:
        LogError: the anchor was made with another key, or changed.
    """
    if anchor_key_id(anchor) != key_id(key):
        expected = anchor_key_id(anchor)
        raise LogError(
            f"expected the key with id {expected}, with which the log was begun, got one with id {key_id(key)}"
        )
    if (turns := sealed_turns(log, anchor, key)) is None:
        raise LogError(CHANGED)
    return turns


def _seal(log: str, size: int, tip: Tip, turns: int, key: bytes) -> str:
    content = json.dumps(["the end of a log", log, size, tip.lines, tip.mac, turns])  # no log line begins like this
    return hmac.digest(key, content.encode("ascii"), "sha256").hex()
