import re

from tests.docs.pages import ROOT

PAGE = ROOT / "docs/project/organisation.md"
PACKAGES = ("sal_lightning", "safi_agent")


def named() -> list[str]:
    """Files and folders that the page names."""
    return re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py|\.md|/))`", PAGE.read_text())


def test_every_file_that_it_names_exists():
    missing = [name for name in named() if not (ROOT / name).exists()]
    assert len(named()) > 60
    assert not missing


def test_every_package_is_named():
    text = PAGE.read_text()
    folders = [p.parent.relative_to(ROOT) for package in PACKAGES for p in (ROOT / package).glob("*/__init__.py")]
    assert len(folders) > 8
    unnamed = [str(folder) for folder in folders if f"{folder}/" not in text]
    assert not unnamed
