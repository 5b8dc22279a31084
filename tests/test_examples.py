"""The examples run from top to bottom as a reader would run them, at a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
PICTURES = ["forward_strip.png", "loss_curve.png", "reverse_strip.png", "samples.png"]


def run_example(name: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "error", **environment},
    )
    assert done.stderr == ""
    return done.stdout


def assert_pictures(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == PICTURES
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            assert picture.width > 90


def test_ddpm_on_mnist(tmp_path: Path, data_dir: Path) -> None:
    out = tmp_path / "pictures"
    text = run_example(
        "01_ddpm_mnist.py",
        "--steps",
        20,
        "--batch-size",
        8,
        "--samples",
        4,
        "--out",
        out,
        INKDROP_DATA=str(data_dir),
    )
    assert "60,000 images of 28×28" in text
    assert_pictures(out)


def test_ddpm_falls_back_to_the_digits_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    text = run_example(
        "01_ddpm_mnist.py", "--steps", 20, "--samples", 4, "--out", out, INKDROP_DATA=str(tmp_path)
    )
    assert "using the embedded 8×8 digits instead" in text
    assert "1,797 images of 8×8" in text
    assert_pictures(out)


def test_data_that_was_asked_for_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_example("01_ddpm_mnist.py", "--data", tmp_path / "nowhere", "--out", tmp_path / "p")
    assert caught.value.stderr.count("\n") == 1
    assert "nowhere" in caught.value.stderr
    assert not (tmp_path / "p").exists()


def test_a_network_of_your_own(tmp_path: Path) -> None:
    out = tmp_path / "run"
    text = run_example("02_your_own_network.py", "--steps", 10, "--out", out)
    assert "trained 10 steps" in text
    assert (out / "samples" / "grid.png").exists()
