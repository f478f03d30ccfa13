"""``SALTrainerCallback`` in two processes, which accelerate connects as for any Trainer started by torchrun."""

import os
import socket
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from torch.utils.data import ConcatDataset  # noqa: E402

from sal_lightning.integrations.huggingface import SALTrainerCallback  # noqa: E402
from tests import forked  # noqa: E402
from tests.sal_lightning.integrations.test_huggingface import Text, gpt2, trainer  # noqa: E402

pytestmark = pytest.mark.slow
CHANGE = 40  # the step after which the data are others
CLOSE = 1e-3  # rounding, after 48 steps of Adam; without this callback it is 1e-4


CHOICES = {"default": {}, "without the pull": {"pull": 0}}


def train(rank, count, port, file):
    """Train once for each choice, as one of ``count`` processes, each of which gets its part of the same rows."""
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    data, found = ConcatDataset([Text(0, 8 * CHANGE), Text(1, 64)]), {}
    options = {"per_device_train_batch_size": 8 // count} | ({"ddp_backend": "gloo"} if count > 1 else {})
    for name, choices in CHOICES.items():
        callback = SALTrainerCallback(**choices)
        made = trainer(file.parent, [callback], gpt2(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), data, **options)
        made.train()
        found[name] = (made.model.state_dict(), callback.events, made.args.world_size)
    torch.save(found, f"{file}-{rank}.pt")


def trained(folder, count):
    """What each of ``count`` processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [forked.start(train, rank, count, port, folder / f"{count}") for rank in range(count)]
    for process in started:
        process.join(120)
        process.kill()
    return [torch.load(folder / f"{count}-{rank}.pt") for rank in range(count)]


def furthest(a, b):
    return max(float((x - b[name]).abs().max()) for name, x in a.items())


def test_two_processes_hold_the_same_and_what_one_holds(tmp_path: Path) -> None:
    (alone,), (first, second) = trained(tmp_path, 1), trained(tmp_path, 2)
    for name in CHOICES:
        (one, events, _), (weights, *same, spread), (others, *also, _) = alone[name], first[name], second[name]
        assert spread == 2
        assert furthest(weights, others) == 0
        assert [events] == same == also == [[CHANGE + 3]]
        # With the pull each process draws labels for its own rows: as one, but for the draw.
        assert furthest(weights, one) < (CLOSE if "pull" in name else 30 * CLOSE)
