"""The seal of a line: what the page says, computed the plain way, and nothing else."""

import json

import pytest

from safi_agent.log.hash_chain import Tip, beginning, genuine, read_seal, seal
from tests.safi_agent.log.chains import KEY, chain, plain_faults


def test_a_chain_is_what_the_slow_twin_computes() -> None:
    assert plain_faults(chain(30), KEY) == []
    assert plain_faults(chain(30), b"x" * 32) == list(range(1, 31))


def test_the_record_is_left_as_it_is_and_the_seal_comes_last() -> None:
    line, tip = seal('{"a": "\\u2028", "mac": 1}', beginning(), KEY)
    assert list(json.loads(line, object_pairs_hook=list)) == [
        ("a", "\u2028"),
        ("mac", 1),
        ("line", 1),
        ("prev", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("mac", tip.mac),
    ]
    assert tip.lines == 1


def test_what_is_sealed_is_read_again() -> None:
    line, tip = seal('{"a": 1}', Tip(999_999, "0" * 64), KEY)
    found = read_seal(line)
    assert found == (1_000_000, "0" * 64, tip.mac)
    assert genuine(line, found, KEY)
    assert not genuine(line, found, KEY + b"k")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n", b"\r\n"),
        (b"\n", b""),
        (b'"line": 1', b'"line": 01'),
        (b'"line": 1', b'"line": "1"'),
        (b', "mac"', b',"mac"'),
        (b'"}\n', b'" }\n'),
        (b'"}\n', b'"}\n\n'),
        (b"sha256:", b"sha512:"),
    ],
)
def test_a_seal_that_is_written_otherwise_is_none(old: bytes, new: bytes) -> None:
    line, _ = seal('{"a": 1}', beginning(), KEY)
    assert read_seal(line)
    assert read_seal(line.replace(old, new)) is None


def test_a_mac_in_capitals_is_none() -> None:
    line, tip = seal('{"a": 1}', beginning(), KEY)
    assert read_seal(line.replace(tip.mac.encode(), tip.mac.upper().encode())) is None
