"""Pictures of pairs, and of what the condition changes."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from inkdrop.data.pixels import to_uint8
from inkdrop.diffusion.samplers import initial_noise, sample
from inkdrop.errors import InkdropError
from inkdrop.report import conditional, pictures, style
from inkdrop.report.neighbours import draw_pairs


@pytest.fixture
def strips(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What strips are drawn of: their rows and all else."""
    drawn: list[dict[str, Any]] = []
    draw = pictures.strip

    def seen(rows: list[torch.Tensor], **how: Any) -> Image.Image:
        drawn.append({"rows": rows, **how})
        return draw(rows, **how)

    monkeypatch.setattr(pictures, "strip", seen)
    return drawn


def test_a_row_starts_from_one_noise_and_a_column_is_told_one_class(
    run: SimpleNamespace, make_denoiser: Callable[..., object], strips: list[dict[str, Any]]
) -> None:
    run.denoiser = make_denoiser(classes=3)
    run.config.network.classes = 3
    chosen = conditional.chosen(run)
    assert chosen is not None
    assert (chosen.kind, chosen.names, chosen.every) == ("class", ["0", "1", "2"], True)
    conditional.image_grid(run, run.denoiser, chosen, "ddim", 5)
    ((head, names), rows) = strips[0]["heads"], strips[0]["rows"]
    assert (head, names) == ("class", ["0", "1", "2"])
    assert len(rows) == conditional.grid_rows(run.shape, 3) == 4
    for row, images in enumerate(rows):
        noise = initial_noise(4, run.shape, 5)[row : row + 1].expand(3, *run.shape)
        made = to_uint8(sample(run.denoiser, 3, x_init=noise, condition=torch.arange(3)))
        assert images.equal(made)


def test_many_classes_are_spread_evenly(run: SimpleNamespace) -> None:
    run.config.network.classes = 100
    chosen = conditional.chosen(run)
    assert chosen is not None
    assert len(chosen.names) == 10
    assert (chosen.names[0], chosen.names[-1], chosen.every) == ("0", "99", False)


def test_without_a_condition_there_is_no_grid(run: SimpleNamespace) -> None:
    assert conditional.chosen(run) is None


def test_vectors_that_are_directions_are_angles(run: SimpleNamespace) -> None:
    run.config.network.vector = 2
    angles = torch.rand(50) * 6
    run.vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    around = conditional.chosen(run)
    assert around is not None
    assert around.names == ["0°", "90°", "180°", "270°"]
    assert torch.allclose(
        around.told, torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6
    )
    run.vectors = torch.randn(50, 2)
    some = conditional.chosen(run)
    assert some is not None
    assert some.told.equal(run.vectors[[0, 16, 33, 49]])


def test_only_a_network_with_a_null_condition_can_be_guided(
    make_denoiser: Callable[..., object],
) -> None:
    classes = torch.arange(3)
    never = make_denoiser(classes=3)
    assert not conditional.can_be_guided(never, classes)  # type: ignore[arg-type]
    none = SimpleNamespace(network=torch.nn.Identity())
    assert not conditional.can_be_guided(none, classes)  # type: ignore[arg-type]
    network = SimpleNamespace(null_condition=lambda told: torch.full_like(told, -1))
    assert conditional.can_be_guided(SimpleNamespace(network=network), classes)  # type: ignore[arg-type]


def test_pairs_show_every_sample_above_its_neighbour(strips: list[dict[str, Any]]) -> None:
    samples = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8)
    others = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8)
    picture = draw_pairs(samples, others, [0.5 * i for i in range(8)])
    assert torch.cat([strip["rows"][0] for strip in strips]).equal(samples)
    assert torch.cat([strip["rows"][1] for strip in strips]).equal(others)
    assert [strip["row_labels"] for strip in strips] == [["sample", "training"]] * 2
    distances = [text for strip in strips for text in strip["feet"][1]]
    assert distances == ["0", "0.5", "1", "1.5", "2", "2.5", "3", "3.5"]
    assert picture.width <= style.DENSITY * 480


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 10), (4, 70, 70)])
def test_pairs_of_any_images(shape: tuple[int, ...]) -> None:
    image = torch.zeros(1, *shape, dtype=torch.uint8)
    assert draw_pairs(image, image, [0.0]).width > 100


def test_pairs_that_do_not_match_are_refused() -> None:
    image = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(InkdropError, match="got 2, 1 and 2"):
        draw_pairs(image, image[:1], [1.0, 2.0])
    with pytest.raises(InkdropError, match="one at least"):
        draw_pairs(image[:0], image[:0], [])
