"""Each layer's stability for loggers, in a form that each of them can display."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from sal_lightning.report.histograms import EDGES, View, banded, whole
from sal_lightning.report.naming import PREFIX

STEP = "step"  # continues over several fits, so that they do not overlap
COLUMNS = ("layer", "grain", "weights")
KINDS = ("held", "observed")


def begin(loggers: Iterable[Any], prefix: str = PREFIX) -> None:
    """Use SAL's step as the x axis of SAL's values in Weights & Biases."""
    for logger in filter(_is_wandb, loggers):
        logger.experiment.define_metric(prefix + STEP)
        logger.experiment.define_metric(f"{prefix}*", step_metric=prefix + STEP)


def layer_loggers(loggers: Iterable[Any], histograms: bool) -> list[Any]:
    """The loggers that get every layer's stability: Weights & Biases only with ``histograms``."""
    return [logger for logger in loggers if histograms or not _is_wandb(logger)]


def log_layers(loggers: Sequence[Any], seen: dict[str, View], at: int, step: int, prefix: str = PREFIX) -> None:
    """Log every layer's stability at SAL's step ``at``, the logger's ``step``.

    Histograms for Weights & Biases and TensorBoard, which draw them over time as a heat map; percentages for others.
    """
    if not seen:
        return
    named = {f"{prefix}layers/{name}": view for name, view in seen.items()}
    everything = {f"{prefix}stability": whole(seen)}
    for logger in loggers:
        if _is_wandb(logger):
            logger.log_metrics(_histograms(named | everything) | {prefix + STEP: at}, step)
        elif callable(getattr(logger.experiment, "add_histogram_raw", None)):
            _tensorboard(logger.experiment, named | everything, step)
        else:
            logger.log_metrics(_percents(named) | {prefix + STEP: at}, step)


def log_events(loggers: Sequence[Any], events: Iterable[int], step: int, prefix: str = PREFIX) -> None:
    """Log the exact steps of consolidations, which may lie between two logged steps."""
    for event in events:
        for logger in loggers:
            logger.log_metrics({f"{prefix}consolidated_at": event}, step)


def log_table(loggers: Iterable[Any], seen: dict[str, View], prefix: str = PREFIX) -> None:
    """Log a table of all layers at the end of the training, to Weights & Biases only."""
    for logger in filter(_is_wandb, loggers):
        logger.log_table(f"{prefix}table", *table(seen))


def table(seen: dict[str, View]) -> tuple[list[str], list[list[Any]]]:
    """Headings and rows: percent of each layer's weights in each band, held and observed."""
    bands = [f"{kind} {band}" for kind in KINDS for band in ("protected", "neutral", "volatile")]
    rows = [
        [name, view.grain, view.weights, *(round(x, 2) for kind in KINDS for x in banded(getattr(view, kind)))]
        for name, view in seen.items()
    ]
    return [*COLUMNS, *bands], rows


def _histograms(named: dict[str, View]) -> dict[str, Any]:
    import numpy as np
    import wandb

    edges = np.array(EDGES)
    return {
        f"{name}/{kind}": wandb.Histogram(np_histogram=(np.array(getattr(view, kind)), edges))
        for name, view in named.items()
        for kind in KINDS
    }


def _percents(named: dict[str, View]) -> dict[str, float]:
    return {
        f"{name}/{kind}/{band}": percent
        for name, view in named.items()
        for kind in KINDS
        for band, percent in banded(getattr(view, kind))._asdict().items()
    }


def _tensorboard(writer: Any, named: dict[str, View], step: int) -> None:
    middles = [(low + high) / 2 for low, high in pairwise(EDGES)]
    for name, view in named.items():
        for kind in KINDS:
            counts = getattr(view, kind)
            writer.add_histogram_raw(
                f"{name}/{kind}",
                min=0.0,
                max=1.0,
                num=sum(counts),
                sum=sum(n * x for n, x in zip(counts, middles, strict=True)),
                sum_squares=sum(n * x * x for n, x in zip(counts, middles, strict=True)),
                bucket_limits=list(EDGES[1:]),
                bucket_counts=list(counts),
                global_step=step,
            )


def _is_wandb(logger: Any) -> bool:
    # Compared by name, as `lightning` and `pytorch_lightning` each have their own class.
    return "WandbLogger" in {kind.__name__ for kind in type(logger).__mro__}
