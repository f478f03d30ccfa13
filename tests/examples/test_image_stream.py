"""What the notebook on a stream of images says, on the digits of scikit-learn and with few steps."""

import pytest

from tests.examples.run import in_a_fork

pytestmark = pytest.mark.slow

STEPS = 40


def small(folder):
    asked = {
        "plain": "accuracy['plain'].R.tolist()",
        "sal": "accuracy['SAL'].R.tolist()",
        "events": "sal.events",
        "spectrum": "sal.spectrum()._asdict()",
        "held": "run.series['protected'].values",
        "suppressed": "run.series['suppressed'].values",
        "novelty": "run.series['novelty'].values",
        "drift": "[one.series['feature_drift'].values[-1] for one in (run, plain)]",
    }
    return in_a_fork("image_stream", folder, {"DATA": "digits", "STEPS": STEPS}, asked)


def the_plain_network_forgets_the_first_task_and_sal_keeps_it(found) -> None:
    plain, sal = found["plain"], found["sal"]
    assert plain[0] == sal[0]  # until the first change both are the same
    assert plain[-1][0] < 0.75
    assert sal[-1][0] > 0.85
    assert sum(sal[-1]) > sum(plain[-1])


def each_change_is_noticed_within_a_few_steps(found) -> None:
    assert len(found["events"]) == 4
    assert all(0 < event - number * STEPS <= 10 for number, event in enumerate(found["events"], 1))


def nothing_is_held_before_the_first_change_and_something_after_it(found) -> None:
    logged = len(found["held"]) // 5
    assert set(found["held"][: logged - 1]) == {0}
    assert set(found["suppressed"][: logged - 1]) == {0}
    assert found["held"][-1] > 0
    assert found["spectrum"]["volatile"] < 100


def after_the_first_steps_no_state_is_new(found) -> None:
    assert found["novelty"][0] > 0.4
    assert max(found["novelty"][5:]) < 0.4


def features_drift_less_than_in_the_plain_run(found) -> None:
    ours, theirs = found["drift"]
    assert ours < theirs / 2


def test_what_it_says(tmp_path) -> None:
    found = small(tmp_path)  # one test, for one run: several workers would each have their own
    for check in (
        the_plain_network_forgets_the_first_task_and_sal_keeps_it,
        each_change_is_noticed_within_a_few_steps,
        nothing_is_held_before_the_first_change_and_something_after_it,
        after_the_first_steps_no_state_is_new,
        features_drift_less_than_in_the_plain_run,
    ):
        check(found)
