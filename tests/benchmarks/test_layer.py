from benchmarks.layer import Layer, held_rank
from sal_lightning.rules import subspace


def test_the_rank_is_what_was_asked_for_and_then_as_before() -> None:
    before = subspace.RANK, subspace.MIN_RANK, subspace.MAX_RANK
    kept = {}
    for rank in (4, 16):
        layer = Layer(32, "cpu", rank)
        layer.settle()
        assert layer.comm is not None
        kept[rank] = layer.comm.memory()["state"]
    assert kept[16] > 1.5 * kept[4]
    with held_rank(3):
        assert (subspace.RANK, subspace.MIN_RANK, subspace.MAX_RANK) == (1.0, 1, 3)
    assert before == (subspace.RANK, subspace.MIN_RANK, subspace.MAX_RANK)
