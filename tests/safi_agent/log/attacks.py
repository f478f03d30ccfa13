"""What can be done to a log by who has no key."""

import random
from collections.abc import Callable

from safi_agent.log.hash_chain import Tip, erase_line, read_seal, seal
from tests.safi_agent.log.chains import chain, record

LOG = chain(40)
OTHER = chain(40, text="Another log of the same key.")
STRANGER = b"s" * 32
ATTACKS: dict[str, Callable[[random.Random, list[bytes]], list[bytes]]] = {}


def attack(name: str) -> Callable[[Callable[..., list[bytes]]], Callable[..., list[bytes]]]:
    def keep(work: Callable[..., list[bytes]]) -> Callable[..., list[bytes]]:
        ATTACKS[name] = work
        return work

    return keep


def unsealed(line: bytes) -> bytes:
    return line[: line.rindex(b', "line": ')] + b"}\n"


def resealed(line: bytes, tip: Tip, key: bytes = STRANGER) -> tuple[bytes, Tip]:
    return seal(unsealed(line).decode().rstrip("\n"), tip, key)


@attack("a line is edited")
def edit(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(len(log))
    return [*log[:i], log[i].replace(b"Question", b"Questiom"), *log[i + 1 :]]


@attack("a line is edited and signed with another key")
def edit_and_reseal(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(len(log))
    before = read_seal(log[i])
    assert before
    line, _ = resealed(log[i].replace(b"Question", b"Answer"), Tip(i, before.prev))
    return [*log[:i], line, *log[i + 1 :]]


@attack("the contents of a line are erased without a record of it")
def erase(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(len(log))
    return [*log[:i], erase_line(log[i]), *log[i + 1 :]]


@attack("a line is edited and its contents are erased")
def edit_and_erase(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(len(log))
    return [*log[:i], erase_line(log[i].replace(b"Question", b"Questiom")), *log[i + 1 :]]


@attack("the `mac` of a line is removed")
def strip(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(len(log))
    return [*log[:i], unsealed(log[i]), *log[i + 1 :]]


@attack("a line is replaced by a line of another log with the same key")
def splice(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(1, len(log))
    return [*log[:i], OTHER[i], *log[i + 1 :]]


@attack("the rest is replaced by lines of another log with the same key")
def splice_rest(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(1, len(log))
    return [*log[:i], *OTHER[i:]]


@attack("a line is inserted")
def insert(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(len(log) + 1)
    return [*log[:i], rng.choice([record(99).encode() + b"\n", b"\n", b"{}\n", OTHER[5]]), *log[i:]]


@attack("a line is repeated")
def repeat(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i, j = sorted((rng.randrange(len(log)), rng.randrange(len(log))))
    return [*log[: j + 1], log[i], *log[j + 1 :]]


@attack("two lines are swapped")
def swap(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i, j = rng.sample(range(len(log)), 2)
    log[i], log[j] = log[j], log[i]
    return log


@attack("lines are reordered")
def shuffle(rng: random.Random, log: list[bytes]) -> list[bytes]:
    return rng.sample(log, len(log))


@attack("lines in the middle are deleted")
def delete(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i, j = sorted(rng.sample(range(1, len(log)), 2))
    return [*log[:i], *log[j:]]


@attack("lines at the beginning are deleted")
def behead(rng: random.Random, log: list[bytes]) -> list[bytes]:
    return log[rng.randrange(1, len(log)) :]


@attack("lines at the end are deleted")
def truncate(rng: random.Random, log: list[bytes]) -> list[bytes]:
    return log[: rng.randrange(len(log))]


@attack("the last line is cut off in the middle")
def tear(rng: random.Random, log: list[bytes]) -> list[bytes]:
    return [*log[:-1], log[-1][: rng.randrange(1, len(log[-1]))]]


@attack("the log is edited and chained again from there with another key")
def rechain(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(len(log))
    before = read_seal(log[i])
    assert before
    made, tip = log[:i], Tip(i, before.prev)
    for line in log[i:]:
        sealed, tip = resealed(line.replace(b"Question", b"Answer"), tip)
        made.append(sealed)
    return made


@attack("the `mac` of every line is removed")
def strip_all(rng: random.Random, log: list[bytes]) -> list[bytes]:
    return [unsealed(line) for line in log]


@attack("the log is emptied")
def empty(rng: random.Random, log: list[bytes]) -> list[bytes]:
    return []
