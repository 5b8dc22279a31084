"""The report is one file that needs nothing else, says what is true, and is whole or not there."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from reading import Page, decoded

from inkdrop.config import Config
from inkdrop.data.pixels import to_uint8
from inkdrop.diffusion.samplers import sample
from inkdrop.diffusion.schedule import ScheduleWarning
from inkdrop.report import image_page, page, pictures


def written(run: SimpleNamespace) -> Page:
    path = page.write_report(run)
    assert path == run.path / "report.html"
    return Page(path.read_text("utf-8"))


def read_again(reported: SimpleNamespace) -> Page:
    return Page((reported.path / "report.html").read_text("utf-8"))


def test_the_page_needs_nothing_else(reported: SimpleNamespace) -> None:
    read = read_again(reported)
    for _, attributes in read.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
    html = (reported.path / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import", html)
    assert read.all("script") == []
    assert "prefers-reduced-motion" in html


def test_the_page_can_be_read_by_anyone(reported: SimpleNamespace) -> None:
    read = read_again(reported)
    assert read.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in read.all("meta"))
    assert len(read.all("h1")) == 1
    assert len(read.all("title")) == 1
    assert len(read.all("img")) >= 7
    for img in read.all("img"):
        assert len(img["alt"]) > 20
        assert int(img["width"]) > 0
        assert int(img["height"]) > 0
    assert len(read.all("figcaption")) == len(read.all("figure"))
    assert any(img["alt"].startswith("Animation") for img in read.all("img"))


def test_every_picture_is_whole_and_also_a_file(reported: SimpleNamespace) -> None:
    for img in read_again(reported).all("img"):
        decoded(img["src"]).load()
    assert {path.name for path in (reported.path / "pictures").iterdir()} == {
        "samples.png",
        "reverse.png",
        "forward.png",
        "loss.png",
        "loss_by_timestep.png",
        "loss_map.png",
        "noise_schedule.png",
        "denoising.gif",
    }


def test_the_samples_are_those_of_inkdrop_sample(reported: SimpleNamespace) -> None:
    read = read_again(reported)
    images = to_uint8(sample(reported.denoiser, 64, "ddim", seed=0, batch_size=32))
    with Image.open(reported.path / "pictures" / "samples.png") as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(pictures.grid(images, 8, 96)))
    assert "-n 64 --sampler ddim --steps 20 --seed 0" in read.text


def test_the_page_says_what_the_run_is(reported: SimpleNamespace) -> None:
    text = " ".join(read_again(reported).text.split())
    for said in (
        "grey images of 8 × 8 pixels",
        "1,234",  # steps
        "39,488",  # images seen
        "2 min 2 s",
        "1,500",  # images a second
        "0.31",  # held-out loss
        f"{sum(p.numel() for p in reported.denoiser.network.parameters()):,}",
        "inkdrop train digits --out '<script>alert(1)</script>'",
        f"inkdrop report '{reported.path}'",
        "A Processor",
        "2.13.0",
    ):
        assert said in text
    assert "None" not in re.sub("None for (no clipping|steps alone)", "", text)


def test_the_configuration_is_all_there_but_for_other_schedules_fields(
    reported: SimpleNamespace,
) -> None:
    read = read_again(reported)
    for name, section in reported.config.model_dump().items():
        for field in section if isinstance(section, dict) else [name]:
            if name != "schedule":
                assert field in read.text
    assert "max_beta" in read.text
    assert "beta_start" not in read.text
    assert "Passes over the training images" in read.text


def test_what_others_wrote_is_text_not_markup(reported: SimpleNamespace) -> None:
    read = read_again(reported)
    assert "ink & <b>paper</b>" in read.text
    assert read.all("b") == []
    assert read.all("script") == []


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 10)])
def test_other_shapes(
    run: SimpleNamespace, make_denoiser: object, shape: tuple[int, int, int]
) -> None:
    run.shape, run.denoiser = shape, make_denoiser(shape)  # type: ignore[operator]
    run.example = torch.zeros(shape, dtype=torch.uint8)
    read = written(run)
    assert f"{shape[1]} × {shape[2]} pixels" in read.text


def test_a_run_that_has_only_just_begun(run: SimpleNamespace) -> None:
    run.metrics, run.environment, run.example = [], {"sessions": []}, None
    run.config = Config(prediction="x_start", schedule={"kind": "cosine", "timesteps": 20})
    run.step = 1
    read = written(run)
    assert "after 1 training step." in read.text
    assert "Not recorded." in read.text
    assert "held-out image dissolves" not in read.text
    assert not (run.path / "pictures" / "forward.png").exists()


def test_classes_are_told_in_turn(run: SimpleNamespace, make_denoiser: object) -> None:
    run.denoiser = make_denoiser(classes=3)  # type: ignore[operator]
    run.config.network.classes = 3
    read = written(run)
    condition = torch.arange(63) % 3
    images = to_uint8(sample(run.denoiser, 63, condition=condition, batch_size=32))
    with Image.open(run.path / "pictures" / "samples.png") as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(pictures.grid(images, 3, 96)))
    assert "0 to 2 in turn" in read.text


def test_the_samples_drawn_during_training_are_shown_with_their_steps(
    run: SimpleNamespace,
) -> None:
    folder = run.path / "samples" / "training"
    folder.mkdir(parents=True)
    for step in range(1000, 21000, 1000):
        side = 2000 if step == 20000 else 20
        Image.new("L", (side, side)).save(folder / f"step-{step:08d}.png")
    (folder / "step-mine.png").write_bytes(b"not a preview")
    read = written(run)
    shown = [img for img in read.all("img") if "drawn after" in img["alt"]]
    assert len(shown) == 6
    assert "After 1,000 steps" in read.text
    assert "After 20,000 steps" in read.text
    assert decoded(shown[-1]["src"]).width <= 640


def test_a_schedule_that_leaves_signal_is_told_of(
    reported: SimpleNamespace, run: SimpleNamespace
) -> None:
    assert "is left at the end" not in read_again(reported).text
    run.config.schedule = {"kind": "linear", "timesteps": 300, "beta_start": 1e-4, "beta_end": 0.02}
    assert "21.9% of the image's amplitude is left at the end" in written(run).text
    with pytest.warns(ScheduleWarning):
        page.build_schedule(run.config.schedule)


def test_a_network_of_ones_own_is_named(run: SimpleNamespace) -> None:
    run.config.network = None
    assert "UNet, a module of one’s own" in written(run).text


def test_each_machine_and_each_command_is_told_once(run: SimpleNamespace) -> None:
    first = run.environment["sessions"][0]
    other = {**first, "threads": 16, "command": "inkdrop train digits"}
    run.environment["sessions"] = [first, first, other]
    read = written(run)
    assert len([t for t in read.all("table") if t.get("class") == "machine"]) == 2
    assert read.text.count("<script>alert(1)</script>") == 1
    assert "These commands trained the model, in 3 sessions." in read.text
    assert "not bit for bit" in read.text


def test_a_report_that_fails_leaves_the_old_one(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.path.mkdir(parents=True)
    path = run.path / "report.html"
    path.write_bytes(b"the old one")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("inkdrop.checkpoint.os.fsync", full)
    monkeypatch.setattr(page, "render", lambda *_: "the new one")
    with pytest.raises(OSError, match="no space"):
        page.write_report(run)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in run.path.iterdir()] == ["report.html"]


def test_writing_it_again_gives_the_same_page(reported: SimpleNamespace) -> None:
    first = (reported.path / "report.html").read_bytes()
    assert page.write_report(reported).read_bytes() == first


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (42, "42 s"),
        (60, "1 min 0 s"),
        (112.7, "1 min 52 s"),
        (3600 * 3 + 60 * 7 + 5, "3 h 7 min"),
        (86400 * 2 + 3600 * 4, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert page.duration(seconds) == text


@pytest.mark.parametrize(
    ("shape", "count"),
    [((1, 8, 8), 64), ((3, 64, 64), 64), ((3, 128, 128), 16), ((3, 512, 512), 4)],
)
def test_large_images_make_small_sheets(shape: tuple[int, ...], count: int) -> None:
    assert image_page.sheet(shape, None)[1] == count
    assert image_page.film_count(shape) == (16 if shape[1] == 8 else 4 if shape[1] == 64 else 1)
