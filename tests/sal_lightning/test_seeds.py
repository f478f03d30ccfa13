"""The code blocks of SAL's own README (MIT, sal-learning 1.0) run with this package in place of theirs."""

import pytest
import torch
from torch import nn

LAYER = """
from sal import CommunicationLayer

comm = CommunicationLayer(model)
comm.analyze()   # Measure stability
comm.protect()   # Guard stable patterns
"""

SPECTRUM = """
from sal import StabilityAnalyzer

analyzer = StabilityAnalyzer(model)
spectrum = analyzer.classify()
"""

FIELD = """
from sal import EmergenceField

field = EmergenceField()
coherence = field.measure_coherence(state)
novelty = field.measure_novelty(state)
emergence = field.detect_emergence(coherence, novelty)
"""

LOOP = """
import torch
from sal import CommunicationLayer, StabilityAnalyzer

# Your model
model = YourModel()
optimizer = torch.optim.Adam(model.parameters())

# SAL components
comm = CommunicationLayer(model)
stability = StabilityAnalyzer(model)

# Training loop with SAL
for batch in dataloader:
    output = model(batch)
    loss = criterion(output, target)
    loss.backward()

    # SAL: Ask before updating
    comm.analyze()
    comm.protect()

    optimizer.step()
    optimizer.zero_grad()
"""


def run(block: str, **names: object) -> dict[str, object]:
    namespace = dict(names)
    exec(block.replace("from sal import", "from sal_lightning import"), namespace)
    return namespace


@pytest.mark.filterwarnings("ignore:CommunicationLayer was given no optimizer")
def test_the_communication_layer():
    model = nn.Linear(4, 2)
    model(torch.randn(3, 4)).sum().backward()
    comm = run(LAYER, model=model)["comm"]
    assert comm.step == 1
    assert set(comm.coverage().values()) == {"subspace"}  # the layer ran before it was hooked: it must keep its rule


def test_the_stability_spectrum():
    spectrum = run(SPECTRUM, model=nn.Linear(4, 2))["spectrum"]
    assert str(spectrum) == "{'protected': 0%, 'neutral': 0%, 'volatile': 100%}"


def test_the_emergence_field():
    found = run(FIELD, state=torch.ones(5, 3))
    assert (found["coherence"], found["novelty"], found["emergence"]) == (1.0, 1.0, True)


@pytest.mark.parametrize("optimizer_given", [False, True])
def test_the_training_loop(optimizer_given):
    torch.manual_seed(0)
    names = {
        "YourModel": lambda: nn.Linear(4, 2),
        "dataloader": [torch.randn(8, 4) for _ in range(50)],
        "criterion": nn.MSELoss(),
        "target": torch.zeros(8, 2),
    }
    if optimizer_given:
        found = run(LOOP.replace("CommunicationLayer(model)", "CommunicationLayer(model, optimizer)"), **names)
    else:
        with pytest.warns(UserWarning, match="no optimizer"):
            found = run(LOOP, **names)
    assert found["comm"].step == 50
    assert found["loss"] < 0.5
