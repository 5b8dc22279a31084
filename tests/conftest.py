"""What every test shares."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "inkdrop",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is not a fault
)
settings.load_profile("inkdrop")

# No test may write to the cache of whoever runs it. It is set here, before anything is imported
# that reads it, and in the environment, which worker processes and commands inherit.
_CACHE = tempfile.mkdtemp(prefix="inkdrop-tests-")
os.environ["INKDROP_CACHE"] = _CACHE
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def known_answers() -> dict[str, Any]:
    """Numbers computed once, outside this code."""
    return json.loads((Path(__file__).parent / "known_answers.json").read_text())


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets, $INKDROP_DATA."""
    root = os.environ.get("INKDROP_DATA")
    if not root:
        pytest.skip("needs real data: set INKDROP_DATA to its folder")
    return Path(root)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a tiny network trained on the digits for a few steps; not to be changed."""
    import inkdrop
    from inkdrop.config import UNetConfig

    config = inkdrop.presets.digits()
    config.schedule.timesteps = 20
    config.network = UNetConfig(channels=4, multipliers=(1, 2), blocks=1)
    config.training.steps = 6
    config.logging.metrics_every = 2
    config.logging.held_out_every = 3
    config.logging.checkpoint_every = 3
    config.logging.samples_every = 3
    return inkdrop.train(config, tmp_path_factory.mktemp("runs") / "digits").path


@pytest.fixture(scope="session")
def points_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a tiny network trained on points for a few steps; not to be changed."""
    import inkdrop
    from inkdrop.config import Config, MLPConfig

    config = Config(
        name="points-gmm",
        data={"source": "points-gmm"},
        schedule={"kind": "cosine", "timesteps": 20},
        network=MLPConfig(width=8, blocks=1),
        training={"steps": 6, "batch_size": 32},
        logging={"metrics_every": 2, "held_out_every": 3, "samples_every": 3},
    )
    return inkdrop.train(config, tmp_path_factory.mktemp("runs") / "points").path
