from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

from dassl.utils import setup_logger

# A loaded machine is no failure, and a test is the same in every run.
settings.register_profile("steady", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("steady")

sys.path.insert(0, str(Path(__file__).parent))  # for toy_engine


@pytest.fixture(scope="module", autouse=True)
def register_toys():
    """Only here: other tests go through all that is registered."""
    import toy_engine

    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASET_REGISTRY._objects, "ToyImages", toy_engine.ToyImages)
        for trainer in (toy_engine.ToyTrainer, toy_engine.ToyPairTrainer):
            patch.setitem(TRAINER_REGISTRY._objects, trainer.__name__, trainer)
        yield


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy images."""
    from toy_engine import draw_images

    root = tmp_path_factory.mktemp("data")
    draw_images(root)
    return root


@pytest.fixture
def make_cfg(toy_root: Path, tmp_path: Path):
    """`make_cfg(KEY, value, …)`: the toy config, with a fresh output folder."""
    from toy_engine import toy_cfg

    def make(*options: object, output: str = "run"):
        return toy_cfg(toy_root, tmp_path / output, *options)

    return make


@pytest.fixture(autouse=True)
def end_log():
    yield
    setup_logger(None)
