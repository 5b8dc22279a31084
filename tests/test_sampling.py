"""Samples as files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inkdrop
from inkdrop.data.pixels import to_uint8
from inkdrop.errors import InkdropError
from inkdrop.sampling import write_samples


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def test_the_files_are_the_samples_of_the_seed_whatever_the_batch(
    finished_run: Path, tmp_path: Path
) -> None:
    run = inkdrop.load(finished_run)
    expected = to_uint8(inkdrop.sample(run.denoiser, n=5, steps=4, seed=3))
    for batch_size in (2, 5):
        folder = write_samples(
            run, n=5, steps=4, seed=3, out=tmp_path / str(batch_size), batch_size=batch_size
        )
        names = sorted(p.name for p in folder.iterdir())
        assert names == [*(f"{i:06d}.png" for i in range(5)), "grid.png", "samples.json"]
        for i in range(5):
            assert np.array_equal(pixels(folder / f"{i:06d}.png"), expected[i, 0].numpy())


def test_the_protocol_is_written_beside_them(finished_run: Path, tmp_path: Path) -> None:
    folder = write_samples(
        inkdrop.load(finished_run), n=2, sampler="ancestral", steps=4, out=tmp_path / "made"
    )
    protocol = json.loads((folder / "samples.json").read_text())
    assert protocol["sampler"] == "ancestral"
    assert protocol["timesteps"] == [19, 14, 9, 4]
    assert (protocol["n"], protocol["seed"], protocol["step"]) == (2, 0, 6)


def test_half_precision_is_named_and_written_down(finished_run: Path) -> None:
    run = inkdrop.load(finished_run)
    folder = write_samples(run, n=2, steps=4, precision="bfloat16")
    assert folder.name.endswith("-bfloat16-n2-seed0")
    assert json.loads((folder / "samples.json").read_text())["precision"] == "bfloat16"
    plain = json.loads((write_samples(run, n=2, steps=4) / "samples.json").read_text())
    assert plain["precision"] == "float32"
    with pytest.raises(InkdropError, match="float32, bfloat16 or float16, got 'half'"):
        write_samples(run, n=2, steps=4, precision="half")


def test_a_trajectory_adds_a_strip_and_a_film(finished_run: Path, tmp_path: Path) -> None:
    folder = write_samples(
        inkdrop.load(finished_run), n=2, steps=4, out=tmp_path / "made", trajectory=True
    )
    with (
        Image.open(folder / "trajectory.png") as strip,
        Image.open(folder / "trajectory.gif") as film,
    ):
        assert strip.width > 100
        assert film.n_frames > 3


def test_the_place_inside_the_run_is_made_anew_each_time(
    finished_run: Path, tmp_path: Path
) -> None:
    run = inkdrop.load(shutil.copytree(finished_run, tmp_path / "run"))
    first = write_samples(run, n=3, steps=4)
    assert first == tmp_path / "run" / "samples" / "ddim-4-n3-seed0"
    before = pixels(first / "000002.png")
    assert write_samples(run, n=3, steps=4) == first
    assert np.array_equal(pixels(first / "000002.png"), before)


def test_a_folder_in_use_is_left_alone(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InkdropError, match="exists and is not empty"):
        write_samples(inkdrop.load(finished_run), n=1, steps=2, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_nothing_is_left_when_sampling_breaks_off(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inkdrop.sampling.grid", broken)
    with pytest.raises(KeyboardInterrupt):
        write_samples(inkdrop.load(finished_run), n=1, steps=2, out=tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_conditional_run_takes_its_classes_in_turn(tmp_path: Path) -> None:
    config = inkdrop.presets.digits()
    config.schedule.timesteps = 10
    config.network = inkdrop.config.UNetConfig(channels=4, multipliers=(1,), blocks=1, classes=10)
    config.training.steps = 1
    config.logging.samples_every = 1
    run = inkdrop.train(config, tmp_path / "run")
    folder = write_samples(run, n=12, steps=2, batch_size=7)
    expected = inkdrop.sample(run.denoiser, n=12, steps=2, condition=torch.arange(12) % 10)
    assert np.array_equal(pixels(folder / "000011.png"), to_uint8(expected)[11, 0].numpy())


def test_points_are_written_as_numbers_whatever_the_batch(points_run: Path, tmp_path: Path) -> None:
    run = inkdrop.load(points_run)
    expected = inkdrop.sample(run.denoiser, n=5, steps=4, seed=3).numpy()
    for batch_size in (2, 5):
        folder = write_samples(
            run, n=5, steps=4, seed=3, out=tmp_path / str(batch_size), batch_size=batch_size
        )
        names = {p.name for p in folder.iterdir()}
        assert names == {"samples.npy", "scatter.png", "samples.json"}
        written = np.load(folder / "samples.npy", allow_pickle=False)
        assert written.dtype == np.float32
        assert np.allclose(written, expected, atol=1e-6)
        assert json.loads((folder / "samples.json").read_text())["n"] == 5


def test_a_trajectory_of_points_adds_their_steps_and_paths(
    points_run: Path, tmp_path: Path
) -> None:
    folder = write_samples(
        inkdrop.load(points_run), n=7, steps=4, out=tmp_path / "made", trajectory=True
    )
    for name in ("trajectory.png", "paths.png"):
        assert pixels(folder / name).std() > 1


def test_points_off_the_plane_have_no_picture(tmp_path: Path) -> None:
    points = inkdrop.PointSet(torch.randn(50, 3), None, "cloud")
    config = inkdrop.Config(
        schedule={"kind": "cosine", "timesteps": 10},
        network=inkdrop.config.MLPConfig(width=8, blocks=1),
        training={"steps": 1, "batch_size": 8},
    )
    source = inkdrop.Source(points, None)
    run = inkdrop.train(config, tmp_path / "run", source=source, progress=False)
    folder = write_samples(run, n=4, steps=2)
    assert {p.name for p in folder.iterdir()} == {"samples.npy", "samples.json"}
    assert np.load(folder / "samples.npy").shape == (4, 3)
    with pytest.raises(InkdropError, match=r"--trajectory draws .* have the shape \(3,\)"):
        write_samples(run, n=4, steps=2, out=tmp_path / "way", trajectory=True)
    assert not (tmp_path / "way").exists()
