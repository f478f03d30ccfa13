import inspect
import re
import sys
import textwrap

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from sal_lightning import SALCallback
from tests import forked
from tests.everywhere import models
from tests.everywhere.models import Batches

DEFAULTS = {name: p.default for name, p in inspect.signature(SALCallback).parameters.items()}
CHOSEN = DEFAULTS | {
    "protection": "tensor",
    "consolidate_on": None,
    "strength": 0.5,
    "recall": 0,
    "share": 0.25,
    "name": "from a file",
    "field": None,
}


class CommandNet(models.Net):
    """What the command line trains: one option, data of its own."""

    def __init__(self, length: int = 20):
        super().__init__()
        self.length = length

    def train_dataloader(self):
        return torch.utils.data.DataLoader(Batches(self.length), batch_size=None)


QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def nothing_on_the_command_line(monkeypatch):
    """Lightning warns when it gets arguments from two sides; pytest's own are not for it."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


def run(tmp_path, *args, command="fit"):
    """The command line in this process; returns the callback that it made and its model."""
    args = [*([command] if command else []), f"--trainer.default_root_dir={tmp_path}", *args]
    cli = LightningCLI(
        CommandNet, args=args, run=bool(command), seed_everything_default=False, save_config_callback=None
    )
    (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, SALCallback))
    return callback, cli.model


def asked(callback):
    field = None if callback.watch is None else callback.watch.name
    return vars(callback.settings) | {"name": callback.name, "field": field, "histograms": callback.histograms}


@pytest.mark.slow
def test_the_full_name_with_an_option_trains_as_in_code(tmp_path):
    callback, model = run(
        tmp_path,
        *QUIET,
        "--trainer.callbacks+=sal_lightning.SALCallback",
        "--trainer.callbacks.protection=element",
        "--trainer.callbacks.consolidate_on=5",
    )
    assert asked(callback) == DEFAULTS | {"protection": "element", "consolidate_on": 5}
    assert callback.events == [5, 10, 15, 20]
    plain, same = CommandNet(), SALCallback("element", 5)
    models.trainer(tmp_path, [same]).fit(plain)
    assert models.same(model, plain)


def test_the_short_name_is_enough_once_the_package_is_imported(tmp_path):
    callback, _ = run(tmp_path, *QUIET, "--trainer.callbacks+=SALCallback")
    assert asked(callback) == DEFAULTS
    assert callback.layers[0].step == 20


@pytest.mark.parametrize(
    ("given", "expected"), [("novelty", "novelty"), ("fit", "fit"), ("30", 30), ("null", None)], ids=str
)
def test_every_trigger_can_be_written(tmp_path, given, expected):
    option = f"--trainer.callbacks.consolidate_on={given}"
    callback, _ = run(tmp_path, *QUIET, "--trainer.callbacks+=SALCallback", option, command=None)
    assert asked(callback) == DEFAULTS | {"consolidate_on": expected}
    assert type(callback.settings.consolidate_on) is type(expected)


def test_two_callbacks_can_be_named_apart(tmp_path):
    names = [["--trainer.callbacks+=SALCallback", f"--trainer.callbacks.name={name}"] for name in ("a", "b")]
    arguments = [f"--trainer.default_root_dir={tmp_path}", *QUIET, *names[0], *names[1]]
    cli = LightningCLI(CommandNet, args=arguments, run=False, seed_everything_default=False)
    callbacks = [c for c in cli.trainer.callbacks if isinstance(c, SALCallback)]
    assert [c.name for c in callbacks] == ["a", "b"]
    cli.trainer.fit(cli.model)
    assert [c.layers[0].step for c in callbacks] == [20, 20]


def written(tmp_path, **init_args):
    """A file that asks for the callback with these arguments."""
    options = dict(option.removeprefix("--trainer.").split("=") for option in QUIET)
    trainer = {name: yaml.safe_load(value) for name, value in options.items()}
    trainer["callbacks"] = [{"class_path": "sal_lightning.SALCallback", "init_args": init_args}]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"trainer": trainer, "model": {"length": 12}}))
    return file


def test_a_file_can_ask_for_everything(tmp_path):
    callback, model = run(tmp_path, f"--config={written(tmp_path, **CHOSEN)}")
    assert asked(callback) == CHOSEN
    assert set(callback.coverage().values()) == {"tensor"}
    assert model.length == callback.layers[0].step == 12


@pytest.mark.slow
def test_a_printed_configuration_asks_for_the_same_again(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        run(tmp_path, f"--config={written(tmp_path, **CHOSEN)}", "--print_config")
    assert left.value.code in (0, None)
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    (entry,) = yaml.safe_load(printed.read_text())["trainer"]["callbacks"]
    assert entry == {"class_path": "sal_lightning.SALCallback", "init_args": CHOSEN}
    callback, model = run(tmp_path, f"--config={printed}")
    assert asked(callback) == CHOSEN
    assert model.length == callback.layers[0].step == 12


def test_a_printed_configuration_shows_the_defaults(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, *QUIET, "--trainer.callbacks+=SALCallback", "--print_config")
    (entry,) = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert entry == {"class_path": "sal_lightning.SALCallback", "init_args": DEFAULTS}


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("protection=layer", r'"protection":\s+Expected .*subspace.*element.*tensor.*layer'),
        ("consolidate_on=never", r'"consolidate_on":[\s\S]+novelty.*fit[\s\S]+Given value: never'),
        ("consolidate_on=0", r"consolidate_on to be .* > 0, got 0"),
        ("strength=-1", r"strength to be a number > 0, got -1"),
        ("strength=much", r'"strength":\s+Expected .*float.*much'),
        ("recall=-0.1", r"recall to be a number >= 0, got -0\.1"),
        ("share=2", r"share to be a number in \(0, 1\], got 2"),
        ("firmness=3", r"'firmness' is not accepted"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(tmp_path, capsys, option, reason):
    with pytest.raises((SystemExit, ValueError)) as refused:
        run(tmp_path, *QUIET, "--trainer.callbacks+=SALCallback", f"--trainer.callbacks.{option}")
    assert re.search(reason, f"{refused.value}\n{capsys.readouterr().err}")


def test_help_tells_the_arguments_and_what_they_mean(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--trainer.callbacks.help=SALCallback")
    said = " ".join(capsys.readouterr().out.split())
    for name in DEFAULTS:
        assert f"--trainer.callbacks.{name}" in said
    meaning = re.search(r"^ +name: (.+)$", inspect.getdoc(SALCallback), re.MULTILINE)
    assert meaning.group(1) in said


SCRIPT = """
    import torch
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    import sal_lightning

    if __name__ == "__main__":
        torch.set_num_threads(1)
        cli = LightningCLI(BoringModel, seed_everything_default=1, save_config_callback=None)
        (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, sal_lightning.SALCallback))
        print("step", callback.layers[0].step, "events", callback.events, callback.coverage())
"""


@pytest.mark.slow
def test_a_script_of_ones_own_takes_it_from_a_shell(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    options = ["--trainer.callbacks+=SALCallback", "--trainer.callbacks.consolidate_on=3", "--trainer.max_steps=7"]
    limits = ["--trainer.limit_val_batches=0"]
    code = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    done = forked.run(code, script, "fit", *QUIET, *options, *limits, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 7 events [3, 6] {'layer.weight': 'subspace', 'layer.bias': 'subspace'}" in done.stdout
