"""Files for hosts and tools: they parse, and what they name exists."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import sal_lightning
from tests.docs.pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_workflow_runs_the_script_on_every_python_that_is_declared() -> None:
    job = read(".github/workflows/ci.yml")["jobs"]["run"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    declared = {version for text in PROJECT["classifiers"] if (version := text.rpartition(" ")[2]).startswith("3.")}
    assert set(job["strategy"]["matrix"]["python"]) == declared


def test_the_docs_are_built_with_extras_that_exist_and_fail_on_warnings() -> None:
    config = read(".readthedocs.yaml")
    (installed,) = config["python"]["install"]
    assert set(installed["extra_requirements"]) <= set(PROJECT["optional-dependencies"])
    assert (ROOT / config["sphinx"]["configuration"]).is_file()
    assert config["sphinx"]["fail_on_warning"] is True
    for command in config["build"]["jobs"]["pre_install"]:
        assert (ROOT / command.split()[0]).is_file()


def test_the_citation_is_of_this_version_and_licence() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == sal_lightning.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    bibtex = (ROOT / "docs/project/citing.md").read_text()
    assert citation["title"] in bibtex
    assert f"version = {{{citation['version']}}}" in bibtex
    assert citation["references"][0]["url"] in PROJECT["urls"].values()


def test_the_hooks_before_a_commit_are_the_checks() -> None:
    (local,) = read(".pre-commit-config.yaml")["repos"]
    entries = {hook["entry"].removeprefix(".venv/bin/python -m ").split(" --f")[0] for hook in local["hooks"]}
    checked = re.findall(r"-m (.+?)(?: \.)?$", (ROOT / "scripts/check").read_text(), re.MULTILINE)
    assert entries == {command.removesuffix(" .") for command in checked}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_issue_templates_have_what_a_host_needs(template: Path) -> None:
    form = yaml.safe_load(template.read_text())
    if template.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert form["name"]
    assert form["description"]
    assert {part["type"] for part in form["body"]} <= {"input", "textarea", "markdown"}
    for page in re.findall(r"docs/[\w/]+\.md", template.read_text()):
        assert (ROOT / page).is_file(), page


def test_no_repository_address_is_invented() -> None:
    files = [ROOT / "CITATION.cff", ROOT / ".readthedocs.yaml", *(ROOT / ".github").rglob("*.*")]
    found = {url for file in files for url in re.findall(r"https?://[^\s\"']+", file.read_text())}
    assert found <= set(PROJECT["urls"].values())
