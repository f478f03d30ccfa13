"""Patterns mean what they mean to Python's ``re``, which is the oracle here, and a search ends."""

import random
import re
import time
import warnings

import pytest
import regex

from safi_agent import Value, ValueSet, load_values
from safi_agent.patterns import compiled, search
from safi_agent.values.linting import lint

LETTERS = [*"ab e_-1{}[]#.:&|~,<>=", "\u0131", "\u0130", "\u00e9", "\u0301", "\U0001f170", "\u00b9", "\u0903", "\u200d"]
LETTERS += ["\u00df", "\u017f", "\u212a", "k", "s", "\n", "\u203f"]
ATOMS = [
    r"\w",
    r"\W",
    r"\s",
    r"\S",
    r"\d",
    r"\D",
    r"\b",
    r"\B",
    ".",
    "^",
    "$",
    r"\A",
    r"\Z",
    r"\.",
    r"\{",
    r"\[",
    r"\\",
]
ATOMS += [r"\N{BULLET}", "(?#c{e}[)", r"\x41"]
IN_SETS = [r"\w", r"\W", r"\s", r"\d", "a-c", "[", ":alpha:", r"\]", r"\b", "&&", "--", "||", "~~", "[:alpha:]", "{e}"]
COUNTS = [
    "",
    "",
    "",
    "*",
    "+",
    "?",
    "{2}",
    "{,2}",
    "{1,}",
    "{1,2}",
    "{e}",
    "{}",
    "{,}",
    "{e<=1}",
    "{i}",
    "*?",
    "+?",
    "{a",
]
COUNTS += ["{1,2", "{1:e}", "{s<=2:[a]}"]
GROUPS = ["(%s)", "(?:%s)", "(?=%s)", "(?!%s)", "(?i:%s)", "(?>%s)", "(?P<n>%s)", "(?-i:%s)", "(?s:%s)"]


def made(chance: random.Random, depth: int = 2) -> str:
    """A pattern; many are none."""
    parts = []
    for _ in range(chance.randint(1, 4)):
        kind = chance.random()
        if kind < 0.4:
            part = re.sub("[\u0131\u0130]", "a", chance.choice(LETTERS))
        elif kind < 0.65:
            part = chance.choice(ATOMS)
        elif kind < 0.8 or not depth:
            inner = [chance.choice([chance.choice("ab_1.]\u00e9\u0301"), chance.choice(IN_SETS)]) for _ in range(3)]
            part = f"[{chance.choice(['', '^'])}{''.join(inner)}]"
        else:
            part = chance.choice(GROUPS) % made(chance, depth - 1)
        parts.append(part + chance.choice(COUNTS))
    return chance.choice(["", "", "|"]).join(parts)


@pytest.mark.slow
def test_patterns_are_found_where_re_finds_them() -> None:
    chance, compared, patterns = random.Random(7), 0, 0
    while patterns < 1000:
        pattern = chance.choice(["", "", "(?i)", "(?a)", "(?m)", "(?s)", "(?x)"]) + made(chance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            try:
                right = re.compile(pattern)
            except re.error:
                with pytest.raises(ValueError, match=r"."):
                    compiled(pattern)
                continue
            ours = compiled(pattern)
        patterns += 1
        for _ in range(5):
            text = "".join(chance.choices(LETTERS, k=chance.randint(1, 8)))
            assert bool(ours.search(text)) == bool(right.search(text)), (pattern, text)
            compared += 1
    assert compared == 5000


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"\bguaranteed\b", "guaranteed\u0301"),
        (r"\bguaranteed\b", "\U0001f170guaranteed\U0001f170"),
        (r"g[\W_]*u", "g\u0301\u200d_u"),
        (r"no\sharm", "no\x1fharm"),
        (r"(?i)k\u0131l\u0131\u00e7", "KILI\u00c7"),
        (r"a{e}", "a{e}"),
        (r"[[:alpha:]]", "a]"),
        ("(?x)guaranteed # [\n\\b # ]", "guaranteed\u0301"),
    ],
)
def test_where_the_libraries_differ_it_is_as_in_re(pattern: str, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert re.search(pattern, text)
        assert compiled(pattern).search(text)
    assert not re.search(r"a{e}", "b")
    assert not compiled(r"a{e}").search("b")
    assert regex.search(r"a{e}", "b"), "the difference is there"


@pytest.mark.parametrize("pattern", ["(", r"\p{L}", "(?<n>a)", "x(?i)a", "(?R)", "(*FAIL)", r"\X", "[b-a]", "(" * 5000])
def test_what_is_no_pattern_of_re_is_refused_at_load_and_by_the_check(pattern: str) -> None:
    with pytest.raises(ValueError, match="Expected regular expressions, got"):
        Value(name="A", weight=1, vetoes=(pattern,))
    content = {"name": "x", "values": [{"name": "A", "weight": 1}], "forbidden": [pattern]}
    with pytest.raises(ValueError, match="Expected regular expressions, got"):
        load_values(content)
    text = f"name: x\nvalues: [{{name: A, weight: 1}}]\nforbidden: ['{pattern}']"
    assert ["Expected regular expressions" in error.what for error in lint(text)] == [True]


def test_another_default_version_of_the_library_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex, "DEFAULT_VERSION", regex.V1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert compiled(r"[a&&b]_version").search("&_version")


def test_patterns_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ValueSet(name="x", values=(Value(name="A", weight=1, vetoes=("only once",)),))
    monkeypatch.setattr(regex, "compile", None)
    assert search("only once", ["once", "only once"], time.thread_time() + 1)


def test_a_search_that_would_not_end_is_given_up() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        search("(x+x+)+y", ["x" * 3000], time.thread_time() + 0.1)
    assert time.monotonic() - start < 5
    with pytest.raises(TimeoutError):
        search("a", ["a"], time.thread_time() - 1)
