"""One run of a method with a strength on Shakespeare, Python and Shakespeare again, and its record."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import Callback

from experiments import provenance
from experiments.language.first import FirstStage, build
from experiments.language.methods import METHODS, Start
from experiments.language.settings import Settings
from experiments.language.stages import Domains, Losses, batches, losses, train

EXAMPLES = 32  # batches of the first domain available to methods before the second stage


@dataclass(frozen=True)
class Result:
    """All data to interpret and reproduce a result, as JSON values."""

    command: str
    settings: Settings
    commit: str
    hardware: dict[str, str | int]
    versions: dict[str, str]
    data: dict[str, str]  # md5 of each text
    losses: list[Losses]  # in nats per byte, after each stage
    seconds: list[float]  # of the method's preparation, then of each stage but the first
    learning: int  # number of weights trained from the second stage on
    memory: dict[str, float]
    events: list[int]

    def record(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


def run(
    settings: Settings,
    domains: Domains,
    cache: Path,
    *,
    accelerator: str = "cpu",
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train through the stages; returns the result."""
    method, scale, seed = METHODS[settings.method], settings.scale, settings.seed
    stage = FirstStage(domains, scale, seed, cache, accelerator, callbacks)
    first = stage.watched(settings.strength) if method.watches else stage.plain()
    L.seed_everything(seed, verbose=False)
    model = build(scale)
    model.net.load_state_dict(first.weights)
    model.lr = settings.lr
    started = time.perf_counter()
    examples = islice(batches(domains.first, scale, seed, 0), EXAMPLES)
    guard = method.prepare(Start(model, examples, first.watched), settings.strength)
    seconds, after = [time.perf_counter() - started], [first.losses]
    for number, domain in ((1, domains.second), (2, domains.first)):
        rows = batches(domain, scale, seed, number)
        seconds.append(train(model, rows, [*([guard] if guard else []), *callbacks], accelerator))
        after.append(losses(model, domains, scale))
    return Result(
        command=settings.command,
        settings=settings,
        commit=provenance.commit(),
        hardware=provenance.hardware(accelerator),
        versions=provenance.versions() | {"peft": provenance.installed("peft")},
        data={d.name: d.md5 for d in domains},
        losses=after,
        seconds=[round(s, 3) for s in seconds],
        learning=sum(p.numel() for p in model.learning()),
        memory=getattr(guard, "memory", dict)(),
        events=list(getattr(guard, "events", [])),
    )
