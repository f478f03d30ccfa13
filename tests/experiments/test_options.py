"""The options that commands share mean the same in each."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["continual", "detection", "selection"])
def test_a_command_has_them_with_its_own_folder(name: str) -> None:
    parser = import_module(f"experiments.{name}.__main__").parser()
    usual = {"data": "mnist", "out": Path(f"results/{name}"), "force": False, "table": None, "threads": 1}
    assert vars(parser.parse_args([])).items() >= usual.items()
    other = {"data": "digits", "out": Path("a"), "force": True, "table": Path("b.md"), "threads": 2}
    asked = parser.parse_args(["--data", "digits", "--out", "a", "--force", "--table", "b.md", "--threads", "2"])
    assert vars(asked).items() >= other.items()
