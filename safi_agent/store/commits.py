"""Prepare the commit of judged turns: pure functions from stored rows to the records and the memory after them."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from safi_agent.store.rows import AuditResult, Commit, JudgedTurn, Memory, PreparedBatch, ReadyBatch, ReadyTurn


def prepare_batch(batch: ReadyBatch, compute: Callable[[JudgedTurn, Memory], Commit]) -> PreparedBatch:
    """Compute the commit of a batch, outside of a transaction: ``Store.commit`` checks that it is still valid.

    Raises:
        Exception: any exception of ``compute``, or a turn cannot be parsed.
    """
    mu, mu_turn, scores = batch.memory
    before, moved = Memory(json.loads(mu), mu_turn, json.loads(scores)), None
    rows, records = [], {}
    for head in batch.heads:
        body: Any = json.loads(head.body) if isinstance(head.body, str) else head.body
        ledger: Any = json.loads(head.ledger) if isinstance(head.ledger, str) else head.ledger
        commit = compute(JudgedTurn(head.id, head.turn, body, ledger, head.error, head.values, head.judge), before)
        if commit.memory is not None:
            before, moved = commit.memory, commit.note
        rows.append({"of": head.id, "text": json.dumps(commit.record, allow_nan=False), **_new(head)})
        records[head.id] = commit.record
    after = None if moved is None else {**_memory(before), "note": moved}
    of_sets = {head.id: head.value_set for head in batch.heads}
    erased = frozenset(head.id for head in batch.heads if head.erased)
    return PreparedBatch(batch.key, rows, records, of_sets, after, erased)


def _new(head: ReadyTurn) -> dict[str, str | None]:
    """The parameters of an audit result that is not stored yet."""
    if head.ledger is None:
        return {"found": None, "why": head.error, "by": None}
    if isinstance(head.ledger, str):
        return {"found": None, "why": None, "by": None}
    return {"found": json.dumps(head.ledger, allow_nan=False), "why": None, "by": head.judge}


def result_parameters(turn_id: str, one: AuditResult) -> dict[str, str | None]:
    """The result of an audit as the parameters of an UPDATE."""
    return {"of": turn_id, "found": ledger_json(one.ledger), "why": one.error, "by": one.judge}


def ledger_json(ledger: Sequence[Mapping[str, Any]] | None) -> str | None:
    """A ledger as the store holds it."""
    return None if ledger is None else json.dumps(ledger, allow_nan=False)


def _memory(after: Memory) -> dict[str, Any]:
    return {"mu": json.dumps(after.mu), "mu_turn": after.mu_turn, "scores": json.dumps(after.scores)}


def judged_head(rows: Sequence[Any], results: Mapping[str, AuditResult]) -> list[Any]:
    """The leading rows that are judged."""
    return list(takewhile(lambda row: row.status == "judged" or row.id in results, rows))
