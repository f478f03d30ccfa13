"""A cascade's record and its lanes."""

import json

import pytest
import torch

from sal_lightning.emergence.cascade import PulseCascade
from sal_lightning.report.flow import lanes, record, save


@pytest.fixture(scope="module")
def cascade():
    generator = torch.Generator().manual_seed(3)
    cascade = PulseCascade(coherent=0.0, novel=0.3, expire=0.2, generator=torch.Generator().manual_seed(0))
    cascade.initiate(torch.randn(12, 6, generator=generator))
    pull = torch.randn(3, 6, generator=generator)
    for _ in range(6):
        cascade.step(lambda x: x + 0.3 * (torch.softmax(3 * x @ pull.mT, 1) @ pull - x))
    return cascade


def test_a_saved_record_has_the_fate_and_parent_of_every_pulse(cascade, tmp_path):
    kept = json.loads(save(cascade, tmp_path / "run").read_text())
    assert kept == record(cascade)
    assert {pulse["fate"] for pulse in kept["pulses"]} == {"alive", "merged", "expired"}
    assert [pulse["parent"] for pulse in kept["pulses"]] == [pulse.parent for pulse in cascade.pulses]
    assert kept["emerged"] == cascade.emerge().pulse.number
    assert kept["share"] == cascade.emerge().share


def test_pulses_of_a_lane_do_not_overlap_and_lineages_are_adjacent(cascade):
    kept = record(cascade)
    lane = lanes(kept["pulses"], kept["generations"])
    places = []
    for pulse in kept["pulses"]:
        last = kept["generations"] if pulse["ended"] is None else pulse["ended"]
        places += [(lane[pulse["number"]], generation) for generation in range(pulse["born"], last + 1)]
    assert len(places) == len(set(places))
    owner = {}
    for pulse in kept["pulses"]:
        assert owner.setdefault(lane[pulse["number"]], pulse["lineage"]) == pulse["lineage"]
    order = [owner[i] for i in sorted(owner)]
    assert order == sorted(order)
