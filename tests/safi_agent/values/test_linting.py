"""All that is wrong with a value set, at once, by line; nothing exactly where it is taken."""

import random
from pathlib import Path

import pytest
import yaml

from safi_agent import load_values
from safi_agent.values import shipped
from safi_agent.values.linting import lint

WRONG = """\
nam: library
refusal: ""
values:
  - name: Truth
    weight: 1.6
    weight: 0.6
    descripton: Say what is known.
  - name: truth
    weight: heavy
  - name: yes
    vetoes: ["("]
  - Kindness
  - weight: -1
disclaimers: Opening hours may change.
max_chars: 0
"""


def test_all_errors_are_found_at_once_by_line() -> None:
    told = [(error.line, error.what.split(":")[0].partition(", ")[::2]) for error in lint(WRONG)]
    assert told == [
        (1, ("nam", "")),
        (1, ("name", "")),
        (2, ("refusal", "")),
        (6, ("weight", "")),
        (7, ("Value 1 ('Truth')", "descripton")),
        (8, ("Expected names that differ after normalisation", "got more than once")),
        (9, ("Value 2 ('truth')", "weight")),
        (10, ("Value 3 (True)", "name")),
        (11, ("Value 3 (True)", "vetoes")),
        (12, ("Value 4", "expected a mapping with a name and a weight, got 'Kindness'.")),
        (13, ("Value 5", "name")),
        (13, ("Value 5", "weight")),
        (14, ("disclaimers", "")),
        (15, ("max_chars", "")),
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: [", 1, "This is not YAML"),
        ("name: a\nvalues:\n - {name: x]", 3, "This is not YAML: while parsing a flow mapping expected ',' or '}'"),
        ("- 1", 1, "Expected a mapping with a name and values, got list."),
        ("", 1, "Expected a mapping with a name and values, got NoneType."),
        ("name: a\n---\nname: b", 2, "This is not YAML: expected a single document"),
        ("name: !!python/object:os.system a", 1, "This is not YAML: could not determine a constructor"),
        ("name: a", 1, "values: is missing."),
        ("name: a\nvalues: []", 2, "values: expected a list of values, got []."),
        ("name: a\nvalues:\n- x", 3, "Value 1, expected a mapping with a name and a weight, got 'x'."),
        ('name: a\nvalues:\n- {name: " "}', 3, "Expected a name with letters, got ' '."),
        ("name: a\nvalues:\n- {name: x, weight: .9}\n- {name: y, weight: .3}", 2, "Expected weights that sum to 1"),
        ("name: a\nvalues:\n- {name: x, weight: 0}", 2, "Expected at least one value with a weight above 0"),
        (
            "name: a\nvalues:\n- {name: x, weight: 1}\n- {name: y}",
            2,
            "values: expected weights that sum to less than 1",
        ),
        ("name: a\nvalues:\n- {name: x, weight: 1.2}", 3, "expected a number of at most 1, got 1.2."),
        (
            "name: a\ncolour: 1\nvalues:\n- {name: x}",
            2,
            "colour: there is no such setting; there are name, description",
        ),
        ("name: a\nvalues:\n- {name: x, weight: .nan}", 3, "weight: expected a number"),
    ],
)
def test_errors_are_described_in_plain_words_with_their_line(text: str, line: int, words: str) -> None:
    (error,) = lint(text)
    assert error.line == line
    assert words in error.what


def test_an_alias_to_itself_ends() -> None:
    assert lint("name: a\nvalues: &v [*v]")


def test_an_alias_may_repeat_a_list() -> None:
    assert lint("name: a\nvalues:\n- {name: x, vetoes: &v [b]}\n- {name: y, vetoes: *v}") == []


@pytest.mark.parametrize("name", shipped())
def test_the_value_sets_in_the_package_pass_the_linter(name: str) -> None:
    assert lint((Path(__file__).parents[3] / "safi_agent" / "valuesets" / f"{name}.yaml").read_text()) == []


def spoilt(rng: random.Random) -> object:
    """A value set with some things wrong, or none."""
    odd = [None, True, -1, 0, 0.5, 1, 1.5, "", "x", "0.5", "(", [], ["("], [" "], {}, {"name": "x"}, float("nan")]
    values = [{"name": f"v{i}", "weight": 0.25} for i in range(4)]
    content: dict[object, object] = {"name": "a", "values": values}
    for _ in range(rng.randrange(3)):
        where: dict[object, object] = rng.choice([content, *values])
        settings = ["name", "values", "refusal", "vetoes", "weight", "disclaimers", "max_chars", "colour", 7, "rubric"]
        where[rng.choice(settings)] = rng.choice(odd)
    if rng.random() < 0.3:
        values.pop()
    return content


@pytest.mark.slow
def test_the_linter_finds_errors_exactly_where_loading_fails(tmp_path: Path) -> None:
    file, taken = tmp_path / "values.yaml", 0
    for seed in range(200):
        content = spoilt(random.Random(seed))
        file.write_text(text := yaml.safe_dump(content))
        try:
            load_values(file)
        except ValueError:
            assert lint(text), content
        else:
            taken += 1
            assert lint(text) == [], content
    assert 20 < taken < 180
