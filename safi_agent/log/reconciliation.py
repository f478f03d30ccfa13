"""Compare a log with its key, with the anchor in the store and with the rows of its turns."""

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from safi_agent.contents import has_contents, is_erased
from safi_agent.errors import LogError
from safi_agent.log.anchors import CHANGED, anchor_key_id, sealed_turns
from safi_agent.log.hash_chain import Seal, genuine, is_line_of, read_seal, record_of
from safi_agent.log.key import key_id
from safi_agent.log.rotation import lines, log_files
from safi_agent.log.verify import MOST_FAULTS, Fault, Verdict, verify
from safi_agent.record import LOCAL_JUDGE
from safi_agent.store import Anchor, Store
from safi_agent.store.log_account import WRONG, LogAccount, read_anchors, read_rows, read_turns_at

AT_ONCE = 200  # turns per query
MOST_MISSING = 20
# The field of a record for each field of a turn's body.
SAME = {
    "id": "turnId",
    "key": "memoryKey",
    "time": "timestamp",
    "prompt": "userPrompt",
    "draft": "intellectDraft",
    "reflection": "intellectReflection",
    "final": "finalOutput",
    "decision": "willDecision",
    "reason": "willReflection",
    "valueSet": "valueSet",
}


class Compared(NamedTuple):
    """The differences between a log and its store.

    ``foreign`` counts lines of turns unknown to the store, ``waiting`` turns that are not written yet, and ``kept``
    lines with contents that were erased in the store.
    """

    faults: tuple[Fault, ...]
    foreign: int
    waiting: int
    kept: int


class _Line(NamedTuple):
    """A line that was written with the key, or before the chain began (then ``seal`` is None)."""

    file: str
    at: int
    text: bytes
    seal: Seal | None
    record: Mapping[str, Any]


def compare(log: str | Path, key: bytes, store: Store, account: LogAccount, *, whole: bool = True) -> Compared:
    """Read a log once more and compare each line with its row in the store.

    Args:
        log: its path.
        key: the key it was written with; lines that were not are left to ``verify``.
        store: the store that wrote it.
        account: the store's account of the log, read before the log.
        whole: whether all lines are expected, so that turns of the store without a line are reported.
    """
    written, waiting = _Places(account.written), set(account.waiting)
    faults: list[Fault] = []
    foreign = kept = 0
    for batch in _batches(log, key):
        rows = read_rows(store, [line.record["turnId"] for line in batch])
        for line in batch:
            if (row := rows.get(line.record["turnId"])) is None:
                foreign += 1
                continue
            if not written.mark_found(row.place):
                what = f"turn {line.record['turnId']!r} is in the log more than once"
                faults.append(Fault(line.file, line.at, what))
            waiting.discard(row.place)
            faults += [Fault(line.file, line.at, what) for what in _differences(line, row)]
            kept += row.erased == 1 and has_contents(record_of(line.text))
    if whole:
        faults += _missing(log, store, account, written)
    return Compared(tuple(faults), foreign, len(waiting), kept)


def find_other_path(store: Store, log: str, key: bytes) -> tuple[str, Anchor] | None:
    """The path and anchor under which the store wrote the lines of this log; None if it wrote none.

    If there are several, the longest one with a genuine anchor.
    """
    paths: set[str] = set()
    for batch in _batches(log, key):
        rows = read_rows(store, [line.record["turnId"] for line in batch if line.seal])
        paths |= {row.log for row in rows.values() if row.logged and row.log and row.log != log}
    by_path = read_anchors(store, paths)
    genuine_lines = {
        path: anchor.lines for path, anchor in by_path.items() if sealed_turns(path, anchor, key) is not None
    }
    return max(by_path.items(), key=lambda one: genuine_lines.get(one[0], -1), default=None)


def _batches(log: str | Path, key: bytes) -> Iterator[list[_Line]]:
    records = _lines(log, key)
    while batch := list(islice(records, AT_ONCE)):
        yield batch


def _lines(log: str | Path, key: bytes) -> Iterator[_Line]:
    for path in log_files(log):
        with path.open("rb") as file:
            for at, text in enumerate(lines(file), 1):
                seal = read_seal(text)
                if (seal is None or genuine(text, seal, key)) and (record := _record(text)) is not None:
                    yield _Line(str(path), at, text, seal, record)


def _record(text: bytes) -> Mapping[str, Any] | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    turn_id = record.get("turnId") if isinstance(record, dict) else None
    # Only such ids can be in the database.
    return record if isinstance(turn_id, str) and turn_id.isprintable() else None


def _differences(line: _Line, row: Any) -> Iterator[str]:
    """The differences between a line and its row."""
    named = f"turn {line.record['turnId']!r} in the store"
    try:
        if row.status != "done" or row.place is None:
            yield f"{named} is not committed, but the log contains it"
        elif line.seal and not is_line_of(row.record, line.seal, line.text):
            yield f"{named} has a different record than the log"
        elif row.erased != 1 and is_erased(record_of(line.text)):
            yield f"{named} has contents that were erased in the log"
        elif changed := _changed(json.loads(row.record) if row.erased == 1 else line.record, row):
            yield f"{named} has another {', '.join(changed)} than the log"
    except WRONG as error:
        yield f"{named} cannot be read ({type(error).__name__})"


def _changed(record: Mapping[str, Any], row: Any) -> list[str]:
    """The names of fields that differ between row and record."""
    body = json.loads(row.body)
    changed = [name for name, there in SAME.items() if name in body and there in record and body[name] != record[there]]
    if (record.get("turn", row.turn), record.get("memoryKey", row.key)) != (row.turn, row.key):
        changed.append("number")
    ledger = list(record.get("conscienceLedger") or ())
    if ledger and LOCAL_JUDGE in record:
        ledger.append({LOCAL_JUDGE: record[LOCAL_JUDGE]})
    if ledger and json.loads(row.ledger or "null") != ledger:
        changed.append("ledger")
    return changed


class _Places:
    """Commit positions of turns, with a mark for those that were found in the log."""

    def __init__(self, places: "array[int]") -> None:
        self._places, self._is_found = places, bytearray(len(places))

    def mark_found(self, place: object) -> bool:
        """Mark the turn at this position as found; returns whether it was not found before."""
        if not isinstance(place, int):
            return True
        at = bisect_left(self._places, place)
        while at < len(self._places) and self._places[at] == place and self._is_found[at]:
            at += 1  # two turns at one position: two processes committed at once
        if at < len(self._places) and self._places[at] == place:
            self._is_found[at] = 1
            return True
        return at == 0 or self._places[at - 1] != place

    def missing(self) -> Iterator[int]:
        """The positions that were not found."""
        return (place for place, met in zip(self._places, self._is_found, strict=True) if not met)


def _missing(log: str | Path, store: Store, account: LogAccount, written: _Places) -> Iterator[Fault]:
    places = list(islice(written.missing(), MOST_MISSING))
    for row in read_turns_at(store, account.log, places) if places else []:
        yield Fault(
            str(log), 0, f"turn {row.turn} of {row.key!r} ({row.id}) was written according to the store, but is missing"
        )


NO_LOG = Verdict((), 0, 0, 0, None)


class Checked(NamedTuple):
    """The verdict, with the faults of the store among its own; the anchor, if it is genuine.

    ``foreign`` counts lines of turns that the store does not have, ``waiting`` turns that were committed and are not in
    the log yet, and ``kept`` lines with contents that are erased in the store.
    """

    verdict: Verdict
    anchor: Anchor | None
    foreign: int
    waiting: int
    kept: int


def check(log: str | Path, key: bytes, store: Store, account: LogAccount, first: int = 1) -> Checked:
    """Verify a log, and compare it with the store that wrote it.

    Args:
        log: its path; full files are found beside it.
        key: the key it was written with.
        store: the store that wrote it.
        account: the store's account of the log, read before the log (``read_log_account``).
        first: number of the first line, if earlier files were moved away.

    Raises:
        FileNotFoundError: the log does not exist, and the store does not expect one.
        LogError: the store's anchor was made with another key.
    """
    anchor, anchor_faults = _anchor(account, key)
    log_missing = anchor is None and account.written and not log_files(log)
    verdict = NO_LOG if log_missing else verify(log, key, anchor, first)
    # Missing turns are not reported if the chain already misses lines, or if files are elsewhere.
    compared = compare(log, key, store, account, whole=first == 1 and not verdict.faulty)
    named = {fault[:2] for fault in verdict.faults}  # report each line once
    more = [Fault(str(log), 0, what) for what in (*anchor_faults, *account.wrong)]
    more += [fault for fault in compared.faults if fault[:2] not in named]
    faults, faulty = [*verdict.faults, *more], verdict.faulty + len(more)
    return Checked(
        verdict._replace(faults=tuple(faults[:MOST_FAULTS]), faulty=faulty),
        anchor,
        compared.foreign,
        compared.waiting,
        compared.kept,
    )


def _anchor(account: LogAccount, key: bytes) -> tuple[Anchor | None, list[str]]:
    """The anchor if it is genuine, and its faults."""
    anchor, written = account.anchor, len(account.written)
    if anchor is None:
        return None, [
            f"the store has {written:,} turns in it and no anchor of it: the anchor was deleted"
        ] if written else []
    if anchor_key_id(anchor) != key_id(key):
        raise LogError(
            f"expected the key with id {anchor_key_id(anchor)}, with which the log was written, got {key_id(key)}."
        )
    if (sealed := sealed_turns(account.log, anchor, key)) is None:
        return None, [CHANGED]
    if sealed != written:
        return anchor, [
            f"the store has {written:,} turns in it, but the sealed anchor counts {sealed:,}: "
            "rows were deleted or changed"
        ]
    return anchor, []
