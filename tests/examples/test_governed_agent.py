"""What the notebook on a governed agent says, with two rounds."""

import pytest

from tests.examples.run import in_a_kernel

pytestmark = pytest.mark.slow

ROUNDS = 2


def small(folder):
    asked = {
        "paid": "paid",
        "denied": "denied",
        "refused": "[answer.text, answer.response_metadata['safi']['willDecision']]",
        "said": "[str(messages) for messages in results]",
        "records": "records",
        "turns": "found.turns",
        "flagged": "found.flagged",
        "page": "PAGE.read_text()[:15]",
        "verified": "[whole, tampered]",
    }
    return in_a_kernel("governed_agent", folder, {"ROUNDS": ROUNDS}, asked)


def the_call_that_a_rule_denies_is_not_made_and_the_model_is_told(found) -> None:
    assert found["paid"] == [["Ann", 40.0]] * ROUNDS
    assert found["denied"] == ["This call was not made. amount: missing, or not what is allowed."]
    assert not any("4000.5" in said for said in found["said"])


def the_account_number_does_not_leave(found) -> None:
    assert found["refused"] == ["The desk will help you with that.", "violation"]
    assert not any("DE02" in said for said in found["said"])


def every_turn_is_in_the_log_and_those_that_were_answered_are_scored_on_every_value(found) -> None:
    decisions = [record["willDecision"] for record in found["records"]]
    assert decisions == ["approve", "approve", "violation"] * ROUNDS
    for record in found["records"]:
        names = {row["value"] for row in record["conscienceLedger"]}
        approved = record["willDecision"] == "approve"
        assert names == ({"Accuracy", "Care", "Accountability", "Privacy"} if approved else set())
        assert (record["spiritScore"] is not None) == approved


def drift_goes_to_and_fro(found) -> None:
    drifts = [record["drift"] for record in found["records"] if record["willDecision"] == "approve"]
    assert drifts[0] is None
    assert any(drift > 0.4 for drift in drifts[1:])
    assert any(drift < 0.4 for drift in drifts[1:])


def the_page_is_written_and_tampering_is_found(found) -> None:
    assert found["turns"] == 3 * ROUNDS
    assert found["flagged"] >= ROUNDS
    assert found["page"] == "<!doctype html>"
    assert found["verified"] == [0, 1]


def test_what_it_says(tmp_path) -> None:
    found = small(tmp_path)  # one test, for one run: several workers would each have their own
    for check in (
        the_call_that_a_rule_denies_is_not_made_and_the_model_is_told,
        the_account_number_does_not_leave,
        every_turn_is_in_the_log_and_those_that_were_answered_are_scored_on_every_value,
        drift_goes_to_and_fro,
        the_page_is_written_and_tampering_is_found,
    ):
        check(found)
