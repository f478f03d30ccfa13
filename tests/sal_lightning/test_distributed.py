import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from sal_lightning import distributed

TABLES = {"even": (4, 3), "uneven": (5, 3), "one row": (1, 3), "vector": (3,), "kernel": (5, 2, 3, 3)}
PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "whole": Replicate()}


def table(shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float).view(shape)


def spread():
    """Each table in each placement that is possible for it, by name."""
    mesh = init_device_mesh("cpu", (2,))
    return {
        (name, where): (table(shape), distribute_tensor(table(shape), mesh, [placement]))
        for name, shape in TABLES.items()
        for where, placement in PLACEMENTS.items()
        if len(shape) > 1 or where != "columns"
    }


def parts(rank):
    """For each table: the local part, whether `part` reproduces it, and the gathered whole."""
    return {
        key: {
            "here": tuple(distributed.local(x).shape),
            "part": torch.equal(distributed.part(whole, x), distributed.local(x)),
            "gathered": torch.equal(distributed.gather(distributed.local(x).clone(), x), whole),
            "by rows": distributed.by_rows(x),
            "shards": distributed.shards(x),
        }
        for key, (whole, x) in spread().items()
    }


def other_columns(rank):
    """A tensor with the rows of a table and a different number of columns."""
    x, whole = spread()["uneven", "rows"][1], table((5, 7))
    return torch.equal(distributed.gather(distributed.part(whole, x).clone(), x), whole)


def sums(rank):
    """Totals over the rows of an uneven table, and of a replicated number."""
    dealt, same = spread()["uneven", "rows"][1], torch.zeros(2)
    mine = [distributed.local(dealt).sum(), torch.tensor(3.0)]
    return [float(x) for x in distributed.totals(mine, [dealt, same])]


def agreements(rank):
    """The mean over ranks, and the broadcast from rank 0."""
    mine = [torch.full((2, 2), float(rank)), torch.tensor(10 * rank, dtype=torch.double)]
    merged = distributed.mean(mine)
    distributed.agree(mine)
    return {
        "count": distributed.count(),
        "mean": [x.tolist() for x in merged],
        "kinds": [x.dtype == y.dtype and x.shape == y.shape for x, y in zip(mine, merged, strict=True)],
        "nothing": distributed.mean([]),
        "first": [x.tolist() for x in mine],
    }


def job(rank):
    return {f.__name__: f(rank) for f in (parts, other_columns, sums, agreements)}


@pytest.fixture(scope="module")
def found(both, tmp_path_factory):
    """The results of two processes."""
    return both(tmp_path_factory.mktemp("processes"), job)


@pytest.mark.slow
def test_part_returns_the_local_rows_and_gather_inverts_it(found):
    for rank in range(2):
        for seen in found[rank]["parts"].values():
            assert seen["part"]
            assert seen["gathered"]
        assert found[rank]["other_columns"]
    rows = [found[rank]["parts"]["uneven", "rows"]["here"] for rank in range(2)]
    assert rows == [(3, 3), (2, 3)]
    assert found[1]["parts"]["one row", "rows"]["here"] == (0, 3)


def test_by_rows_is_false_only_for_shards_of_columns(found):
    for (_, where), seen in found[0]["parts"].items():
        assert seen["by rows"] == (where != "columns")
        assert seen["shards"] == (1 if where == "whole" else 2)


def test_totals_sum_over_shards_only(found):
    assert found[0]["sums"] == found[1]["sums"] == [105.0, 3.0]


def test_mean_averages_over_processes_and_agree_broadcasts_from_rank_zero(found):
    assert found[0]["agreements"] == found[1]["agreements"]
    assert found[0]["agreements"] == {
        "count": 2,
        "mean": [[[0.5, 0.5], [0.5, 0.5]], 5.0],
        "kinds": [True, True],
        "nothing": [],
        "first": [[[0.0, 0.0], [0.0, 0.0]], 0.0],
    }


def test_a_single_process_has_whole_tensors():
    x = torch.ones(3, 2)
    assert distributed.count() == 1
    assert distributed.mean([x])[0] is x
    assert distributed.local(x) is distributed.part(x, x) is distributed.gather(x, x) is x
    assert distributed.by_rows(x)
    assert not distributed.sharded(x)
    assert distributed.shards(x) == 1
    (total,) = distributed.totals([x.sum()], [x])
    assert total == 6
    distributed.agree([x])
    assert torch.equal(x, torch.ones(3, 2))
