"""What the reference says by hand is what the code says."""

import re

from safi_agent import SafiChain
from tests.docs.pages import ROOT


def test_every_setting_of_a_chain_has_its_row_and_its_default() -> None:
    page = (ROOT / "docs" / "reference" / "safi_agent.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (?:`(.*?)`|required) \|", page, re.MULTILINE))
    fields = SafiChain.model_fields.items()
    defaults = {name: "" if field.is_required() else shown(field.default) for name, field in fields if name != "name"}
    assert told == defaults


def shown(default: object) -> str:
    return getattr(default, "__name__", None) or repr(default)
