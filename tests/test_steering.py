"""What samples are told, and how they are guided."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inkdrop
from inkdrop import cli
from inkdrop.config import LoggingConfig, MLPConfig, ScheduleConfig, TrainingConfig, UNetConfig
from inkdrop.data.images import ImageSet, Source
from inkdrop.data.pixels import to_float, to_picture, to_uint8
from inkdrop.data.points import dial
from inkdrop.diffusion import editing
from inkdrop.diffusion.guidance import Guidance
from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.diffusion.samplers import initial_noise
from inkdrop.edits import write_edit
from inkdrop.errors import InkdropError
from inkdrop.evaluation.distances import energy_distance
from inkdrop.report.compare import compare
from inkdrop.report.page import write_report
from inkdrop.run import Run, Told
from inkdrop.sampling import write_samples
from inkdrop.scoring import write_fit, write_likelihood
from inkdrop.steering import steering


def tiny_config(**changes: Any) -> inkdrop.Config:
    return inkdrop.Config(
        name="tiny",
        schedule=ScheduleConfig(kind="cosine", timesteps=20),
        network=UNetConfig(channels=4, multipliers=(1, 2), blocks=1),
        training=TrainingConfig(steps=10, batch_size=16, learning_rate=1e-2),
        logging=LoggingConfig(samples_every=0),
        **changes,
    )


def patterns() -> Source:
    pixels = torch.arange(48 * 16).reshape(48, 1, 4, 4) * 37 % 256
    return Source(ImageSet(pixels.to(torch.uint8), torch.arange(48) % 3, "patterns"), None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Of three classes with a null class, without one, and told nothing; not to be changed."""
    out = tmp_path_factory.mktemp("runs")
    choices: dict[str, dict[str, Any]] = {
        "guidable": {"conditional": True, "label_dropout": 0.3},
        "told": {"conditional": True, "label_dropout": 0.0},
        "untold": {},
    }
    return {
        name: inkdrop.train(tiny_config(**changes), out / name, source=patterns(), progress=False)
        for name, changes in choices.items()
    }


@pytest.fixture(scope="module")
def dialled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of points-dial, a tenth as long as the preset's."""
    config = inkdrop.presets.points_dial()
    config.network = MLPConfig(width=64, blocks=2, waves=64)
    config.training = TrainingConfig(
        steps=500,
        batch_size=256,
        learning_rate=3e-3,
        warmup_steps=20,
        decay="linear",
        ema_decay=0.98,
    )
    config.logging.samples_every = 0
    return inkdrop.train(config, tmp_path_factory.mktemp("dial") / "run", progress=False)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def images_in(folder: Path) -> list[np.ndarray]:
    return [pixels(path) for path in sorted(folder.glob("0*.png"))]


def test_classes_that_are_given_take_turns(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["told"]
    folder = write_samples(run, n=5, steps=4, classes=("2", 0), out=tmp_path / "made", batch_size=3)
    expected = inkdrop.sample(run.denoiser, 5, steps=4, condition=torch.tensor([2, 0, 2, 0, 2]))
    for made, image in zip(images_in(folder), to_uint8(expected), strict=True):
        assert np.array_equal(made, image[0].numpy())
    protocol = json.loads((folder / "samples.json").read_text())
    assert protocol["classes"] == [2, 0]
    assert protocol["guidance"] is None
    assert run.conditions(1, 3).tolist() == [1, 2, 0]


def test_all_classes_are_made_from_each_noise(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["told"]
    made = write_samples(run, steps=4, classes=["all"], out=tmp_path / "made", batch_size=7)
    images = images_in(made)
    assert len(images) == 24  # eight of each
    noise = initial_noise(8, run.shape, 0).repeat_interleave(3, dim=0)
    expected = inkdrop.sample(
        run.denoiser, 24, steps=4, x_init=noise, condition=torch.arange(24) % 3
    )
    for image, wanted in zip(images, to_uint8(expected), strict=True):
        assert np.array_equal(image, wanted[0].numpy())
    grid = pixels(made / "grid.png")
    assert grid.shape[0] > 2.5 * grid.shape[1]  # eight rows of three


def test_guided_samples_are_those_of_the_guided_denoiser(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    run = runs["guidable"]
    options = {"guidance": 2.5, "guidance_interval": (5, 15), "guidance_rescale": 0.5}
    folder = write_samples(
        run, n=5, steps=4, classes=["1"], out=tmp_path / "made", batch_size=2, **options
    )
    condition = torch.ones(5, dtype=torch.int64)
    expected = inkdrop.sample(
        run.denoiser, 5, steps=4, condition=condition, guidance=Guidance(2.5, (5, 15), 0.5)
    )
    plain = inkdrop.sample(run.denoiser, 5, steps=4, condition=condition)
    assert not torch.equal(expected, plain)
    difference = [
        np.abs(made.astype(int) - wanted[0].numpy().astype(int)).max()
        for made, wanted in zip(images_in(folder), to_uint8(expected), strict=True)
    ]
    assert max(difference) <= 1  # of rounding, in batches of another size
    protocol = json.loads((folder / "samples.json").read_text())
    assert {name: protocol[name] for name in options} == {**options, "guidance_interval": [5, 15]}
    inside = write_samples(run, n=2, steps=2, classes=["1"], **options)
    assert inside.name == "ddim-2-class1-guidance2.5-from5to15-rescale0.5-n2-seed0"


def test_class_none_tells_nothing(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["guidable"]
    folder = write_samples(run, n=3, steps=4, classes=["none"], out=tmp_path / "made")
    expected = inkdrop.sample(run.denoiser, 3, steps=4, condition=torch.full((3,), -1))
    for made, image in zip(images_in(folder), to_uint8(expected), strict=True):
        assert np.array_equal(made, image[0].numpy())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("told", {"classes": ["3"]}, "the classes are 0 … 2, got 3"),
        ("told", {"classes": ["-1"]}, "the classes are 0 … 2, got -1"),
        ("told", {"classes": ["cat"]}, "a class is a number from 0, or all or none, got 'cat'"),
        ("told", {"classes": ["1", "all"]}, "class all stands alone, got 1 all"),
        ("told", {"classes": ["none"]}, "trained without label dropout"),
        ("told", {"vector": [1.0]}, "is told a class, not a vector"),
        ("told", {"classes": ["1"], "vector": [1.0]}, "give one of them"),
        ("told", {"guidance": 2.0}, "train one with --label-dropout 0.1 to guide"),
        ("told", {"classifier_guidance": 1.0}, "there is no classifier of the images"),
        ("untold", {"classes": ["1"]}, "is told no class or vector"),
        ("untold", {"vector": [1.0]}, "is told no class or vector"),
        ("untold", {"guidance": 2.0}, "nothing to guide it towards"),
        ("guidable", {"classes": ["none"], "guidance": 2.0}, "leaves nothing to guide towards"),
        ("guidable", {"guidance": -1.0}, "guidance scale must be"),
        ("guidable", {"guidance": 2.0, "guidance_rescale": 2.0}, "between 0"),
        ("guidable", {"guidance": 2.0, "guidance_interval": (9, 3)}, "0 ≤ low ≤ high"),
        ("guidable", {"guidance_interval": (3, 9)}, "give --guidance too"),
        ("guidable", {"guidance_rescale": 0.5}, "give --guidance too"),
        ("guidable", {"guidance": 2.0, "classifier_guidance": 1.0}, "not both"),
        ("guidable", {"classifier": "x"}, "give --classifier-guidance too"),
        ("guidable", {"classifier_guidance": 1.0, "classifier": "x"}, "x"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_before_anything_is_written(
    runs: dict[str, Run], tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InkdropError) as error:
        write_samples(runs[name], n=2, steps=2, out=tmp_path / "made", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


class _Corner(torch.nn.Module):
    """A classifier of four-by-four images by the brightness of three of their pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x[:, 0, 0, :3]


@pytest.mark.parametrize("name", ["untold", "guidable"])
def test_a_classifier_guides_runs_that_are_told_classes_or_not(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Kept:
        network, shape, classes, fingerprint = _Corner(), (1, 4, 4), 3, "0123456789abcdef"

    monkeypatch.setattr("inkdrop.steering.find_classifier", lambda fingerprint: tmp_path)
    monkeypatch.setattr("inkdrop.steering.load_classifier", lambda path, device: Kept())
    run = runs[name]
    plain, drawn = (
        write_samples(run, n=9, steps=10, classifier_guidance=s, out=tmp_path / f"{s}-{name}")
        for s in (0.0, 3.0)
    )
    brightness = [
        np.stack(images_in(folder)).astype(float)[np.arange(9), 0, np.arange(9) % 3].mean()
        for folder in (plain, drawn)
    ]
    assert brightness[1] > brightness[0] + 20
    protocol = json.loads((drawn / "samples.json").read_text())
    assert (protocol["classifier_guidance"], protocol["classifier"]) == (3.0, Kept.fingerprint)
    with pytest.raises(InkdropError, match="0 … 2, got 5"):
        steering(run, classes=["5"], classifier_guidance=1.0)
    with pytest.raises(InkdropError, match="judges what a network makes untold"):
        steering(runs["told"], classifier_guidance=1.0)


def test_edits_are_told_and_guided_as_samples_are(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["guidable"]
    pattern = patterns().train.images[:2]
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    for image, file in zip(pattern, files, strict=True):
        to_picture(image).save(file)
    options = {"guidance": 2.5, "guidance_interval": (5, 15), "guidance_rescale": 0.5}
    folder = write_edit(run, "vary", files, n=1, steps=5, classes=["1", "2"], **options)
    assert folder.name == "vary-0-1-n1-steps5-class1,2-guidance2.5-from5to15-rescale0.5-seed0"
    expected = editing.vary(
        run.denoiser,
        to_float(pattern),
        steps=5,
        condition=torch.tensor([1, 2]),
        guidance=Guidance(2.5, (5, 15), 0.5),
    )
    for made, wanted in zip(images_in(folder), to_uint8(expected[:, 0]), strict=True):
        assert np.array_equal(made, wanted[0].numpy())
    protocol = json.loads((folder / "edit.json").read_text())
    assert protocol["told"] == protocol["classes"] == [1, 2]
    assert protocol["guidance_interval"] == [5, 15]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("told", {}, "must be told a class, and these images have none .* give --class"),
        ("told", {"classes": ["1", "2"]}, "2 classes are too many for 1 image: 1 2"),
        ("told", {"classes": ["all"]}, "all is for samples"),
        ("told", {"vector": [1.0]}, "is told a class, not a vector"),
        ("guidable", {"guidance": 2.0}, "something to guide towards, .* give --class"),
        ("guidable", {"classes": ["none"], "guidance": 2.0}, "leaves nothing to guide towards"),
        ("untold", {"classifier_guidance": 1.0}, "something to guide towards, .* give --class"),
    ],
)
def test_an_edit_that_cannot_be_told_that_is_refused(
    runs: dict[str, Run], tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    file = str(tmp_path / "0.png")
    to_picture(patterns().train.images[0]).save(file)
    with pytest.raises(InkdropError, match=message):
        write_edit(runs[name], "vary", [file], steps=4, out=tmp_path / "made", **options)
    assert not (tmp_path / "made").exists()


def test_classes_are_told_by_name_where_the_data_name_them(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["told"]
    monkeypatch.setattr(Run, "class_names", ("cat", "dog", "0"))
    assert run.told(["dog", "0", "1"]) == Told((1, 2, 1))
    with pytest.raises(InkdropError, match="unknown class 'dgo': did you mean 'dog'"):
        run.told(["dgo"])
    assert run.told() is None


def test_the_command_line_tells_and_guides(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = str(runs["guidable"].path), str(tmp_path / "made")
    told = ["--class", "all", "--guidance", "2", "--guidance-interval", "3", "9"]
    assert cli.run(["sample", path, *told, "--steps", "2", "--out", out]) == 0
    assert "24 images and a grid are in" in capsys.readouterr().out
    assert cli.run(["sample", path, "--class", "7"]) == 2
    assert capsys.readouterr().err == "inkdrop: the classes are 0 … 2, got 7\n"


# Vectors


def test_a_network_told_an_angle_learns_the_true_estimate_given_it(dialled: Run) -> None:
    denoiser = dialled.denoiser
    schedule = denoiser.schedule
    for angle in (0.3, 2.0, 4.4):
        mixture = GaussianMixture(*dial(angle))
        x_start = mixture.sample(400)
        noise = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double()
        told = torch.tensor([[math.cos(angle), math.sin(angle)]]).repeat(400, 1)
        for t in (60, 100, 140):
            x_t = inkdrop.diffusion.forward.q_sample(
                schedule, x_start, torch.full((400,), t), noise
            )
            truth = mixture.denoiser(schedule)(x_t, t).x_start
            with torch.no_grad():
                known = denoiser(x_t, t, told).x_start
                untold = denoiser(x_t, t, denoiser.network.null_condition(told)).x_start
            error = (known - truth).square().mean()
            assert error < 0.015  # of a variance of about 0.5
            assert (untold - truth).square().mean() > 6 * error


def test_points_told_an_angle_lie_as_the_hand_does(dialled: Run, tmp_path: Path) -> None:
    angle = 0.7
    vector = (math.cos(angle), math.sin(angle))
    folder = write_samples(dialled, n=800, vector=vector, out=tmp_path / "made")
    made = np.load(folder / "samples.npy")
    near, far = (GaussianMixture(*dial(a)).sample(800).numpy() for a in (angle, angle + 0.5))
    assert energy_distance(made, near) < 0.02 < energy_distance(made, far)
    assert json.loads((folder / "samples.json").read_text())["vector"] == pytest.approx(vector)
    inside = write_samples(dialled, n=3, steps=2, vector=(0.5, -0.87), guidance=2.0)
    assert inside.name == "ddim-2-vector0.5,-0.87-guidance2-n3-seed0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector": [1.0]}, "vectors of 2 numbers, got 1: 1"),
        ({"vector": [1.0, math.nan]}, "must be finite, got 1 nan"),
        ({"classes": ["1"]}, "vectors of 2 numbers, not a class"),
        ({"classes": ["all"]}, "vectors of 2 numbers, not a class"),
        ({"classifier_guidance": 1.0}, "classifiers are of images"),
    ],
)
def test_a_run_of_vectors_says_what_it_wants(
    dialled: Run, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InkdropError) as error:
        write_samples(dialled, n=2, steps=2, **options)
    assert message in str(error.value)


def test_all_commands_know_runs_of_vectors(
    dialled: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inkdrop.report.point_page._SAMPLES", 200)
    write_samples(dialled, n=20, steps=3, classes=["none"], out=tmp_path / "a", trajectory=True)
    made = np.load(write_samples(dialled, n=1000, steps=10, out=tmp_path / "b") / "samples.npy")
    assert abs(made.mean(axis=0)).max() < 0.15  # every angle, of the kept examples
    write_likelihood(dialled, n=16, terms=2)
    write_fit(dialled, n=2)
    assert write_report(dialled).exists()
    shutil.copytree(dialled.path, tmp_path / "other")
    compared = compare([dialled, inkdrop.load(tmp_path / "other")], n=200, steps=5)
    assert list(compared.protocol.runs) == ["run", "other"]
