"""Several processes train as one: the same weights however many, and they end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inkdrop
from inkdrop.checkpoint import newest_checkpoint, read_checkpoint
from inkdrop.config import Config, LoggingConfig, ScheduleConfig, TrainingConfig, UNetConfig
from inkdrop.data.images import ImageSet, Source
from inkdrop.training.trainer import Trainer, train

STEPS = 50

# What every process runs: trainings of `jobs`, each (folder, configuration, step to be signalled
# at or None), where the last process alone is sent the signal.
WORKER = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_many_processes import source
from inkdrop.config import Config
from inkdrop.processes import joined
from inkdrop.training.trainer import Trainer

with joined() as processes:
    for out, config, stop in json.loads(open(sys.argv[1]).read()):
        trainer = Trainer(Config(**config), out, source=source())
        if stop is not None and processes.rank == processes.size - 1:
            train_step = trainer.train_step
            def watched():
                train_step()
                if trainer.step == stop:
                    os.kill(os.getpid(), signal.SIGTERM)
            trainer.train_step = watched
        trainer.run()
"""


def source() -> Source:
    """Fifty images of 4×4, with three classes."""
    pixels = torch.arange(50 * 16).reshape(50, 1, 4, 4) * 37 % 256
    return Source(ImageSet(pixels.to(torch.uint8), torch.arange(50) % 3, "patterns"), None)


def config(precision: str = "float64", **training: Any) -> Config:
    settings: dict[str, Any] = {"steps": STEPS, "batch_size": 8, "learning_rate": 1e-2}
    return Config(
        name="tiny",
        schedule=ScheduleConfig(kind="cosine", timesteps=20),
        network=UNetConfig(channels=4, multipliers=(1, 2), blocks=1, classes=3),
        data={"non_leaking": 0.2},
        timestep_sampler="loss-aware",
        training=TrainingConfig(**(settings | {"precision": precision} | training)),
        logging=LoggingConfig(
            metrics_every=5, held_out_every=10, checkpoint_every=20, samples_every=25
        ),
    )


def on_processes(count: int, folder: Path, *jobs: tuple[Path, Config, int | None]) -> None:
    """Train on `count` processes, as torchrun starts them."""
    worker, told = folder / "worker.py", folder / "jobs.json"
    worker.write_text(WORKER)
    told.write_text(json.dumps([(str(o), c.model_dump(mode="json"), s) for o, c, s in jobs]))
    done = launched(count, str(worker), str(told), str(Path(__file__).parent))
    assert done.returncode == 0, done.stderr


def launched(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", str(count), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def weights(out: Path) -> dict[str, Tensor]:
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    tensors = read_checkpoint(path).tensors
    return {f"{part}/{name}": t for part in tensors for name, t in tensors[part].items()}


def largest_difference(a: Path, b: Path) -> float:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def figures(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row.get("loss", row.get("held_out_loss")) for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(config(), folder / "float64", source=source(), progress=False)
    train(config("float32"), folder / "float32", source=source(), progress=False)
    return folder


def test_two_processes_train_what_one_does(alone: Path, tmp_path: Path) -> None:
    on_processes(
        2,
        tmp_path,
        (tmp_path / "float64", config(accumulation=2), None),
        (tmp_path / "float32", config("float32"), None),
        (tmp_path / "fsdp", config(parallel="fsdp"), None),
        (tmp_path / "stopped", config(), 23),
    )
    assert largest_difference(alone / "float64", tmp_path / "float64") < 1e-10
    assert largest_difference(alone / "float64", tmp_path / "fsdp") < 1e-10
    assert largest_difference(alone / "float32", tmp_path / "float32") < 1e-3
    assert figures(tmp_path / "float64") == pytest.approx(figures(alone / "float64"), rel=1e-10)
    assert figures(tmp_path / "fsdp") == pytest.approx(figures(alone / "float64"), rel=1e-10)
    picture = "samples/training/step-00000025.png"
    drawn = (alone / "float64" / picture).read_bytes()
    for made in ("float64", "fsdp"):
        assert (tmp_path / made / picture).read_bytes() == drawn

    # One was told to stop: all did, after the same step, and another number of them goes on.
    assert inkdrop.load(tmp_path / "stopped").step == 24
    train(config(), tmp_path / "stopped", source=source(), progress=False)
    assert largest_difference(alone / "float64", tmp_path / "stopped") < 1e-10
    sessions = inkdrop.load(tmp_path / "stopped").environment["sessions"]
    assert [session["processes"] for session in sessions] == [2, 1]


def test_a_run_of_one_goes_on_with_four(alone: Path, tmp_path: Path) -> None:
    half = Trainer(config(accumulation=4), tmp_path / "run", source=source())
    train_step = half.train_step

    def watched() -> None:
        train_step()
        if half.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    half.train_step = watched  # type: ignore[method-assign]
    half.run()
    assert inkdrop.load(tmp_path / "run").step == 20
    on_processes(4, tmp_path, (tmp_path / "run", config(accumulation=2), None))
    assert largest_difference(alone / "float64", tmp_path / "run") < 1e-10


FAILING = """
import sys
sys.path.insert(0, sys.argv[2])
from test_many_processes import config, source
from inkdrop import cli
from inkdrop.errors import InkdropError
from inkdrop.processes import current
from inkdrop.training.trainer import Trainer

def train(arguments):
    trainer = Trainer(config(), sys.argv[1], source=source())
    step = trainer.train_step
    def failing():
        if trainer.step == 5 and current().rank == 1:
            raise InkdropError("the disk of this one is broken")
        step()
    trainer.train_step = failing
    trainer.run()
    return 0

cli._COMMANDS["train"] = train
sys.exit(cli.run(["train"]))
"""


def test_a_process_that_fails_ends_the_job_with_its_error(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(FAILING)
    began = time.monotonic()
    done = launched(2, str(worker), str(tmp_path / "run"), str(Path(__file__).parent))
    assert time.monotonic() - began < 60  # most of it the start
    assert done.returncode != 0
    assert "inkdrop (process 1): the disk of this one is broken" in done.stderr


def test_a_mistake_of_all_is_told_once(tmp_path: Path) -> None:
    arguments = ["-m", "inkdrop", "train", "digits", "--out", str(tmp_path / "run")]
    done = launched(2, *arguments, "--batch-size", "33")
    assert done.returncode != 0
    assert done.stderr.count("a batch of 33 cannot be shared evenly by 2 processes") == 1
    assert not (tmp_path / "run").exists()


DYING = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_many_processes import config, source
from inkdrop.processes import joined
from inkdrop.training.trainer import Trainer

with joined() as processes:
    trainer = Trainer(config(), sys.argv[1], source=source())
    step = trainer.train_step
    def dying():
        first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first_start and processes.rank == 0 and trainer.step == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        step()
    trainer.train_step = dying
    trainer.run()
"""


def test_a_job_that_lost_a_process_is_started_again_and_ends_the_same(
    alone: Path, tmp_path: Path
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(DYING)
    out, here = str(tmp_path / "run"), str(Path(__file__).parent)
    done = launched(2, "--max-restarts", "1", str(worker), out, here)
    assert done.returncode == 0, done.stderr
    assert largest_difference(alone / "float64", tmp_path / "run") < 1e-10
    sessions = inkdrop.load(tmp_path / "run").environment["sessions"]
    assert [session["first_step"] for session in sessions] == [0, 20]
