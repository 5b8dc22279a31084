"""`inkdrop edit`, as files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inkdrop
from inkdrop.cli import run
from inkdrop.data.pixels import to_float, to_picture
from inkdrop.diffusion.editing import Average
from inkdrop.edits import OPERATIONS, PICTURE, Settings, write_edit
from inkdrop.errors import InkdropError
from inkdrop.sampling import write_samples


def picture(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def digit(finished_run: Path, tmp_path: Path) -> str:
    example = inkdrop.load(finished_run).example
    assert example is not None
    to_picture(example).save(tmp_path / "seven.png")
    return str(tmp_path / "seven.png")


@pytest.mark.parametrize(
    ("operation", "options", "files"),
    [
        ("vary", {"n": 2, "strength": 0.5}, 4),
        ("inpaint", {"n": 3, "box": (0, 0, 4, 8), "resamplings": 2}, 6),
        ("interpolate", {"n": 3}, 3),
        ("reconstruct", {}, 2),
        ("upscale", {"n": 1, "resamplings": 1}, 2),
    ],
)
def test_an_edit_leaves_results_a_picture_and_its_protocol(
    finished_run: Path, digit: str, tmp_path: Path, operation: str, options: dict, files: int
) -> None:
    images = [digit, "held-out:3"]
    out = tmp_path / "made"
    folder = write_edit(inkdrop.load(finished_run), operation, images, steps=4, out=out, **options)
    protocol = json.loads((folder / "edit.json").read_text())
    assert len(protocol["files"]) == files
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*protocol["files"], PICTURE, "edit.json"]
    )
    assert protocol["edit"] == operation
    assert protocol["images"] == images
    assert len(protocol["timesteps"]) == 4
    assert all(pixels(folder / name).shape == (8, 8) for name in protocol["files"])
    with Image.open(folder / PICTURE) as shown:
        assert shown.width > 300


def test_what_is_not_painted_keeps_its_pixels(
    finished_run: Path, digit: str, tmp_path: Path
) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:] = 255
    name = picture(tmp_path / "mask.png", mask)
    folder = write_edit(
        inkdrop.load(finished_run), "inpaint", [digit], mask=name, steps=4, n=2, resamplings=2
    )
    assert folder.parent == finished_run / "edits"
    before = pixels(Path(digit))
    for j in range(2):
        after = pixels(folder / f"000-seven-{j:02d}.png")
        assert np.array_equal(after[mask == 0], before[mask == 0])
        assert not np.array_equal(after, before)


def test_a_small_image_is_enlarged_as_it_is(finished_run: Path, digit: str, tmp_path: Path) -> None:
    small = Image.open(digit).reduce(2)
    small.save(tmp_path / "small.png")
    folder = write_edit(
        inkdrop.load(finished_run),
        "upscale",
        [str(tmp_path / "small.png")],
        steps=4,
        n=1,
        resamplings=1,
        out=tmp_path / "made",
    )
    result = to_float(torch.from_numpy(pixels(folder / "000-small-00.png")))[None, None]
    wanted = to_float(torch.from_numpy(np.array(small)))
    assert (Average(2).apply(result)[0, 0] - wanted).abs().max() < 2.5 / 255


def test_the_ends_of_an_interpolation_between_seeds_are_their_samples(
    finished_run: Path, tmp_path: Path
) -> None:
    opened = inkdrop.load(finished_run)
    folder = write_edit(opened, "interpolate", seeds=(3, 8), n=3, steps=4, out=tmp_path / "m")
    assert json.loads((folder / "edit.json").read_text())["seeds"] == [3, 8]
    for seed, name in ((3, "000-seeds-3-8-00.png"), (8, "000-seeds-3-8-02.png")):
        samples = write_samples(opened, n=1, steps=4, seed=seed, out=tmp_path / str(seed))
        assert np.abs(pixels(folder / name) - pixels(samples / "000000.png").astype(int)).max() <= 1


def test_a_folder_is_named_after_what_was_asked_for(finished_run: Path, digit: str) -> None:
    opened = inkdrop.load(finished_run)
    names = {
        write_edit(opened, "vary", images, n=1, steps=4, **options).name
        for images, options in (
            ([digit], {}),
            ([digit], {"strength": 0.5}),
            ([digit], {"sampler": "unipc", "clip": "none"}),
            ([digit, digit], {"fit": "pad", "seed": 3}),
        )
    }
    assert names == {
        "vary-seven-n1-steps4-seed0",
        "vary-seven-n1-strength0.5-steps4-seed0",
        "vary-seven-n1-unipc-steps4-clip-none-seed0",
        "vary-seven-seven-pad-n1-steps4-seed3",
    }


@pytest.mark.parametrize(
    ("operation", "options", "message"),
    [
        ("varry", {}, "did you mean 'vary'"),
        ("vary", {"strength": 0.0}, "strength must lie"),
        ("vary", {"mask": "m.png"}, "vary has no --mask"),
        ("vary", {"n": 0}, "n must be"),
        ("inpaint", {}, "inpaint needs --mask"),
        ("inpaint", {"box": (0, 0, 9, 8)}, "RIGHT ≤ 8"),
        ("inpaint", {"box": (0, 0, 8, 8)}, "covers the whole image"),
        ("interpolate", {}, "needs two images"),
        ("interpolate", {"seeds": (1, 2)}, "one pair"),
        ("reconstruct", {"sampler": "ancestral"}, "deterministic sampler"),
        ("colourise", {}, "this run's are grey"),
        ("upscale", {"factor": 3}, "does not divide"),
        ("upscale", {"factor": 1}, "enlarges nothing"),
        ("vary", {"strength": 0.01, "steps": 3}, "strength 0.01 is timestep"),
        ("reconstruct", {"steps": 0}, "steps must be a whole number"),
        ("reconstruct", {"timesteps": "9"}, "at least 2 timesteps"),
        ("reconstruct", {"n": 2}, "reconstruct has no -n"),
        ("vary", {"sampler": "ddmi"}, "did you mean 'ddim'"),
        ("vary", {"order": 2}, "ddim has no order"),
        ("vary", {"fit": "squash"}, "unknown fit"),
        ("vary", {"classes": ["3"]}, "class"),
        ("vary", {"guidance": 2.0}, "guide"),
        ("vary", {"guidance_rescale": 0.5}, "give --guidance too"),
        ("vary", {"vector": [1.0]}, "told no class or vector"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    finished_run: Path, digit: str, tmp_path: Path, operation: str, options: dict, message: str
) -> None:
    with pytest.raises(InkdropError, match=message):
        write_edit(inkdrop.load(finished_run), operation, [digit], out=tmp_path / "made", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["seven.png"]


@pytest.mark.parametrize(
    ("shape", "level", "message"),
    [
        ((8, 9), 255, "a mask must have their size"),
        ((8, 8), 0, "black everywhere"),
        ((8, 8), 255, "covers the whole image"),
        ((8, 8), 128, "greys such as 128"),
        ((8, 8, 4), 255, "in mode RGBA"),
    ],
)
def test_a_wrong_mask_is_told(
    finished_run: Path, digit: str, tmp_path: Path, shape: tuple, level: int, message: str
) -> None:
    mask = picture(tmp_path / "mask.png", np.full(shape, level, np.uint8))
    with pytest.raises(InkdropError, match=message):
        write_edit(inkdrop.load(finished_run), "inpaint", [digit], mask=mask, out=tmp_path / "m")


def test_images_of_another_size_are_refused_or_made_to_fit(
    finished_run: Path, tmp_path: Path
) -> None:
    wide = picture(tmp_path / "wide.png", np.zeros((10, 20, 3), np.uint8))
    opened = inkdrop.load(finished_run)
    with pytest.raises(InkdropError, match="20×10 in mode RGB, but this run takes 8×8 grey"):
        write_edit(opened, "reconstruct", [wide], steps=3)
    folder = write_edit(opened, "reconstruct", [wide], steps=3, fit="pad", out=tmp_path / "m")
    assert "padded" in json.loads((folder / "edit.json").read_text())["changes"][0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.png", "there is no image"),
        ("held-out:x", "held-out:NUMBER"),
        ("held-out:9999", "held-out images are 0"),
        (".", "is a folder"),
    ],
)
def test_an_image_that_is_not_there_is_told(finished_run: Path, name: str, message: str) -> None:
    with pytest.raises(InkdropError, match=message):
        write_edit(inkdrop.load(finished_run), "vary", [name])


def test_runs_of_points_are_not_edited_as_files(points_run: Path) -> None:
    with pytest.raises(InkdropError, match="works on images"):
        write_edit(inkdrop.load(points_run), "vary", ["held-out:0"])


def test_the_command_writes_once_into_a_chosen_folder(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["edit", str(finished_run), "vary", "held-out:0", "--steps", "3", "-n", "1"]
    command += ["--out", str(tmp_path / "made")]
    assert run(command) == 0
    assert PICTURE in capsys.readouterr().out.replace("\n", "")
    assert run(command) == 2
    assert "not empty" in capsys.readouterr().err
    assert run(["edit", str(finished_run)]) == 2
    assert "edit needs to know which" in capsys.readouterr().err


def test_every_option_belongs_to_an_edit() -> None:
    named = set().union(*(operation.takes for operation in OPERATIONS.values()))
    assert named == set(Settings.__dataclass_fields__)
