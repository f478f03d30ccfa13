"""Sampling of audits: which answers are audited, with the reason for the record."""

import hmac
import re
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from safi_agent.fork_safety import ForkSafeLock, Stage

Reason = Literal["all", "drawn", "novel", "shadow", "not_drawn", "tool_calls", "refused", "no_draft"]
MOST_WORDS = 256  # distinct words of a prompt that are compared
DRAW_BYTES = 6  # of a draw, so that a float represents it exactly
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Sampling:
    """Which answers are audited: a share of all, drawn at random, and each answer to a novel prompt.

    The draw is HMAC-SHA256 of the turn's id under a key of the store: a caller cannot choose it, a repeated turn has
    the same, and who has the store can compute it again. An answer that the Will refused and that leaves in shadow mode
    is always audited.

    Raises:
        TypeError, ValueError: an argument is not allowed, or nothing would be audited.
    """

    share: float = 1.0  #: in [0, 1]; the default audits every answer
    #: in (0, 1]; a prompt is novel if its similarity to each prompt in the window is below this; None: none is
    novel_below: float | None = None
    window: int = 500  #: number of last prompts of the chain with which a prompt is compared, 1 to 10,000

    def __post_init__(self) -> None:
        if not _is_number(self.share) or not 0 <= self.share <= 1:
            raise ValueError(f"share: expected a number in [0, 1], got {self.share!r}.")
        if self.novel_below is not None and (not _is_number(self.novel_below) or not 0 < self.novel_below <= 1):
            raise ValueError(f"novel_below: expected None or a number in (0, 1], got {self.novel_below!r}.")
        if not self.share and self.novel_below is None:
            raise ValueError("share: expected a number above 0 without novel_below, got 0: nothing would be audited.")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or not 1 <= self.window <= 10_000:
            raise ValueError(f"window: expected a whole number from 1 to 10,000, got {self.window!r}.")

    @property
    def audits_all(self) -> bool:
        """Whether every answer is audited."""
        return self.share == 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


EVERY_ANSWER = Sampling()


class AuditChoice(NamedTuple):
    """Whether a turn is audited, and why; ``figures`` are those that decided, empty if nothing was sampled."""

    audited: bool
    reason: Reason
    figures: Mapping[str, float] = {}


TOOL_CALLS = AuditChoice(False, "tool_calls")  # a step, not an answer; the answer after it is audited with the results
REFUSED = AuditChoice(False, "refused")
NO_DRAFT = AuditChoice(False, "no_draft")


def is_audited(reason: str) -> bool:
    """Whether a turn with this reason in its record is audited."""
    return reason in ("all", "drawn", "novel", "shadow")


def draw(key: str, turn_id: str) -> float:
    """The draw of a turn, in [0, 1): the first 48 bits of HMAC-SHA256(key, turn id), as a fraction."""
    digest = hmac.digest(key.encode(), turn_id.encode(errors="replace"), sha256)
    return int.from_bytes(digest[:DRAW_BYTES]) / float(1 << 8 * DRAW_BYTES)


class Sampler:
    """Decides for each answer that leaves whether it is audited.

    Args:
        sampling: the policy.
        key: the key of draws.
    """

    def __init__(self, sampling: Sampling, key: str) -> None:
        self._sampling, self._key = sampling, key
        self._recent = None if sampling.novel_below is None else RecentPrompts(sampling.window)

    def choose(self, turn_id: str, prompt: str, *, refused: bool) -> AuditChoice:
        """Whether an answer is audited; ``refused`` says that it leaves in shadow mode only."""
        if self._sampling.audits_all:
            return AuditChoice(True, "all")
        drawn = draw(self._key, turn_id)
        figures = {"share": self._sampling.share, "draw": drawn}
        is_novel = False
        if self._recent is not None and self._sampling.novel_below is not None:
            similarity = self._recent.add(prompt)
            is_novel = similarity < self._sampling.novel_below
            figures |= {"novelBelow": self._sampling.novel_below, "similarity": similarity}
        if drawn < self._sampling.share:  # first, so that drawn turns are a random sample of all
            return AuditChoice(True, "drawn", figures)
        if refused:
            return AuditChoice(True, "shadow", figures)
        return AuditChoice(is_novel, "novel" if is_novel else "not_drawn", figures)


class RecentPrompts:
    """The words of the last prompts, as hashes, with an index from words to prompts. Thread-safe.

    Similarity is the share of words in both prompts among those in either (Jaccard 1901), regardless of case and order.
    Of a prompt with more than ``MOST_WORDS`` distinct words those with the smallest hashes are compared, which are the
    same words in other prompts. A text without spaces between words is one word.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._prompts: deque[frozenset[int]] = deque()
        self._first = 0  # number of the oldest prompt
        self._index: dict[int, set[int]] = {}
        self._lock = ForkSafeLock(Stage.STORE)

    def add(self, prompt: str) -> float:
        """The largest similarity of this prompt to one in the window, in [0, 1]; it is then added to the window."""
        words = frozenset(sorted({hash(word) for word in _WORD.findall(prompt.casefold())})[:MOST_WORDS])
        with self._lock.lock:
            shared: Counter[int] = Counter()
            for word in words:
                shared.update(self._index.get(word, ()))
            similarity = max((self._jaccard(words, number, count) for number, count in shared.items()), default=0.0)
            self._remember(words)
        return similarity

    def _jaccard(self, words: frozenset[int], number: int, shared: int) -> float:
        return shared / (len(words) + len(self._prompts[number - self._first]) - shared)

    def _remember(self, words: frozenset[int]) -> None:
        if len(self._prompts) == self._window:
            for word in self._prompts.popleft():
                numbers = self._index[word]
                numbers.discard(self._first)
                if not numbers:
                    del self._index[word]
            self._first += 1
        for word in words:
            self._index.setdefault(word, set()).add(self._first + len(self._prompts))
        self._prompts.append(words)


def record_fields(choice: AuditChoice) -> dict[str, Any]:
    """The fields of a turn's body and record."""
    return {"auditReason": choice.reason, **({"sampling": dict(choice.figures)} if choice.figures else {})}
