import subprocess
import sys

import pytest

import sal_lightning


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


def loaded(module: str, others: str) -> str:
    code = f"import sys, {module}; print(sorted(m for m in {others} if m in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_importing_it_loads_neither_the_other_package_nor_wandb():
    assert loaded("sal_lightning", "('safi_agent', 'wandb', 'plotly', 'sklearn')") == "[]"


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
