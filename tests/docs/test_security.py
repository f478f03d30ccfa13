"""What SECURITY.md says of the code as a whole is so."""

import ast
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT

PACKAGES = ("sal_lightning", "safi_agent", "sal_page", "sal_cli")
UNPICKLING = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml.load"}
RUNNING = {"eval", "exec", "compile", "__import__", "subprocess", "os.system", "os.popen"} | UNPICKLING


def used(node: ast.AST) -> Iterator[str]:
    """Modules that are imported and functions that are called by their names."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield str(node.module).partition(".")[0]
    elif isinstance(node, ast.Call):
        yield ast.unparse(node.func)


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_is_read_is_run(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            assert not RUNNING & set(used(node)), (file, ast.unparse(node))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert ast.unparse(node).endswith("weights_only=True)"), file
