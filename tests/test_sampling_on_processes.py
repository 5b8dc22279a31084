"""Samples, likelihoods and fits made by several processes: those of one, to the bit."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import inkdrop
from inkdrop.config import UNetConfig
from inkdrop.diffusion.fitting import measure_terms
from inkdrop.diffusion.likelihood import bits_per_dim, ode_likelihood
from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.errors import InkdropError
from inkdrop.processes import Processes
from inkdrop.sampling import write_samples
from inkdrop.scoring import write_fit, write_likelihood
from inkdrop.sharing import check_same_step, first_does, gathering, idle_note, own_examples

IMAGES: dict[str, Any] = {"n": 66, "batch_size": 18, "sampler": "ancestral", "steps": 3, "seed": 4}
POINTS: dict[str, Any] = {"n": 11, "batch_size": 4, "steps": 4, "trajectory": True}
GUIDED: dict[str, Any] = {
    "n": 44,
    "batch_size": 9,
    "steps": 3,
    "classes": ["all"],
    "guidance": 2.0,
    "guidance_interval": [5, 19],
}
ONE_BATCH: dict[str, Any] = {"n": 3, "steps": 2}
BOUND: dict[str, Any] = {"n": 13, "batch_size": 4, "terms": 3, "seed": 2}
ODE: dict[str, Any] = {"n": 5, "batch_size": 2, "ode": True}
FIT: dict[str, Any] = {"n": 5, "split": "held-out"}

WORK = """
import json, sys
from pathlib import Path
import inkdrop
from inkdrop.errors import InkdropError
from inkdrop.processes import joined
from inkdrop.sampling import write_samples
from inkdrop.scoring import write_fit, write_likelihood

place, options = Path(sys.argv[1]), json.loads(sys.argv[2])
with joined() as processes:
    assert processes.size == 2
    images, points = (inkdrop.load(place / name, device="cpu") for name in ("images", "points"))
    made = write_samples(images, out=place / "two" / "images", **options["images"])
    assert (made / "samples.json").exists()  # for each process, as soon as the call is over
    write_samples(images, **options["one batch"])
    write_samples(points, out=place / "two" / "points", **options["points"])
    told = inkdrop.load(place / "told", device="cpu")
    write_samples(told, out=place / "two" / "told", **options["guided"])
    write_likelihood(images, **options["bound"])
    write_likelihood(points, **options["ode"])
    write_fit(images, **options["fit"])
    said = []
    for out in (place / "two" / "images", place / "two" / "images" / "grid.png" / "inside"):
        try:
            write_samples(images, n=1, steps=1, out=out)
        except (InkdropError, OSError) as error:
            said.append(str(error))
    images.step += processes.rank
    try:
        write_samples(images, n=1, steps=1)
    except InkdropError as error:
        said.append(str(error))
    (place / f"said-{processes.rank}.json").write_text(json.dumps(said))
"""

FAILURE = """
import sys, time
from pathlib import Path
import inkdrop, inkdrop.sampling
from inkdrop.processes import joined

to_picture = inkdrop.sampling.to_picture
with joined() as processes:
    def broken(image):
        raise RuntimeError("the second process is lost")
    if processes.rank == 1:
        inkdrop.sampling.to_picture = broken
    run = inkdrop.load(sys.argv[1], device="cpu")
    inkdrop.sampling.write_samples(run, n=4, steps=2, batch_size=2)
"""


def torchrun(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A script in two processes of one thread each."""
    file = folder / "script.py"
    file.write_text(script)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launch, str(file), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def told_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of digits that is told their classes; not to be changed."""
    config = inkdrop.presets.digits()
    config.conditional, config.label_dropout = True, 0.3
    config.schedule.timesteps = 20
    config.network = UNetConfig(channels=4, multipliers=(1, 2), blocks=1)
    config.training.steps, config.logging.samples_every = 6, 0
    return inkdrop.train(config, tmp_path_factory.mktemp("told") / "run", progress=False).path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the order in which a process of one thread makes them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_make_what_one_makes(
    finished_run: Path, points_run: Path, told_run: Path, tmp_path: Path
) -> None:
    for place in ("job", "alone"):
        shutil.copytree(told_run, tmp_path / place / "told")
        shutil.copytree(finished_run, tmp_path / place / "images")
        shutil.copytree(points_run, tmp_path / place / "points")
    options = {
        "images": IMAGES,
        "points": POINTS,
        "guided": GUIDED,
        "one batch": ONE_BATCH,
        "bound": BOUND,
        "ode": ODE,
        "fit": FIT,
    }
    job = tmp_path / "job"
    ended = torchrun(WORK, str(job), json.dumps(options), folder=tmp_path)
    assert ended.returncode == 0, ended.stderr

    images = inkdrop.load(tmp_path / "alone" / "images", device="cpu")
    points = inkdrop.load(tmp_path / "alone" / "points", device="cpu")
    one = tmp_path / "one"
    told = inkdrop.load(tmp_path / "alone" / "told", device="cpu")
    for name, run, asked in (
        ("images", images, IMAGES),
        ("points", points, POINTS),
        ("told", told, GUIDED),
    ):
        alone = contents(write_samples(run, out=one / name, **asked))
        together = contents(job / "two" / name)
        protocols = [json.loads(files.pop("samples.json")) for files in (alone, together)]
        assert len({json.dumps({**protocol, "run": ""}) for protocol in protocols}) == 1
        assert together == alone
    assert len(list((one / "images").glob("0*.png"))) == 66
    inner = write_samples(images, **ONE_BATCH).relative_to(images.path)
    assert (job / "images" / inner / "grid.png").read_bytes() == (
        images.path / inner / "grid.png"
    ).read_bytes()

    for run, asked in ((images, BOUND), (points, ODE)):
        file = write_likelihood(run, **asked)
        there = job / file.parent.name
        assert (there / file.name).read_bytes() == file.read_bytes()
        picture = Path("pictures") / "likelihood.png"
        assert (there / picture).read_bytes() == (file.parent / picture).read_bytes()
    fitted = write_fit(images, **FIT)
    assert (job / "images" / fitted.name).read_bytes() == fitted.read_bytes()

    assert not list(job.rglob(".writing-*"))
    said = [json.loads((job / f"said-{rank}.json").read_text()) for rank in range(2)]
    assert said[0] == said[1]
    in_use, no_folder, other_step = said[0]
    assert "exists and is not empty" in in_use
    assert "Not a directory" in no_folder
    assert "some at step 6 and some at step 7" in other_step


def test_a_lost_process_leaves_the_earlier_samples(finished_run: Path, tmp_path: Path) -> None:
    run = inkdrop.load(shutil.copytree(finished_run, tmp_path / "run"), device="cpu")
    earlier = write_samples(run, n=4, steps=2, batch_size=2)
    before = contents(earlier)
    ended = torchrun(FAILURE, str(run.path), folder=tmp_path)
    assert ended.returncode != 0
    assert "the second process is lost" in ended.stderr
    assert contents(earlier) == before
    write_samples(run, n=4, steps=2, batch_size=2)  # takes away what the lost job began
    assert contents(earlier) == before
    assert not list(run.path.rglob(".writing-*"))


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 9))
def test_every_example_is_one_processs_own_and_no_batch_is_cut(
    n: int, batch_size: int, size: int
) -> None:
    shares = [own_examples(Processes(rank, size), n, batch_size) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(n))
    assert all(share.start % batch_size == 0 for share in shares if share)
    batches = [-(-len(share) // batch_size) for share in shares]
    assert max(batches) - min(batches) <= 1
    idle = sum(not share for share in shares)
    assert (idle_note(Processes(0, size), n, batch_size) is None) == (not idle)


def test_too_few_batches_are_told_with_what_mends_it() -> None:
    note = idle_note(Processes(0, 4), 100, 64)
    assert note is not None
    assert "work for 2 of 4 processes only: 100 in batches of 64" in note
    assert "--batch-size 25" in note
    assert all(own_examples(Processes(rank, 4), 100, 25) for rank in range(4))
    with pytest.raises(InkdropError, match="batch_size must be a whole number of at least 1"):
        own_examples(Processes(), 3, 0)


class Job:
    """Threads that stand for processes: what `gather` joins."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = Barrier(size)
        self.rows: dict[int, Tensor] = {}

    def gather(self, rank: int, rows: Tensor) -> Tensor:
        self.rows[rank] = rows
        self.barrier.wait(timeout=20)
        joined = torch.cat([self.rows[i] for i in range(self.size)])
        self.barrier.wait(timeout=20)
        return joined

    def each(self, work: Any) -> list[Any]:
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(work, range(self.size)))


def same(one: Any, two: Any) -> None:
    for field in fields(one):
        a, b = (np.asarray(getattr(found, field.name)) for found in (one, two))
        assert np.array_equal(a, b, equal_nan=True), field.name


def test_a_likelihood_in_parts_is_that_of_the_whole_to_the_bit() -> None:
    mixture = GaussianMixture(
        means=[[-0.8, 0.1], [0.5, 0.6]],
        covariances=[[[0.02, 0.01], [0.01, 0.05]], [[0.2, -0.1], [-0.1, 0.1]]],
        weights=[0.4, 0.6],
    )
    denoiser = mixture.denoiser(inkdrop.NoiseSchedule.cosine(12))
    x = mixture.sample(17, seed=1)
    for measure, options in (
        (bits_per_dim, {"terms": 4}),
        (bits_per_dim, {}),
        (ode_likelihood, {"tolerance": 0.1}),
    ):
        whole = measure(denoiser, x, batch_size=5, seed=3, **options)
        for size in (2, 5):  # of four batches: with five, one process has none
            job = Job(size)

            def part(
                rank: int, measure: Any = measure, options: Any = options, job: Job = job
            ) -> Any:
                own = own_examples(Processes(rank, job.size), len(x), 5)
                return measure(
                    denoiser,
                    x[own.start : own.stop],
                    batch_size=5,
                    seed=3,
                    first_index=own.start,
                    gather=lambda rows: job.gather(rank, rows),
                    **options,
                )

            for found in job.each(part):
                same(found, whole)
    # And it matters which part of the set a part is.
    wrong = bits_per_dim(denoiser, x[5:], batch_size=5, seed=3)
    right = bits_per_dim(denoiser, x[5:], batch_size=5, seed=3, first_index=5)
    assert wrong.total != right.total


def test_terms_of_a_fit_are_shared_by_timestep_to_the_bit() -> None:
    mixture = GaussianMixture(means=[[0.3, -0.2]], covariances=[[[0.1, 0], [0, 0.2]]], weights=[1])
    denoiser = mixture.denoiser(inkdrop.NoiseSchedule.cosine(3))
    x = mixture.sample(9, seed=1)
    whole = measure_terms(denoiser, x, batch_size=4)
    for size in (2, 4):  # of three timesteps: with four, one process has none
        job = Job(size)

        def part(rank: int, job: Job = job) -> Any:
            return measure_terms(
                denoiser,
                x,
                batch_size=4,
                timesteps=Processes(rank, job.size).share(3),
                gather=lambda rows: job.gather(rank, rows),
            )

        for found in job.each(part):
            same(found, whole)


def test_alone_nothing_is_waited_for(finished_run: Path) -> None:
    rows = torch.arange(3)
    assert gathering(Processes())(rows).tolist() == [0, 1, 2]
    check_same_step(Processes(), inkdrop.load(finished_run))
    done: list[int] = []
    first_does(Processes(), lambda: done.append(1))
    assert done == [1]
