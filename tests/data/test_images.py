"""An ImageSet is what it says."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from inkdrop.data.images import ImageSet, Source
from inkdrop.errors import InkdropError


def pixels(*shape: int) -> torch.Tensor:
    values = torch.arange(torch.Size(shape).numel()) % 251
    return values.to(torch.uint8).reshape(shape)


def image_set(**changes: object) -> ImageSet:
    fields = {"images": pixels(5, 3, 4, 6), "labels": torch.tensor([0, 2, 1, 2, 0]), "name": "five"}
    return ImageSet(**{**fields, **changes})


def test_length_shape_and_classes():
    images = image_set()
    assert len(images) == 5
    assert images.shape == (3, 4, 6)
    assert images.classes == 3


def test_without_labels_there_are_no_classes():
    assert image_set(labels=None).classes is None


def test_an_image_set_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        image_set().name = "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(5, 3, 4, 6)}, "images must be uint8, got torch.float32"),
        ({"images": pixels(5, 4, 6)}, "(N, channels, height, width), got (5, 4, 6)"),
        ({"images": pixels(0, 3, 4, 6)}, "at least one image"),
        ({"images": pixels(5, 3, 0, 6)}, "at least one pixel"),
        ({"labels": torch.tensor([0, 1])}, "shape (5,), one for each image, got (2,)"),
        ({"labels": torch.zeros(5, 1, dtype=torch.int64)}, "got (5, 1)"),
        ({"labels": torch.zeros(5)}, "vectors and must have shape (5, numbers)"),
        ({"labels": torch.zeros(5).half()}, "classes or float32 vectors, got torch.float16"),
        ({"labels": torch.full((5, 2), math.inf)}, "0 is [inf, inf]"),
        ({"labels": torch.tensor([0, 1, 2, -1, 0])}, "label 3 is -1"),
        (
            {"labels": torch.tensor([0, 1, 2**40, 1, 0])},
            "below 1,048,576, but one is 1099511627776",
        ),
    ],
)
def test_what_is_no_image_set_is_refused_in_one_line(changes, message):
    with pytest.raises(InkdropError) as error:
        image_set(**changes)
    assert message in str(error.value)
    assert str(error.value).startswith("five: ")
    assert "\n" not in str(error.value)


# Fingerprints


def test_the_fingerprint_does_not_depend_on_the_name_or_the_layout_in_memory():
    images = image_set()
    backwards = images.images.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not backwards.is_contiguous()
    assert ImageSet(backwards, images.labels.clone(), "same").fingerprint == images.fingerprint


def test_the_fingerprint_is_a_fixed_number():
    # Runs compare theirs with one written down long ago, so it must never change.
    known = "b50f3e83e9da0fe587e8964ae31b9088e42521e9cc18793a9b8fd9866bd696bf"
    assert image_set().fingerprint == known


def test_the_fingerprint_tells_pixels_labels_shapes_and_order_apart():
    images = image_set()
    other_pixel = images.images.clone()
    other_pixel[4, 2, 3, 5] += 1
    variations = [
        images,
        image_set(images=other_pixel),
        image_set(images=images.images.reshape(5, 3, 6, 4)),
        image_set(labels=torch.tensor([0, 2, 1, 2, 1])),
        image_set(labels=None),
        images.take([1, 0, 2, 3, 4]),
        images.take([0, 1, 2, 3]),
    ]
    assert len({variation.fingerprint for variation in variations}) == len(variations)


# Taking


def test_take_gives_images_and_labels_in_the_order_asked_for():
    images = image_set()
    taken = images.take([4, 1, 1])
    assert torch.equal(taken.images, images.images[[4, 1, 1]])
    assert taken.labels.tolist() == [0, 2, 2]
    assert taken.name == "five"


@pytest.mark.parametrize("indices", [torch.tensor([3]), np.array([3]), (3,), range(3, 4)])
def test_take_accepts_any_sequence_and_copes_without_labels(indices):
    taken = image_set(labels=None).take(indices)
    assert torch.equal(taken.images, image_set().images[3:4])
    assert taken.labels is None


def test_taking_everything_changes_nothing():
    assert image_set().take(range(5)).fingerprint == image_set().fingerprint


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "at least one"),
        ([0, 5], "index 5 is outside 0 … 4"),
        ([-1], "index -1 is outside 0 … 4"),
        ([0.5], "torch.float32"),
        (torch.tensor([True, False, True, True, True]), "torch.bool"),
        (torch.tensor(2), "shape ()"),
    ],
)
def test_take_refuses_what_is_no_index(indices, message):
    with pytest.raises(InkdropError) as error:
        image_set().take(indices)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Sources


def test_the_test_set_may_be_missing():
    assert Source(image_set(), None).test is None


def test_training_and_test_images_must_have_one_shape():
    with pytest.raises(InkdropError, match=r"big has images of shape \(3, 8, 8\), but five of"):
        Source(image_set(), ImageSet(pixels(2, 3, 8, 8), None, "big"))
