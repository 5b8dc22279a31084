"""The report of a run of points shows them, and says how far they are from the data."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from reading import Page, decoded

import inkdrop
from inkdrop.config import Config, MLPConfig
from inkdrop.errors import InkdropError
from inkdrop.evaluation.measures import in_short
from inkdrop.report import page, point_page, truth

PICTURES = {
    "samples.png",
    "marginals.png",
    "reverse.png",
    "paths.png",
    "field.png",
    "forward.png",
    "loss.png",
    "loss_by_timestep.png",
    "loss_map.png",
    "noise_schedule.png",
    "denoising.gif",
}


@pytest.fixture(scope="module")
def reported(points_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(points_run, tmp_path_factory.mktemp("reported") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point_page, "_SAMPLES", 700)
        page.write_report(inkdrop.load(run))
    return run


def own_run(folder: Path, points: torch.Tensor, **network: int) -> inkdrop.Run:
    """A run on points of the user's own."""
    labels = torch.arange(len(points)) % 2 if network else None
    config = Config(
        schedule={"kind": "cosine", "timesteps": 10},
        network=MLPConfig(width=8, blocks=1, **network),
        training={"steps": 1, "batch_size": 8},
        logging={"samples_every": 0},
    )
    source = inkdrop.Source(inkdrop.PointSet(points, labels, "cloud"), None)
    return inkdrop.train(config, folder, source=source, progress=False)


def read(run: Path) -> Page:
    return Page((run / "report.html").read_text("utf-8"))


def test_every_picture_is_whole_and_also_a_file(reported: Path) -> None:
    assert {path.name for path in (reported / "pictures").iterdir()} == PICTURES
    images = read(reported).all("img")
    assert len(images) >= 11
    for img in images:
        decoded(img["src"]).load()
        assert len(img["alt"]) > 20
        assert "{" not in img["alt"]
    with Image.open(reported / "pictures" / "denoising.gif") as film:
        assert film.n_frames > 5


def test_the_page_speaks_of_points(reported: Path) -> None:
    text = " ".join(read(reported).text.split())
    for said in (
        "pure noise into points in the plane like the ones it learnt from",
        "points seen",
        "From noise to points",
        "From point to noise",
        "-n 700 --sampler ddim --steps 20 --seed 0",
        "MLP",
    ):
        assert said in text
    described = text[: text.index("Configuration")]
    assert "image" not in described.replace("Images", "")
    assert "None" not in described


def test_the_distances_stand_beside_those_of_true_points(reported: Path) -> None:
    read_page = read(reported)
    assert {"class": "distances"} in read_page.all("table")
    run = inkdrop.load(reported)
    known = truth.truth_of(run)
    assert known is not None
    text = " ".join(read_page.text.split())
    floor = known.floor(700)
    for name, measure in known.measures(700).items():
        assert measure.label in text
        assert in_short(floor[name]) in text
    made = inkdrop.sample(run.denoiser, 700)
    real = known.real(700)
    energy = known.measures(700)["energy_distance"].of(real, truth.as_rows(made))
    assert in_short(energy) in text
    assert energy > 5 * floor["energy_distance"]


def test_points_of_ones_own_are_shown_alone_unless_they_are_given(tmp_path: Path) -> None:
    points = torch.randn(60, 2)
    run = own_run(tmp_path / "run", points)
    page.write_report(run)
    alone = read(run.path)
    assert alone.all("table") != []
    assert {"class": "distances"} not in alone.all("table")
    assert not (run.path / "pictures" / "marginals.png").exists()

    source = inkdrop.Source(inkdrop.PointSet(points, None, "cloud"), None)
    page.write_report(run, source)
    assert {"class": "distances"} in read(run.path).all("table")
    assert "30 generated points against as many real ones" in " ".join(read(run.path).text.split())

    other = inkdrop.Source(inkdrop.PointSet(points + 1, None, "other"), None)
    with pytest.raises(InkdropError, match=r"was trained on other data than this \(other\)"):
        page.write_report(run, other)


def test_points_off_the_plane_have_numbers_and_no_pictures(tmp_path: Path) -> None:
    points = torch.randn(60, 3)
    run = own_run(tmp_path / "run", points)
    page.write_report(run)
    text = " ".join(read(run.path).text.split())
    assert "points in 3 dimensions" in text
    assert "Only points in the plane have pictures" in text
    assert {path.name for path in (run.path / "pictures").iterdir()} == {
        "loss.png",
        "loss_by_timestep.png",
        "noise_schedule.png",
    }
    page.write_report(run, inkdrop.Source(inkdrop.PointSet(points, None, "cloud"), None))
    assert {"class": "distances"} in read(run.path).all("table")


def test_a_model_that_is_told_classes_has_no_single_field(tmp_path: Path) -> None:
    run = own_run(tmp_path / "run", torch.randn(60, 2), classes=2)
    page.write_report(run)
    assert "0 to 1 in turn" in read(run.path).text
    assert not (run.path / "pictures" / "field.png").exists()
