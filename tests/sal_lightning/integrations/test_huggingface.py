import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset

transformers = pytest.importorskip("transformers")

from sal_lightning import CommunicationLayer, SALCallback, StabilitySpectrum  # noqa: E402
from sal_lightning.integrations.huggingface import FILE, SALTrainerCallback  # noqa: E402
from sal_lightning.report.histograms import views  # noqa: E402
from sal_lightning.report.reading import read  # noqa: E402
from tests import forked, offline_wandb  # noqa: E402

pytestmark = pytest.mark.slow

BANDS = ("protected", "neutral", "volatile")
FIELD = ("coherence", "novelty", "resonance", "emergence")
REST = ("suppressed", "effect", "drift", "surprise", "consolidations", "step")
NAMES = {f"sal/{name}" for name in (*BANDS, *(f"observed/{band}" for band in BANDS), *FIELD, *REST)}


class Text(Dataset):
    """Counting in threes with the first 25 tokens; the second task counts in sevens with the other 25."""

    def __init__(self, task=0, n=160):
        start = torch.randint(25, (n, 1), generator=torch.Generator().manual_seed(task))
        self.ids = (start + (3, 7)[task] * torch.arange(8)) % 25 + 25 * task

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def both():
    """Forty batches of the first task, then eight of the second."""
    return ConcatDataset([Text(0, 160), Text(1, 32)])


def gpt2(seed=0, **options):
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=8, bos_token_id=0, eos_token_id=0, **options
        )
    )


def trainer(folder, callbacks, model, data=None, kind=transformers.Trainer, **options):
    options = {"max_steps": 48, "learning_rate": 5e-3, "lr_scheduler_type": "constant", "save_strategy": "no"} | options
    options = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"} | options
    options = {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False} | options
    args = transformers.TrainingArguments(output_dir=str(folder), use_cpu=True, **options)
    return kind(model=model, args=args, train_dataset=data or both(), eval_dataset=Text(n=4), callbacks=callbacks)


def train(folder, callbacks, model, data=None, **options):
    run = trainer(folder, callbacks, model, data, **options)
    run.train()
    return run


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@torch.no_grad()
def loss(model, task):
    ids = Text(task).ids
    return model.eval()(input_ids=ids, labels=ids).loss.item()


def hooks(model, optimizer):
    inner = optimizer.optimizer
    forward = [hook for m in model.modules() for hook in m._forward_pre_hooks.values()]
    return len(forward) + len(inner._optimizer_step_pre_hooks) + len(inner._optimizer_step_post_hooks)


@pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])
def test_with_no_argument_it_finds_the_change_and_protects(tmp_path, protection):
    model, callback = gpt2(), SALTrainerCallback(protection=protection)
    run = train(tmp_path, [callback], model)
    assert callback.events == ([] if protection == "tensor" else [43])
    assert sum(callback.spectrum()) == pytest.approx(100)
    assert sum(callback.spectrum("observed")) == pytest.approx(100)
    assert set(callback.coverage()) == {n for n, _ in model.named_parameters()}
    assert callback.memory()["model"] == 4 * sum(p.numel() for p in model.parameters())
    assert hooks(model, run.optimizer) == 0
    if protection != "tensor":
        assert callback.spectrum().protected > 0


def test_before_the_first_training_everything_is_volatile():
    callback = SALTrainerCallback()
    assert callback.spectrum() == callback.spectrum("observed") == StabilitySpectrum(0.0, 0.0, 100.0)
    assert callback.events == []
    assert callback.coverage() == callback.state_dict() == {}
    assert callback.memory() == SALCallback().memory()
    with pytest.raises(ValueError, match=r"'held' or 'observed'.*'both'"):
        callback.spectrum("both")
    with pytest.raises(ValueError, match="strength"):
        SALTrainerCallback(strength=0)


def test_without_a_change_training_is_untouched(tmp_path):
    plain, watched = gpt2(), gpt2()
    train(tmp_path, [], plain, Text(), max_steps=24)
    train(tmp_path, [SALTrainerCallback()], watched, Text(), max_steps=24)
    assert same(plain, watched)


def test_what_was_learned_first_is_forgotten_less(tmp_path):
    models, callback = (gpt2(), gpt2()), SALTrainerCallback()
    for model, callbacks in zip(models, ([], [callback]), strict=True):
        before = None
        for task in (0, 1):
            train(tmp_path, callbacks, model, Text(task), max_steps=60, per_device_train_batch_size=16)
            before = loss(model, 0) if before is None else before
        assert loss(model, 1) < 0.2
    assert callback.events == [63]
    assert loss(models[1], 0) - before < 0.3 * (loss(models[0], 0) - before)


def test_accumulated_batches_are_one_step(tmp_path):
    callback = SALTrainerCallback()
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    run = train(tmp_path, [callback], gpt2(), logging_steps=24, **options)
    assert callback.events == [43]
    assert [row["sal/step"] for row in run.state.log_history if "loss" in row] == [24, 48]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # its new name is too new
@pytest.mark.parametrize("option", [{"bf16": True}, {"gradient_checkpointing": True}, {"max_grad_norm": 0.0}])
def test_it_works_together_with(tmp_path, option):
    model, callback = gpt2(), SALTrainerCallback()
    train(tmp_path, [callback], model, **option)
    assert callback.events == [43]
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_model_that_is_trained_in_evaluation_mode_is_observed(tmp_path):
    class Evaluating(transformers.Trainer):
        def training_step(self, model, *args, **kwargs):
            model.train = lambda mode=True: model  # the Trainer asks for training mode in each step
            return super().training_step(model.eval(), *args, **kwargs)

    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    models, callbacks = [gpt2(**still), gpt2(**still)], [SALTrainerCallback(), SALTrainerCallback()]
    trainer(tmp_path, callbacks[:1], models[0], kind=Evaluating, eval_strategy="steps", eval_steps=5).train()
    train(tmp_path, callbacks[1:], models[1])
    assert callbacks[0].events == callbacks[1].events
    assert len(callbacks[0].events) == 1
    assert same(*models)


class Reporter(transformers.TrainerCallback):
    """Stands for Weights & Biases and the like."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append(dict(logs))


def test_values_reach_the_history_and_reporters_on_log_steps(tmp_path):
    reporter = Reporter()
    run = train(tmp_path, [SALTrainerCallback(), reporter], gpt2(), logging_steps=20)
    history = run.state.log_history
    assert [row["step"] for row in history if set(row) >= NAMES] == [20, 40, 48]  # the last with the summary
    assert [row["sal/step"] for row in reporter.rows] == [20, 40, 48]
    assert [row["sal/consolidations"] for row in history] == [0, 0, 1]
    for name in ("suppressed", "effect"):
        assert [row[f"sal/{name}"] > 0 for row in history] == [False, False, True]
    assert all(sum(row[f"sal/{band}"] for band in BANDS) == pytest.approx(100) for row in history)
    assert json.dumps(history)


def test_values_histograms_and_events_reach_the_run_that_report_to_names(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    callback = SALTrainerCallback(histograms=True)
    run = train(tmp_path, [callback], gpt2(), logging_steps=20, report_to="wandb")
    wandb.finish()
    wandb.teardown()
    rows = offline_wandb.history(tmp_path)
    found = [{name: row[name] for name in NAMES} for row in rows if set(row) >= NAMES]  # the names are Lightning's too
    expected = [{name: row[name] for name in NAMES} for row in run.state.log_history]
    assert found == [pytest.approx(row, nan_ok=True) for row in expected]
    histograms = [row for row in rows if "sal/stability/held/values" in row]
    assert [row["sal/step"] for row in histograms] == [20, 40, 48]
    seen = views(callback.layers)
    assert seen
    for name, view in seen.items():
        assert histograms[-1][f"sal/layers/{name}/held/values"] == pytest.approx(list(view.held))
    assert [row["sal/consolidated_at"] for row in rows if "sal/consolidated_at" in row] == callback.events == [43]
    assert len([row for row in rows if "sal/table/path" in row]) == 1
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [
        row["loss"] for row in run.state.log_history if "loss" in row
    ]
    report = read(list(tmp_path.glob("wandb/offline-run-*")))
    assert report.events == callback.events
    assert set(report.layers()) == set(seen)


def test_other_reporters_are_named_once_and_reached_as_the_warning_says(tmp_path, monkeypatch):
    known = transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK
    monkeypatch.setitem(known, "mlflow", Reporter)
    monkeypatch.setitem(known, "codecarbon", transformers.TrainerCallback)  # reports nothing of the logs
    callback = SALTrainerCallback()
    options = {"max_steps": 2, "logging_steps": 1}
    with pytest.warns(UserWarning, match=r"not reported to 'mlflow'.*report_to=\[\]"):
        train(tmp_path, [callback], gpt2(), report_to=["mlflow", "codecarbon"], **options)
    train(tmp_path, [callback], gpt2(), report_to=["mlflow"], **options)  # a second warning would be an error
    late = [kind() for kind in transformers.integrations.get_reporting_integration_callbacks(["mlflow"])]
    train(tmp_path, [SALTrainerCallback(), *late], gpt2(), **options)
    assert [row.keys() >= NAMES for row in late[0].rows] == [True, True, False]  # the last is the summary


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"logging_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1}, [6, 12]),
        ({"logging_strategy": "epoch", "num_train_epochs": 1, "max_steps": -1, "gradient_accumulation_steps": 3}, [2]),
        ({"logging_strategy": "no", "max_steps": 3}, [3]),
        ({"logging_steps": 10, "logging_first_step": True, "max_steps": 12}, [1, 10, 12]),
        ({"logging_steps": 0.5, "max_steps": 12, "eval_strategy": "steps"}, [6, 12]),
    ],
)
def test_the_trainers_rhythm_is_kept_and_other_steps_are_not_measured(tmp_path, monkeypatch, options, steps):
    measured, protect = [], CommunicationLayer.protect
    monkeypatch.setattr(CommunicationLayer, "protect", lambda self: (measured.append(self.measure), protect(self)))
    run = train(tmp_path, [SALTrainerCallback()], gpt2(), Text(n=24), **options)
    assert [row["step"] for row in run.state.log_history if "sal/step" in row] == steps
    assert [i for i, yes in enumerate(measured, 1) if yes] == steps


# The second checkpoint of the first training stands in the middle of a change: suspected, not confirmed.
@pytest.mark.parametrize(
    ("make", "every", "steps"), [(SALTrainerCallback, 21, 48), (lambda: SALTrainerCallback("element", "fit"), 6, 14)]
)
def test_a_resumed_training_is_the_whole_one_bit_for_bit(tmp_path, make, every, steps):
    whole, expected = gpt2(), make()
    train(tmp_path, [expected], whole, max_steps=steps, save_strategy="steps", save_steps=every)
    for step in (every, 2 * every):
        model, callback = gpt2(seed=1), make()
        place = str(tmp_path / f"checkpoint-{step}")
        trainer(tmp_path, [callback], model, max_steps=steps).train(resume_from_checkpoint=place)
        assert same(whole, model)
        assert callback.events == expected.events
        assert callback.spectrum() == expected.spectrum()
        assert callback.spectrum("observed") == expected.spectrum("observed")


def test_a_checkpoint_elsewhere_is_named_or_loaded_by_hand(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    make = lambda: SALTrainerCallback(consolidate_on=4)  # noqa: E731
    train(first, [make()], gpt2(), max_steps=5, save_strategy="steps", save_steps=5)
    # Of another training, at the same step: not to be taken for the one that is resumed.
    train(second, [make()], gpt2(), Text(1), max_steps=5, save_strategy="steps", save_steps=5)
    place = str(first / "checkpoint-5")
    named, loaded, lost = make(), make(), make()
    trainer(second, [named], gpt2(), max_steps=8, resume_from_checkpoint=place).train(resume_from_checkpoint=place)
    loaded.load_state_dict(torch.load(Path(place) / FILE, weights_only=True))
    trainer(second, [loaded], gpt2(), max_steps=8).train(resume_from_checkpoint=place)
    assert named.events == loaded.events == [4, 8]
    assert named.spectrum() == loaded.spectrum()
    with pytest.warns(UserWarning, match=r"Resumed at step 5 without.*load_state_dict"):
        trainer(second, [lost], gpt2(), max_steps=8).train(resume_from_checkpoint=place)
    assert lost.events == []


def test_a_checkpoint_of_weights_alone_has_no_state(tmp_path):
    train(tmp_path, [SALTrainerCallback()], gpt2(), max_steps=2, save_strategy="steps", save_only_model=True)
    assert not (tmp_path / "checkpoint-2" / FILE).exists()


def test_with_the_best_weights_comes_what_was_known_then(tmp_path):
    callback, every = SALTrainerCallback(consolidate_on=20), {"save_steps": 24, "eval_steps": 24}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    run = train(tmp_path, [callback], gpt2(), save_strategy="steps", eval_strategy="steps", **every, **best)
    assert run.state.best_global_step == 24
    assert callback.events == [20]
    assert hooks(run.model, run.optimizer) == 0


@pytest.mark.parametrize("same_trainer", [True, False])
def test_several_trainings_go_on_where_the_last_one_stood(tmp_path, same_trainer):
    model, callback = gpt2(), SALTrainerCallback(consolidate_on="fit")
    run = trainer(tmp_path, [callback], model, max_steps=4)
    for past in range(3):
        run = run if same_trainer else trainer(tmp_path, [callback], model, max_steps=4)
        run.train()
        assert callback.events == [4, 8][:past]
    assert callback.state_dict()["layers"][0]["step"] == 12


def test_by_hand_and_by_remembering(tmp_path):
    model, callback = gpt2(), SALTrainerCallback(consolidate_on=None)
    train(tmp_path, [], model, Text())
    batches = [{"input_ids": ids} for ids in Text().ids.split(16)]
    callback.remember(model, batches, limit=8)
    assert callback.events == [0]
    assert callback.spectrum().protected > 0
    train(tmp_path, [callback], model, Text(1), max_steps=20)
    callback.consolidate()
    assert callback.events == [0, 20]
    assert loss(model, 0) < 1


def test_hooks_left_by_a_training_that_fell_are_gone_in_the_next(tmp_path):
    class Falls(transformers.Trainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise RuntimeError("fell")
            return super().training_step(*args, **kwargs)

    model, callback = gpt2(), SALTrainerCallback()
    fallen = trainer(tmp_path, [callback], model, kind=Falls)
    with pytest.raises(RuntimeError, match="fell"):
        fallen.train()
    run = train(tmp_path, [callback], model, max_steps=4)
    assert hooks(model, fallen.optimizer) == hooks(model, run.optimizer) == 0
    assert callback.state_dict()["layers"][0]["step"] == 7


# peft asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_low_rank_adapters_are_covered_alone(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    model, callback = peft.get_peft_model(gpt2(), config), SALTrainerCallback(consolidate_on=24)
    base = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}
    train(tmp_path, [callback], model)
    assert set(callback.coverage()) == {n for n, _ in model.named_parameters() if "lora_" in n}
    assert set(callback.coverage().values()) == {"subspace"}
    assert callback.events == [24, 48]
    assert callback.spectrum().protected > 0
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)


def test_a_step_that_the_loss_scaler_skips_is_not_looked_at():
    accelerate = pytest.importorskip("accelerate")
    model, callback = gpt2(), SALTrainerCallback()
    args = transformers.TrainingArguments(use_cpu=True, report_to=[])
    accelerate.Accelerator(cpu=True)  # its optimizer asks a global state, which the arguments reset
    inner, scaler = torch.optim.Adam(model.parameters(), lr=1e-3), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(inner, scaler=scaler)
    state, control = transformers.TrainerState(max_steps=9), transformers.TrainerControl()
    given = {"model": model, "optimizer": optimizer, "train_dataloader": []}
    callback.on_train_begin(args, state, control, **given)
    for batch in range(4):
        ids = Text().ids[4 * batch : 4 * batch + 4]
        scaler.scale(model(input_ids=ids, labels=ids).loss * (math.inf if batch == 2 else 1)).backward()
        scaler.unscale_(inner)
        callback.on_pre_optimizer_step(args, state, control, **given)
        optimizer.step()
        assert optimizer.step_was_skipped == (batch == 2)
        optimizer.zero_grad()
    callback.on_train_end(args, state, control, **given)
    learned = callback.state_dict()
    assert learned["layers"][0]["step"] == 3
    assert all(means.isfinite().all() for means in learned["analyzer"]["means"].values())


def test_what_it_cannot_do_is_refused(tmp_path):
    args = transformers.TrainingArguments(use_cpu=True, report_to=[])
    search = transformers.TrainerState(is_hyper_param_search=True)
    callback, control = SALTrainerCallback(), transformers.TrainerControl()
    with pytest.raises(NotImplementedError, match="hyperparameter search"):
        callback.on_train_begin(args, search, control)
    args._n_gpu = 2
    with pytest.raises(NotImplementedError, match="DataParallel on 2 GPUs"):
        callback.on_train_begin(args, transformers.TrainerState(), control)


def test_the_library_needs_no_transformers_and_the_integration_says_what_to_install():
    code = """
import sys, torchmetrics  # which imports transformers for metrics of its own
for name in [name for name in sys.modules if name.partition(".")[0] in ("sal_lightning", "transformers")]:
    del sys.modules[name]
sys.modules["transformers"] = None
import sal_lightning; print("imported")
import sal_lightning.integrations.huggingface
"""
    ran = forked.run(code)
    assert ran.stdout.strip() == "imported"
    assert 'pip install "sal-lightning[huggingface]"' in ran.stderr.splitlines()[-1]
