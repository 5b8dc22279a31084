"""The order of the training images is a pure function of (seed, step)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkdrop.data.augment import Augmentation
from inkdrop.data.images import ImageSet
from inkdrop.data.pixels import to_float
from inkdrop.data.points import PointSet
from inkdrop.data.stream import Stream, held_out_split
from inkdrop.errors import InkdropError


def numbered(count: int, height: int = 3, width: int = 5) -> ImageSet:
    """Images whose pixels all differ, so that any move of them shows."""
    pixels = torch.arange(count * height * width) % 251
    return ImageSet(
        pixels.to(torch.uint8).reshape(count, 1, height, width), torch.arange(count), "numbered"
    )


def numbered_points(count: int) -> PointSet:
    points = torch.arange(2 * count, dtype=torch.float32).reshape(count, 2)
    return PointSet(points, torch.arange(count), "numbered")


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 10))
def test_every_epoch_holds_every_image_once(count: int, batch: int, seed: int) -> None:
    stream = Stream(numbered(count), batch, seed)
    steps = -(-3 * count // batch)
    order = [int(i) for step in range(steps) for i in stream.indices(step)]
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    images = numbered(20)
    asked_in_order = Stream(images, 6, seed=3)
    batches = [asked_in_order.indices(step).tolist() for step in range(10)]
    fresh = Stream(images, 6, seed=3)
    assert [fresh.indices(step).tolist() for step in (7, 2, 9, 0)] == [
        batches[step] for step in (7, 2, 9, 0)
    ]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    images = numbered(30)
    stream = Stream(images, 30, seed=0)
    assert stream.indices(0).tolist() != stream.indices(1).tolist()
    assert stream.indices(0).tolist() != Stream(images, 30, seed=1).indices(0).tolist()


def test_labels_travel_with_their_images() -> None:
    images = numbered(12)
    batch = Stream(images, 5, seed=0).batch(1)
    assert batch.labels is not None
    assert torch.equal(batch.x_start, to_float(images.images[batch.labels]))


def test_a_flip_mirrors_half_of_the_images_and_leaves_the_rest() -> None:
    images = numbered(400)
    batch = Stream(images, 400, 0, Augmentation(horizontal_flip=True)).batch(0)
    original = to_float(images.images[batch.labels])
    mirrored = (batch.x_start == original.flip(-1)).flatten(1).all(1)
    untouched = (batch.x_start == original).flatten(1).all(1)
    assert torch.equal(mirrored, ~untouched)
    assert 150 < mirrored.sum() < 250


def test_a_shift_moves_each_image_as_a_whole_and_repeats_its_edges() -> None:
    images = numbered(200)
    batch = Stream(images, 200, 0, Augmentation(shift=1)).batch(0)
    moves = set()
    for moved, label in zip(batch.x_start, batch.labels, strict=True):
        image = to_float(images.images[int(label)])[0]
        fits = {
            (dy, dx)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if torch.equal(
                moved[0],
                image[(torch.arange(3) + dy).clamp(0, 2)][:, (torch.arange(5) + dx).clamp(0, 4)],
            )
        }
        assert len(fits) == 1
        moves |= fits
    assert len(moves) == 9


def test_points_come_in_the_same_order_as_images_and_as_they_are() -> None:
    points = numbered_points(20)
    stream = Stream(points, 6, seed=3)
    batch = stream.batch(4)
    assert stream.indices(4).tolist() == Stream(numbered(20), 6, seed=3).indices(4).tolist()
    assert batch.labels is not None
    assert batch.labels.tolist() == stream.indices(4).tolist()
    assert torch.equal(batch.x_start, points.points[batch.labels])


def test_points_cannot_be_flipped_shifted_or_turned() -> None:
    for change in ({"horizontal_flip": True}, {"shift": 2}, {"rotation": 5.0}):
        with pytest.raises(InkdropError, match="numbered: points cannot be flipped, shifted or"):
            Stream(numbered_points(5), 2, 0, Augmentation(**change))


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(shift=1, rotation=10)])
def test_processes_share_a_batch_and_together_have_what_one_would(augmentation) -> None:
    images = numbered(50)
    whole = Stream(images, 12, 1, augmentation).batch(5)
    for world in (2, 3, 4):
        parts = [
            Stream(images, 12, 1, augmentation, rank=rank, world_size=world).batch(5)
            for rank in range(world)
        ]
        assert torch.equal(torch.cat([part.x_start for part in parts]), whole.x_start)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def test_a_batch_that_cannot_be_shared_evenly() -> None:
    with pytest.raises(InkdropError, match="a batch of 10 cannot be shared evenly by 4"):
        Stream(numbered(50), 10, 0, world_size=4)


def test_a_memory_mode_does_not_change_a_batch() -> None:
    images = numbered(50)
    here = Stream(images, 12, 1, memory="resident")
    there = Stream(images, 12, 1, memory="mapped")
    assert here.resident
    assert not there.resident
    for step in (0, 1, 2, 7, 1):
        assert torch.equal(here.batch(step).x_start, there.batch(step).x_start)
        assert torch.equal(here.batch(step).labels, there.batch(step).labels)
    with pytest.raises(InkdropError, match="unknown memory mode 'residnet'"):
        Stream(images, 12, 1, memory="residnet")


def test_points_are_held_out_as_images_are() -> None:
    train, held_out = held_out_split(numbered_points(50), None, wanted=5)
    assert isinstance(train, PointSet)
    assert held_out is not None
    assert sorted(train.labels.tolist() + held_out.labels.tolist()) == list(range(50))


def test_held_out_images_come_from_the_test_set_where_there_is_one() -> None:
    train, held_out = held_out_split(numbered(50), numbered(30), wanted=8)
    assert len(train) == 50
    assert held_out is not None
    assert len(held_out) == 8


@pytest.mark.parametrize(("count", "wanted", "expected"), [(100, 5, 5), (100, 50, 10), (9, 5, 0)])
def test_without_a_test_set_at_most_a_tenth_is_set_aside(
    count: int, wanted: int, expected: int
) -> None:
    train, held_out = held_out_split(numbered(count), None, wanted)
    kept = set(train.labels.tolist())
    aside = set() if held_out is None else set(held_out.labels.tolist())
    assert len(aside) == expected
    assert kept | aside == set(range(count))
    assert not kept & aside
