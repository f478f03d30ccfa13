"""Every Python block of every page runs: those of a page in order, in one namespace, in an empty folder, offline."""

import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import PAGES, blocks, name

RUN = [page for page in PAGES if blocks(page, "python")]
SERVED = [page for page in RUN if any("SAFI_STORE" in block for block in blocks(page, "python"))]
# Names the folder of a language model. What a page prints with it is shown; without it, the page gets a tiny model.
MODEL = "SMOLLM2"
ENCODER = "MINILM"  # of an encoder, likewise
# Whose blocks train for seconds.
LONG = (
    "howto/ddp",
    "howto/lora",
    "howto/resume",
    "howto/wandb",
    "tutorials/continual",
    "tutorials/finetune",
    "tutorials/judge",
    "tutorials/language_model",
)
SLOW = {f"docs/{page}.md" for page in LONG}
# Whose blocks print the same on every machine; … stands for what does not.
EXACT = {
    f"docs/{page}.md"
    for page in (
        "howto/erase",
        "howto/opentelemetry",
        "howto/policies",
        "howto/serve",
        "howto/values",
        "howto/verify",
        "howto/workers",
        "tutorials/agent",
        "tutorials/chain",
    )
}
KEYS = (
    "OPENAI_API_KEY",
    "LANGSMITH_TRACING",
    "LANGCHAIN_TRACING_V2",
    "SAFI_STORE",
    "SAFI_LOG_KEY",
    "SAFI_LOG_KEY_FILE",
    "SAFI_SIGNING_KEY",
    "SAFI_SIGNING_KEY_FILE",
)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader has no key yet, and nobody asks a network."""
    monkeypatch.chdir(tmp_path)
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr("sys.argv", ["page"])  # LightningCLI reads it
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors name the page's own lines; a block of text is what the block before it printed, where that is exact."""
    module, said = ModuleType("page"), ""
    uses_model, given = tiny_model(page, monkeypatch)
    monkeypatch.setitem(sys.modules, "page", module)
    outputs = blocks(page, "text")
    for block in blocks(page, "python", "text"):
        if block not in outputs:
            exec(compile(block, str(page), "exec"), vars(module))
            said = capsys.readouterr().out
            if uses_model and given:
                with capsys.disabled():  # what the page shows
                    print(said, end="", flush=True)
        elif name(page) in EXACT:
            shown = ".*".join(map(re.escape, block.lstrip("\n").split("…")))
            assert re.fullmatch(shown, said, re.DOTALL), said


def tiny_model(page: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, bool]:
    """Whether the page uses a model, and whether its folder is named; if not, it gets a tiny one."""
    used = {key for key in (MODEL, ENCODER) if any(key in block for block in blocks(page, "python"))}
    given = {key for key in used if key in os.environ}
    for key in used - given:
        if key == MODEL:
            from tests.tiny_language_model import model_folder as make
        else:
            from tests.tiny_encoder import encoder_folder as make
        monkeypatch.setenv(key, str(make(Path("model").resolve())))
    return bool(used), bool(given)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (name(page) in SLOW)) for page in RUN], ids=name
)
def test_its_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(page, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("page", SERVED, ids=name)
def test_its_blocks_run_on_postgres(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database: str
) -> None:
    monkeypatch.setenv("SAFI_STORE", database)
    run(page, monkeypatch, capsys)


def test_there_are_pages_with_blocks() -> None:
    assert {"README.md", "docs/sal.md", "docs/safi.md", "docs/postgres.md"} <= set(map(name, RUN))
    assert "docs/postgres.md" in map(name, SERVED)
