"""`inkdrop data`: what it prints, writes and leaves with."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inkdrop import cli
from inkdrop.training import trial as trials
from inkdrop.training.trial import Trial

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INKDROP_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `inkdrop data …`; gives its exit code and what it wrote to stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run(["data", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (20, 16), (i * 40, 7, 9)).save(folder / f"{i}.png")
    return folder


def refused(answer: tuple[int, str, str]) -> str:
    """The one line on stderr, with exit code 2."""
    code, _, complaint = answer
    assert code == 2
    (line,) = complaint.splitlines()
    assert line.startswith("inkdrop: ")
    return line


def test_good_images_leave_with_0_and_are_written_down(data: Command, photos: Path) -> None:
    code, said, complaint = data("check", photos, "--no-trial")
    assert (code, complaint) == (0, "")
    assert said.startswith("my photos: a folder of images, 5 images, no labels\n")
    assert "size 16×20" in said
    with Image.open("checks/my photos/contact-sheet.png") as sheet:
        assert min(sheet.size) > 20
    found = json.loads(Path("checks/my photos/check.json").read_text())
    assert found["recognised"] == said.splitlines()[0]
    assert found["check"]["train"]["count"] == 5
    assert found["proposed"]["transform"]["width"] == 20
    assert found["trial"] is None


def test_bad_images_leave_with_1_and_are_named(data: Command, photos: Path) -> None:
    (photos / "empty.png").write_bytes(b"")
    code, said, complaint = data("check", photos, "--no-trial")
    assert (code, complaint) == (1, "")
    assert "empty.png: the file is empty" in said
    assert "--bad-images skip" in said


def test_the_next_command_trains_on_what_was_checked(data: Command, photos: Path) -> None:
    (photos / "empty.png").write_bytes(b"")
    asked = ["--size", 8, 12, "--fit", "pad", "--background", "#ff0000", "--channels", 4]
    _, said, _ = data("check", photos, "--no-trial", "--preset", "mnist", *asked)
    command = shlex.split(said.split("next: ")[1].splitlines()[0])
    assert command[:5] == ["inkdrop", "train", "mnist", "--data", str(photos)]
    from inkdrop.options import TrainOptions, parse
    from inkdrop.presets import preset

    options = parse(TrainOptions, command[3:], "x", "x", TrainOptions(config=preset("mnist")))
    assert options.data == (str(photos),)
    assert options.bad_images == "skip"
    given = options.config.data
    assert (given.size, given.fit, given.background) == ((8, 12), "pad", "#ff0000")
    assert given.channels == 4


@pytest.mark.parametrize("colour", [None, "1"], ids=["plain", "colour"])
def test_json_is_alone_on_stdout_and_the_same_as_the_file(
    data: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, colour: str | None
) -> None:
    if colour:  # as on a terminal, with bars and spinners
        monkeypatch.setenv("FORCE_COLOR", colour)
    measured = Trial(123, 45.0, 67, 89.0, "cpu")
    monkeypatch.setattr(trials, "trial", lambda config, shape: measured)
    (photos / "empty.png").write_bytes(b"")
    code, said, complaint = data("check", photos, "--json", "--out", "here")
    assert (code, complaint) == (1, "")
    assert json.loads(said) == json.loads(Path("here/check.json").read_text())
    assert json.loads(said)["trial"]["parameters"] == 123


def test_the_trial_is_of_the_shape_proposed_and_of_the_preset_asked_for(
    data: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def trial(config: Any, shape: Any) -> Trial:
        asked.append((config.name, shape, config.training.steps))
        return Trial(1_200_000, 45.0, 67_000_000, 7300.0, "cpu")

    monkeypatch.setattr(trials, "trial", trial)
    _, said, _ = data("check", photos, "--size", 8)
    data("check", photos, "--preset", "mnist")
    assert asked == [("folder", (3, 8, 8), 3000), ("mnist", (3, 16, 20), 3600)]
    assert "1.2 M parameters, 3,000 steps of 64" in said
    assert "45 images/s on cpu: 2.0 h, 67 MB of memory" in said


def test_a_check_is_kept_until_it_is_to_be_refreshed(
    data: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inkdrop.data import facts

    data("check", photos, "--no-trial")
    image, decode = photos / "0.png", facts.decode
    monkeypatch.setattr(facts, "decode", None)  # looking at an image would fail
    assert data("check", photos, "--no-trial")[0] == 0
    with pytest.raises(TypeError):
        data("check", photos, "--no-trial", "--refresh")
    monkeypatch.setattr(facts, "decode", decode)
    image.unlink()
    assert "4 images" in data("check", photos, "--no-trial", "--refresh")[1]


MISTAKES = {
    "no such command": (["chekc"], "did you mean 'check'"),
    "no path": (["check"], "needs a path first"),
    "no path before options": (["check", "--json"], "needs a path first"),
    "a missing path": (["check", "nowhere"], "no such file or folder: nowhere"),
    "an empty folder": (["check", "empty"], "no images or points found"),
    "points": (["check", "points.csv"], "with a preset such as points-gmm"),
    "objects": (["check", "objects.npy"], "Python objects"),
    "two kinds": (["check", "points.csv", "objects.npy"], "are read one at a time"),
    "a size of 0": (["check", "my photos", "--size", "0"], "size must be greater than 0"),
    "three sizes": (["check", "my photos", "--size", "1", "2", "3"], "size"),
    "a fit": (["check", "my photos", "--fit", "squash"], "unknown fit 'squash'"),
    "a colour": (["check", "my photos", "--background", "nocolour"], "'nocolour'"),
    "channels": (["check", "my photos", "--channels", "2"], "; choose from 1, 3, 4"),
    "workers": (["check", "my photos", "--workers", "0"], "workers must be greater than 0"),
    "a preset": (["check", "my photos", "--preset", "mnits"], "did you mean 'mnist'"),
    "a preset for points": (["check", "my photos", "--preset", "points-gmm"], "is for points"),
    "a file to write to": (["check", "my photos", "--out", "points.csv"], "is a file"),
    "a stray word": (["cache", "everything"], "unexpected 'everything'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    data: Command, photos: Path, tmp_path: Path, mistake: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "points.csv").write_text("1,2\n3,4\n")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    arguments, words = MISTAKES[mistake]
    answer = data(*arguments)
    assert words in refused(answer)
    assert answer[1] == ""
    assert not (tmp_path / "checks").exists()


def test_data_alone_tells_its_commands(data: Command) -> None:
    code, said, complaint = data()
    assert code == 2
    assert "check PATH" in said
    assert complaint == "inkdrop: data needs a command: check, cache\n"
    assert data("--help")[::2] == (0, "")


# The cache


def test_the_cache_is_shown_and_cleared(data: Command, photos: Path, tmp_path: Path) -> None:
    from inkdrop.config import DataConfig
    from inkdrop.data.loading import load_source

    assert data("cache")[1].startswith(f"0 B in {tmp_path / 'cache'} (INKDROP_CACHE")
    load_source(DataConfig(source="files", path=(str(photos),)))
    code, said, _ = data("cache")
    assert code == 0
    images, checks, total = said.splitlines()
    assert "  my photos  " in images
    assert "  checks  " in checks
    assert not total.startswith("0 B")
    code, said, _ = data("cache", "--clear")
    assert code == 0
    assert said.endswith(f"deleted from {tmp_path / 'cache'}\n")
    assert data("cache")[1].startswith("0 B in ")


def test_a_cache_that_cannot_be_written_does_not_stop_a_check(
    data: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "file"))
    code, said, _ = data("check", photos, "--no-trial")
    assert code == 0
    assert "this check cannot be kept" in said
