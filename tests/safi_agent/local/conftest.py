from pathlib import Path

import pytest

from safi_agent.local.training import train_judge
from tests.safi_agent.local.judges import FAST, VALUES, examples
from tests.tiny_encoder import encoder_folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder."""
    return encoder_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """The folder of a judge of Truth and Care; it has no head for Thrift."""
    folder = tmp_path_factory.mktemp("judge") / "first"
    train_judge(examples(), VALUES, folder, encoder=encoder, settings=FAST)
    return folder
