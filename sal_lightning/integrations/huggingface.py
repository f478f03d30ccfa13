"""Self-Alignment Learning as a callback of Hugging Face's ``Trainer``."""

import warnings
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning.integrations.weights_mark import weights_mark
from sal_lightning.metrics import NormShare
from sal_lightning.optimizer_hooks import unwrapped
from sal_lightning.report import panels
from sal_lightning.report.histograms import views
from sal_lightning.report.naming import PREFIX
from sal_lightning.trainer_callback import FIELD, SHARES, BaseCallback

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks
    from transformers.modeling_utils import unwrap_model
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length
except ImportError as error:
    raise ImportError(f'Expected transformers: pip install "sal-lightning[huggingface]" ({error}).') from error

FILE = "sal.pt"  # beside the model's weights in a checkpoint


class SALTrainerCallback(BaseCallback, TrainerCallback):
    """``SALCallback`` for ``transformers.Trainer(..., callbacks=[SALTrainerCallback()])``.

    The ``sal/...`` values are added to ``state.log_history`` and to the logs of callbacks after this one. With
    ``report_to="wandb"`` they are logged to its run under the same names as by ``SALCallback``. Other reporters
    named in ``report_to`` run before this callback, so they do not get them, with one warning; pass such a reporter
    after it: ``report_to=[]`` and ``callbacks=[SALTrainerCallback(), TensorBoardCallback()]``.

    Checkpoints contain a file ``sal.pt``, which is read on resuming from a checkpoint in ``output_dir`` or from
    ``args.resume_from_checkpoint``; for checkpoints elsewhere call ``load_state_dict`` before ``train()``.

    Args:
        protection: as in ``SALCallback``.
        consolidate_on: as in ``SALCallback``; ``"fit"``: at every new ``train()``.
        strength: as in ``SALCallback``.
        recall: as in ``SALCallback``.
        share: as in ``SALCallback``.
        field: as in ``SALCallback``.
        running_statistics: as in ``SALCallback``.
        pull: as in ``SALCallback``.
        absent_prior: as in ``SALCallback``.
        histograms: as in ``SALCallback``.

    Raises:
        ValueError: at construction, an argument is outside its range; at ``train``, the model has no trainable
            parameters or lacks the field's layer.
        NotImplementedError: at ``train``, under DataParallel or in a hyperparameter search.
    """

    _loggers: Sequence["WandbLogger"] = ()  # of the run that ``report_to`` has started
    _logged_events = 0  # consolidations written to them

    # --- the hooks, in order ---

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.n_gpu > 1 or state.is_hyper_param_search:
            what = "a hyperparameter search" if state.is_hyper_param_search else f"DataParallel on {args.n_gpu} GPUs"
            raise NotImplementedError(f"Expected one training on one device, got {what}.")
        model = unwrap_model(kwargs["model"])
        if state.global_step > 0 and not self._resumed:
            self.load_state_dict(_saved(args, state, model))
        optimizer = kwargs["optimizer"]
        self.begin(model, [unwrapped(optimizer)], getattr(optimizer, "scaler", None))
        self._loggers, self._logged_events = _loggers(args, state), 0
        if state.is_world_process_zero and (early := _early_reporters(args)):
            self.user_warnings.early_reporters(early)
        panels.begin(self._loggers)

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.expect(_logs(args, state, kwargs["train_dataloader"]))

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Gradients are accumulated, unscaled and clipped here; masking them afterwards only reduces their norm.
        for layer in self.layers:
            layer.measured.clear()
            layer.analyze()
            layer.protect()
        self.update_field()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.pause()

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.layers or not all(layer.measured for layer in self.layers):
            return
        # As Python numbers, since the Trainer writes its history as JSON.
        values = {PREFIX + name: number for name, number in _numbers(self).items()}
        self.keep_measured(self.values())
        for row in (kwargs["logs"], *state.log_history[-1:]):  # the second is a copy, made before callbacks run
            row.update(values)
        self._report(state.global_step, values)

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and not args.save_only_model:
            mark = {"mark": _mark(unwrap_model(kwargs["model"]))}
            torch.save(self.state_dict() | mark, _folder(args, state) / FILE)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        best = Path(state.best_model_checkpoint or "") / FILE
        if args.load_best_model_at_end and best.exists():
            # The Trainer has loaded the weights of this checkpoint.
            self.load_state_dict(_load(best))
            self.begin(unwrap_model(kwargs["model"]), [unwrapped(kwargs["optimizer"])])
        self.end()
        self._log_events(state.global_step)
        panels.log_table(self._loggers, views(self.layers))
        self._loggers = ()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_loggers": ()}  # a run of Weights & Biases cannot be copied

    # --- reporting ---

    def _report(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a measured step, every layer's stability if asked for, and new consolidations."""
        for logger in self._loggers:
            logger.log_metrics(values, step)
        if self._loggers and self.histograms:
            panels.log_layers(self._loggers, views(self.layers), int(values[PREFIX + panels.STEP]), step)
        self._log_events(step)

    def _log_events(self, step: int) -> None:
        panels.log_events(self._loggers, self.events[self._logged_events :], step)
        self._logged_events = len(self.events)


class WandbLogger:
    """The methods of Lightning's ``WandbLogger`` that ``panels`` calls, for a run in progress.

    Args:
        run: the run.
    """

    def __init__(self, run: Any) -> None:
        self.experiment = run

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log values at the Trainer's step."""
        self.experiment.log({**metrics, "train/global_step": step})

    def log_table(self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        import wandb

        self.experiment.log({key: wandb.Table(columns=list(columns), data=list(map(list, data)))})


def _loggers(args: TrainingArguments, state: TrainerState) -> Sequence[WandbLogger]:
    """A logger of the run of Weights & Biases that ``report_to`` has started, in the main process."""
    if "wandb" not in (args.report_to or ()) or not state.is_world_process_zero:
        return ()
    import wandb

    return () if wandb.run is None else (WandbLogger(wandb.run),)


def _early_reporters(args: TrainingArguments) -> list[str]:
    """The reporters named in ``report_to``, W&B left out: the Trainer passes them each log before this callback."""
    names = [name for name in args.report_to or () if name != "wandb"]
    kinds = get_reporting_integration_callbacks(names)  # type: ignore[no-untyped-call]
    return [name for name, kind in zip(names, kinds, strict=True) if kind.on_log is not TrainerCallback.on_log]


def _logs(args: TrainingArguments, state: TrainerState, loader: Any) -> bool:
    """Whether the next step is logged by the Trainer, or is the last one."""
    step = state.global_step + 1
    if step >= state.max_steps or (step == 1 and args.logging_first_step):
        return True
    if args.logging_strategy == "epoch":
        return has_length(loader) and step % ceil(len(loader) / args.gradient_accumulation_steps) == 0
    return args.logging_strategy == "steps" and step % state.logging_steps == 0


def _numbers(driver: BaseCallback) -> dict[str, float]:
    pairs, seen = driver.values(), driver.seen()
    field = {} if seen is None else dict(zip(FIELD, seen.tolist(), strict=True))
    shares = {name: NormShare()(x).item() if name in SHARES else x.item() for name, x in pairs.items()}
    observed = {f"observed/{band}": percent for band, percent in driver.spectrum("observed")._asdict().items()}
    return driver.spectrum()._asdict() | observed | shares | field


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _mark(model: nn.Module) -> Tensor:
    """The mark of the trained weights, which identifies the checkpoint that a state belongs to."""
    return weights_mark(p for p in model.parameters() if p.requires_grad)


def _load(file: Path) -> dict[str, Any]:
    return dict(torch.load(file, map_location="cpu", weights_only=True))


def _saved(args: TrainingArguments, state: TrainerState, model: nn.Module) -> dict[str, Any]:
    """The state saved with the weights that the Trainer resumed from; their path is not passed to callbacks."""
    named = args.resume_from_checkpoint
    places = [_folder(args, state), *([Path(named)] if named else [])]
    for file in (place / FILE for place in places):
        if file.exists():
            kept = _load(file)
            if torch.equal(kept["mark"], _mark(model)):
                return kept
    warnings.warn(
        f"Resumed at step {state.global_step} without SAL's state: found no {FILE} for these weights in "
        f"{' or '.join(map(str, places))}. If the checkpoint is elsewhere, call "
        f"load_state_dict(torch.load('.../{FILE}', weights_only=True)) before train().",
        stacklevel=2,
    )
    return {}
