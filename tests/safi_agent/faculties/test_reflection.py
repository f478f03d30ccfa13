"""What of a draft is reflection; nothing else is cut out of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safi_agent.faculties.reflection import split


@pytest.mark.parametrize(
    ("text", "answer", "reflection"),
    [
        ("Yes.\n<reflection>r</reflection>", "Yes.", "r"),
        ("Yes.\r\n  <reflection>\nr\n</reflection>\n", "Yes.", "r"),
        ("Yes.\n<REFLECTION>r", "Yes.", "r"),
        ("Yes.\n<reflection>r", "Yes.", "r"),
        ("Yes. <reflection>r</reflection>", "Yes.", "r"),
        ("Yes.<Reflection>r</Reflection>\n", "Yes.", "r"),
        ("Yes.\n<reflection>a</reflection>\nNo.\n<reflection>r</reflection>", None, "r"),
        ("Use <reflection> tags.\n<reflection>r</reflection>", "Use <reflection> tags.", "r"),
        ("```xml\n<reflection>x</reflection>\n```\n<reflection>r</reflection>", None, "r"),
        ("Yes.\n---REFLECTION---\nr", "Yes.", "r"),
        ("Yes.\n-- reflection --\nr", "Yes.", "r"),
        ('Yes.\n{"reflection": "r"}', "Yes.", '{"reflection": "r"}'),
        ('Yes.\n```json\n{"reflection": "r"}\n```', "Yes.", '```json\n{"reflection": "r"}\n```'),
        ('Yes.\n```json\n{"reflection": "r', "Yes.", '```json\n{"reflection": "r'),
        ('{"reflection": "r"}', "", '{"reflection": "r"}'),
        ('{"answer": "Yes.", "reflection": "r"}', "Yes.", "r"),
        ('```json\n{"reflection": "r", "answer": "Yes."}\n```', "Yes.", "r"),
        ('{"answer": "<answer>", "reflection": null}', "<answer>", ""),
        ("<reflection>r</reflection>Yes.", "", "rYes."),
        ("", "", ""),
    ],
)
def test_the_reflection_is_cut_off_however_it_is_marked(text: str, answer: str | None, reflection: str) -> None:
    found = split(text)
    assert found.answer == (text[: text.rindex("<reflection>")].strip() if answer is None else answer)
    assert found.reflection == reflection


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "Capital?", "answer": "Paris"}',
        '{"answer": "Paris"}',
        '{"answer": "Paris", "reflection": "on water", "kind": "poem"}',
        '{"answer": {"city": "Paris"}, "reflection": "r"}',
        '[{"answer": "Paris", "reflection": "r"}]',
        "<answer>Yes.</answer>",
        "Put it between <answer> and </answer>, I say.",
        "Put it between <reflection> and </reflection>, I say.",
        "The tag <reflection> opens it.",
        "<Mirror>\n  <Reflection strength={0.5} />\n</Mirror>",
        "<Mirror>\n<Reflection>\n<Scene />\n</Reflection>\n</Mirror>",
        "    <reflection>\n    indented code\n    </reflection>\nand more",
        "```xml\n<reflection>x</reflection>\n```",
        "As code:\n```xml\n<note>\n<reflection>\nx\n</reflection>\n</note>\n```\nThat is all.",
        "```\n--- reflection ---\n```",
        "A line of dashes -- reflection -- in a sentence.",
        'Set it:\n{"reflection": 0.5}',
        'Set it:\n{"reflection": "on", "refraction": "off"}',
        'Set {"reflection": "on"} in it.',
        'Set it:\n{"reflection": "on"}\nand go on.',
        "{",
        "{}",
    ],
)
def test_a_draft_that_only_names_such_things_is_an_answer_as_it_is(text: str) -> None:
    assert split(text) == (text.strip(), "")


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": "Yes.", "reflection": "r',
        '```json\n{"answer": "Yes.", "reflection": "r"',
        '{"answer": "Yes.", "reflection": "r"} So.',
        '{"answer": "Yes.", "answer": "No.", "reflection": "r"}',
        '{"answer": "Yes "no"", "reflection": "r"}',
    ],
)
def test_half_a_structured_draft_has_no_answer(text: str) -> None:
    assert split(text) == ("", text)


@given(st.text(), st.text())
def test_what_follows_the_tag_on_a_line_of_its_own_is_never_in_the_answer(before: str, after: str) -> None:
    assert "canary" not in split(f"{before.replace('`', '')}\n<reflection>{after.replace('<', '')}canary").answer


@given(st.text(), st.text())
def test_what_stands_between_the_tags_at_the_end_is_never_in_the_answer(before: str, after: str) -> None:
    assert "canary" not in split(f"{before}<reflection>{after}canary</reflection> ").answer


def test_a_reflection_that_was_broken_off_within_its_line_is_cut_only_where_the_model_was() -> None:
    assert split("Yes. <reflection>Because it", broken_off=True) == ("Yes.", "Because it")
    assert split("Yes. <reflection>Because it").answer == "Yes. <reflection>Because it"


@given(st.dictionaries(st.sampled_from(["answer", "reflection", "question", "x"]), st.text(min_size=1), min_size=1))
def test_only_an_object_of_exactly_both_keys_is_the_structured_form(data: dict[str, str]) -> None:
    text = json.dumps(data)
    if set(data) == {"answer", "reflection"}:
        assert split(text) == (data["answer"].strip(), data["reflection"])
    elif set(data) != {"reflection"}:
        assert split(text) == (text, "")
