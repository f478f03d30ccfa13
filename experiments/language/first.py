"""The first stage, trained once for all methods and cached in a file whose name is a hash of its dependencies."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch import Callback

import sal_lightning
from experiments.filing import write_whole
from experiments.language.model import GPT, LanguageModel
from experiments.language.settings import LR, Scale
from experiments.language.stages import Domains, Losses, batches, losses, train
from sal_lightning import SALCallback

CODE = [Path(__file__).with_name(f"{name}.py") for name in ("text", "model", "settings", "stages", "first")]
SAL = Path(sal_lightning.__file__).parent


class First(NamedTuple):
    """Results of the first stage."""

    weights: dict[str, Any]
    watched: dict[str, Any]  # state of the SALCallback; empty without one
    losses: Losses


class FirstStage(NamedTuple):
    """The first stage for one seed, trained on first access."""

    domains: Domains
    scale: Scale
    seed: int
    cache: Path
    accelerator: str = "cpu"
    callbacks: Sequence[Callback] = ()

    def plain(self) -> First:
        """Training without SAL."""
        return load(self.file("plain")) or save(self.train(None), self.file("plain"))

    def watched(self, strength: float) -> First:
        """Training with SAL, without task information.

        If SAL consolidated nothing, the weights are those of plain training, for any strength.
        """
        idle, own = self.file("watched"), self.file(f"watched {strength:g}")
        if (known := load(idle) or load(own)) is not None:
            return known
        plain, left = self.plain(), self.train(SALCallback(strength=strength))
        same = all(torch.equal(left.weights[name], w) for name, w in plain.weights.items())
        return save(left, idle if same else own)

    def train(self, sal: SALCallback | None) -> First:
        """Train the first stage."""
        L.seed_everything(self.seed, verbose=False)
        model, stage = build(self.scale), batches(self.domains.first, self.scale, self.seed, 0)
        train(model, stage, [*([sal] if sal else []), *self.callbacks], self.accelerator)
        found = losses(model, self.domains, self.scale)
        return First(model.cpu().net.state_dict(), sal.state_dict() if sal else {}, found)

    def file(self, kind: str) -> Path:
        """Path of the cache; its name depends on the texts, sizes, machine, training code and version of torch."""
        code = [*CODE, *sorted(SAL.rglob("*.py"))] if kind != "plain" else CODE
        sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in code]
        machine = [self.accelerator, torch.get_num_threads(), torch.__version__]
        stage = [[d.md5 for d in self.domains], self.scale._replace(steps=self.scale.steps[:1]), self.seed, kind]
        return self.cache / f"{hashlib.sha256(json.dumps([sums, machine, stage]).encode()).hexdigest()[:16]}.pt"


def build(scale: Scale) -> LanguageModel:
    """A new network, initialized with torch's global generator."""
    return LanguageModel(GPT(scale.layers, scale.width, scale.heads, scale.context), LR)


def load(file: Path) -> First | None:
    """Load the cache; None if there is none."""
    return First(**torch.load(file, weights_only=True, map_location="cpu")) if file.is_file() else None


def save(first: First, file: Path) -> First:
    """Write the cache atomically."""
    content = io.BytesIO()
    torch.save(first._asdict(), content)
    write_whole(file, content.getvalue())
    return first
