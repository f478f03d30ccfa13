"""Every relative link and picture of every page leads to what is there."""

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, inline, name


def targets(page: Path) -> list[str]:
    """Of its links and pictures, those that lead to no other site."""
    found = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in inline(page)]
    elsewhere = ("mailto:", "../../actions/")  # the second is a page of the host, relative to the repository's own
    return [target for target in found if target and "://" not in target and not target.startswith(elsewhere)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in targets(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_leads_to_the_docs() -> None:
    assert "docs/sal.md#where-it-works" in targets(ROOT / "README.md")
