import pytest

import sal_lightning
from tests import forked


def test_the_public_list_is_this():
    assert sal_lightning.__all__ == [
        "AverageAccuracy",
        "BackwardTransfer",
        "CommunicationLayer",
        "DriftMonitor",
        "EmergenceField",
        "EmergenceState",
        "Forgetting",
        "ForwardTransfer",
        "LearningAccuracy",
        "Lineage",
        "MinAccuracy",
        "Pulse",
        "PulseCascade",
        "SALCallback",
        "StabilityAnalyzer",
        "StabilitySpectrum",
        "WorstAccuracy",
        "WorstCaseAccuracy",
        "emergence_select",
    ]
    assert all(hasattr(sal_lightning, name) for name in sal_lightning.__all__)


# In a process that has imported torch, and forgets whatever it has imported besides that could import the others.
FRESH = """
import sys
others = {"safi_agent", "wandb", "plotly", "sklearn"}
through = {"sal_lightning", "lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning", "torchmetrics"}
through.add("transformers")
for name in [name for name in sys.modules if name.partition(".")[0] in others | through]:
    del sys.modules[name]
import sal_lightning
print(sorted(others & set(sys.modules)))
"""


@pytest.mark.slow
def test_importing_it_loads_neither_the_other_package_nor_wandb():
    ran = forked.run(FRESH)
    assert ran.stdout.strip() == "[]", ran.stderr


@pytest.mark.slow
def test_the_engine_needs_no_lightning():
    import ast
    from pathlib import Path

    for file in Path(sal_lightning.__file__).parent.rglob("*.py"):
        if file.name in ("callback.py", "drift_monitor.py"):
            continue
        imports = {
            name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module])
        }
        assert not any(name.split(".")[0] in ("lightning", "pytorch_lightning") for name in imports), file
