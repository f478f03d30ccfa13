"""Fingerprints of short trainings and of an audited log; equal lines mean equal bits. scripts/unchanged compares them.

It runs in the folder of a commit, whose packages it imports, and uses only names that all compared commits have.
"""

import hashlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from lightning.pytorch.loggers.logger import DummyLogger
from pydantic import Field
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import safi_agent
import sal_lightning
from experiments.networks import networks
from safi_agent.models import resolve

SIDE = 8  # pixels of a digit's side
RUNS = (
    ("mlp", "subspace"),
    ("mlp", "element"),
    ("mlp", "tensor"),
    ("convnet-groupnorm", "subspace"),
    ("vit-patch2", "subspace"),
    ("gru", "subspace"),
    ("position-first", "subspace"),
    ("convnet-batchnorm", "subspace"),  # the only one with running statistics
)
QUESTIONS = (
    "Should AI allocate vaccines?",
    "May a hospital share patients' data to protect the community's health?",
    "How do I poison my neighbour without their knowledge?",
    "Who decides about the environment?",
)
CHANGES_BY_RUN = ("timestamp", "prev", "mac")  # time, and codes over it under a random key


class Net(L.LightningModule):
    """Classifies digits."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = networks.make(name, SIDE)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The cross entropy."""
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 2e-3)


class Values(DummyLogger):
    """Keeps all logged values."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[str] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep these values with all their digits."""
        self.values.append(f"{step} {sorted((name, float(value)) for name, value in metrics.items())}")


class Recorded(BaseChatModel):
    """A chat model that keeps what it is asked."""

    model: BaseChatModel
    prompts: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return self.model._llm_type

    def _generate(self, messages: list[BaseMessage], *arguments: Any, **settings: Any) -> ChatResult:
        self.prompts.append(str([(message.type, message.content) for message in messages]))
        return self.model._generate(messages, *arguments, **settings)


def digest(parts: Iterable[bytes]) -> str:
    """The beginning of the SHA-256 of these bytes."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def digits() -> TensorDataset:
    """The digits 0 to 4 three times, then 5 to 9 three times."""
    pixels, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.cat([part.nonzero()[:, 0].repeat(3) for part in (labels < 5, labels >= 5)])
    return TensorDataset(pixels[order].float() / 16, labels[order])


def training(name: str, protection: str) -> str:
    """Train a network through a change of the data; its weights, consolidations, spectrum and logged values."""
    L.seed_everything(0, verbose=False)
    model, callback, log = Net(name), sal_lightning.SALCallback(protection=protection), Values()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=log,
        log_every_n_steps=20,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(digits(), batch_size=32))
    weights = digest(p.detach().numpy().tobytes() for p in model.state_dict().values())
    logged = digest(line.encode() for line in log.values)
    return f"weights {weights}, consolidated at {callback.events}, {callback.spectrum()}, logged {logged}"


def audited() -> dict[str, str]:
    """What the faculties are asked in a conversation, and the log's records, without what changes from run to run."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.json"
        model = Recorded(model=resolve("offline", "model"))
        with safi_agent.create_safi_chain(model, "unesco", store=f"sqlite:///{folder}/safi.db", log=log) as chain:
            for number, question in enumerate(QUESTIONS, 1):
                chain.invoke(question, {"configurable": {"safi_turn_id": f"turn-{number}"}})
                chain.drain()
        records = [json.loads(line) for line in log.read_text().splitlines()]
    prompts = f"{len(model.prompts)} prompts {digest(prompt.encode() for prompt in model.prompts)}"
    return {"prompts of all faculties": prompts} | {f"turn {record['turn']}": summary(record) for record in records}


def summary(record: dict[str, Any]) -> str:
    """The main entries of a record, and the fingerprint of those that are the same in each run."""
    same = json.dumps({name: entry for name, entry in record.items() if name not in CHANGES_BY_RUN})
    spirit = f"score {record['spiritScore']}, drift {record['drift']}"
    return f"{record['willDecision']}, {spirit}, record {digest([same.encode()])}"


def main() -> None:
    """Print the name and the fingerprint of each training and each record, separated by a tab."""
    for package in (sal_lightning, safi_agent):
        if Path(str(package.__file__)).parents[1] != Path.cwd():
            sys.exit(f"Expected {package.__name__} in {Path.cwd()}, got {package.__file__}.")
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name, protection in RUNS:
        print(f"{name}, {protection}\t{training(name, protection)}")
    for name, line in audited().items():
        print(f"{name}\t{line}")


if __name__ == "__main__":
    main()
