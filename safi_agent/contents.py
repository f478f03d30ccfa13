"""The contents of a turn, and their erasure.

Contents are what people, models and tools wrote: prompt, draft, answer, reasons, and the caller's metadata. The record
of a turn ends with a random ``salt``. Erasure makes each content empty and replaces the salt by ``erased``, the SHA-256
of the whole record before. The log seals the record *after* erasure, whether it is erased or not: so an erased line has
the same MAC and the same leaf in the tree as before, and a line that is not erased is sealed with its contents through
``erased``. Without the salt, nobody can find the contents by trying texts.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

IN_RECORD = ("userPrompt", "intellectDraft", "intellectReflection", "finalOutput", "willReflection", "metadata")
_METADATA = ', "metadata": {'  # the last key before the salt
_TEXT = re.compile(rf'("(?:{"|".join(IN_RECORD[:-1])}|reason)": )"[^"\\]*(?:\\.[^"\\]*)*"')
# ``asked`` is a hash of the request without a salt.
IN_BODY = ("prompt", "context", "metadata", "draft", "reflection", "reason", "final", "toolCalls", "asked")
SALT_BYTES = 33  # '"salt": "…"' is as long as '"erased": "…"', so that no record is longer after its erasure
_SALTED = re.compile(r', "salt": "[0-9a-f]{66}"\}')
_ERASED = re.compile(r', "erased": (?:null|"[0-9a-f]{64}") *\}\Z')
_ERASURE, _HEAD = '", "erasedTurns": [', 100  # the second key of such a record, and characters in which it begins
_LENGTH = len(', "salt": ""}') + 2 * SALT_BYTES


def new_salt() -> str:
    """A random salt, in hex."""
    return secrets.token_hex(SALT_BYTES)


def has_contents(record: str) -> bool:
    """Whether the record, in JSON, has contents that can be erased: it ends with a salt."""
    return _SALTED.fullmatch(record[-_LENGTH:]) is not None


def is_erased(record: str) -> bool:
    """Whether the contents of the record, in JSON, were erased; there may be spaces before its end."""
    return _ERASED.search(record) is not None


def had_contents(record: str) -> bool:
    """Whether the record, in JSON, had contents when it was written to the log, and they were erased."""
    return is_erased(record) and not record.rstrip(" }").endswith("null")


def erased_turns(record: str) -> list[str]:
    """The ids of the turns whose erasure this record records, in JSON; empty for any other record."""
    if _ERASURE not in record[:_HEAD]:
        return []
    try:
        ids = json.loads(record)["erasedTurns"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return [turn_id for turn_id in ids if isinstance(turn_id, str)] if isinstance(ids, list) else []


def erase_record(record: str) -> str:
    """The record, in JSON, after the erasure of its contents. It is not longer than before.

    Bytes are replaced, and nothing is parsed and written again: so the result does not depend on how numbers are
    formatted. Quotation marks within a text are escaped in JSON, so that no text is taken for the name of a content.

    Raises:
        ValueError: it is not a record with contents.
    """
    if not has_contents(record):
        raise ValueError("expected a record that ends with a salt")
    before, metadata, _ = record[:-_LENGTH].partition(_METADATA)
    kept = _TEXT.sub(r'\1""', before)
    return f'{kept}{metadata and _METADATA + "}"}, "erased": "{sha256(record.encode()).hexdigest()}"}}'


def erase_ledger(ledger: Any) -> Any:
    """A ledger without its reasons; anything else is returned as it is."""
    if not isinstance(ledger, list):
        return ledger
    return [{**row, **_emptied(row, ("reason",))} if isinstance(row, dict) else row for row in ledger]


def erase_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a turn in the store after the erasure of its contents."""
    kept = {name: item for name, item in body.items() if name != "salt"}
    return {**kept, **_emptied(kept, IN_BODY), "erased": True}


def _emptied(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An empty text or an empty object for those of these fields that have a content."""
    return {name: {} if isinstance(fields[name], dict) else "" for name in names if fields.get(name)}
