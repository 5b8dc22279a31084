"""Likelihood and fitted timesteps of a run, from its folder and back into it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inkdrop
from inkdrop import cli
from inkdrop.config import DataConfig
from inkdrop.data.loading import load_source
from inkdrop.data.stream import held_out_split
from inkdrop.diffusion.fitting import fit_path, measure_path, measure_terms
from inkdrop.diffusion.likelihood import bits_per_dim
from inkdrop.errors import InkdropError
from inkdrop.scoring import write_fit, write_likelihood


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> inkdrop.Run:
    return inkdrop.load(shutil.copytree(finished_run, tmp_path / "digits"))


def digits(split: str, n: int) -> torch.Tensor:
    source = load_source(DataConfig()).source
    train, held_out = held_out_split(source.train, source.test, 256)
    assert held_out is not None
    chosen = train if split == "train" else held_out
    return inkdrop.to_float(chosen.images[:n])


@pytest.mark.parametrize("split", ["held-out", "train"])
def test_the_likelihood_is_that_of_the_runs_images(run: inkdrop.Run, split: str) -> None:
    file = write_likelihood(run, split=split, n=10, batch_size=4, seed=3)
    found = json.loads(file.read_text())
    exact = bits_per_dim(run.denoiser, digits(split, 10), seed=3)
    assert found["bits_per_dim"] == pytest.approx(exact.total, rel=1e-6)
    assert found["standard_error"] == pytest.approx(exact.standard_error, rel=1e-5)
    assert found["terms"] == 19
    terms = found["prior"] + sum(found["per_timestep"]) + found["decoder"]
    assert terms == pytest.approx(found["bits_per_dim"], rel=1e-9)
    assert (found["split"], found["examples"], found["step"], found["seed"]) == (split, 10, 6, 3)
    with Image.open(run.path / "pictures" / "likelihood.png") as picture:
        assert picture.width > 500


def test_fewer_terms_and_fewer_steps_are_written_as_such(run: inkdrop.Run) -> None:
    found = json.loads(write_likelihood(run, n=6, terms=4).read_text())
    assert found["terms"] == 4
    assert len(found["per_timestep"]) == 20
    found = json.loads(write_likelihood(run, n=6, steps=5).read_text())
    assert found["timesteps"] == [3, 7, 11, 15, 19]
    assert len(found["per_timestep"]) == 5


def test_the_ode_stands_beside_the_bound(run: inkdrop.Run) -> None:
    found = json.loads(write_likelihood(run, n=2, ode=True, probes=2).read_text())
    assert np.isfinite(found["ode"]["bits_per_dim"])
    assert found["ode"]["probes"] == 2
    assert found["ode"]["evaluations_per_example"] > 10


def test_points_have_a_likelihood_too(points_run: Path, tmp_path: Path) -> None:
    run = inkdrop.load(shutil.copytree(points_run, tmp_path / "points"))
    found = json.loads(write_likelihood(run, n=50).read_text())
    assert np.isfinite(found["bits_per_dim"])


def test_fitted_timesteps_are_kept_in_the_run_and_used(run: inkdrop.Run) -> None:
    file = write_fit(run, n=8, seed=1)
    kept = json.loads(file.read_text())
    terms = measure_terms(run.denoiser, digits("train", 8), seed=1)
    np.testing.assert_allclose(kept["x_start_mse"], terms.x_start_mse, rtol=1e-6)
    fitted = run.fitted_timesteps(4)
    assert len(fitted) == 4
    assert fitted[0] == 19
    assert list(run.table("ddim", 4, timesteps="fitted").timesteps) == fitted
    by_path = run.fitted_timesteps(4, "fitted-path")
    assert by_path == fit_path(measure_path(run.denoiser, 128, seed=1), 4)
    assert list(run.table("unipc", 4, timesteps="fitted-path").timesteps) == by_path
    with pytest.raises(InkdropError, match="did you mean 'fitted-path'"):
        run.fitted_timesteps(4, "fitted-paths")
    assert len(run.table("heun", evaluations=8, timesteps="fitted")) == 7
    assert (
        cli.run(["sample", str(run.path), "-n", "2", "--timesteps", "fitted", "--steps", "4"]) == 0
    )
    folder = run.path / "samples" / "ddim-4-fitted-n2-seed0"
    assert json.loads((folder / "samples.json").read_text())["timesteps"] == fitted


def test_a_list_of_timesteps_can_be_written_as_text(run: inkdrop.Run) -> None:
    assert run.table("ddim", timesteps="19, 7,2").timesteps == (19, 7, 2)


def test_fitted_timesteps_of_another_checkpoint_are_refused(run: inkdrop.Run) -> None:
    file = write_fit(run, n=2)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"step": 5}))
    with pytest.raises(InkdropError, match=r"fitted to step 5, but .* step 6; `inkdrop fit"):
        run.fitted_timesteps(4)
    file.write_text("{")
    with pytest.raises(InkdropError, match="damaged"):
        run.fitted_timesteps(4)


def test_commands_say_what_they_found(run: inkdrop.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["likelihood", str(run.path), "-n", "4"]) == 0
    said = capsys.readouterr().out
    for word in ("prior", "decoder", "bound", "±", "likelihood.json"):
        assert word in said
    assert cli.run(["fit", str(run.path), "-n", "4"]) == 0
    said = capsys.readouterr().out
    for word in ("fitted", "best fixed", "timesteps.json"):
        assert word in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--timesteps", "fitted"], "no fitted timesteps yet; `inkdrop fit"),
        (["sample", "--timesteps", "5,x"], "timesteps must be a spacing's name or a list"),
        (["sample", "--timesteps", "karas"], "did you mean 'karras'"),
        (["sample", "--eta", "1.5"], "eta must lie between 0 and 1, got 1.5"),
        (["sample", "--sampler", "unipc", "--order", "4"], "order must be 1, 2 or 3, got 4"),
        (["sample", "--sampler", "unipc", "--order", "3", "--steps", "2"], "at least 3 steps"),
        (["sample", "--clip", "rage"], "unknown clip 'rage'"),
        (["likelihood", "--split", "all"], "split must be held-out or train, got 'all'"),
        (["likelihood", "--variance", "learned"], "a network that learns none"),
        (["likelihood", "--timesteps", "fitted"], "needs steps"),
        (["likelihood", "-n", "0"], "n must be at least 1, got 0"),
        (["likelihood", "--ode", "--divergence", "trace", "-n", "1"], "unknown divergence"),
    ],
)
def test_a_mistake_is_one_line(
    run: inkdrop.Run, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(run.path.rglob("*"))
    assert cli.run([arguments[0], str(run.path), *arguments[1:]]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(run.path.rglob("*")) == before
