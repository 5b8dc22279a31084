"""Images in Python: sequences and map-style data sets."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from inkdrop.data.stored.sequences import Sequenced
from inkdrop.errors import InkdropError


def read(items, **options):
    sequence = Sequenced(items, **options)
    return [item.content for item in sequence.read(0, len(sequence))], sequence.labels


def refusal(items) -> str:
    with pytest.raises(InkdropError) as error:
        Sequenced(items, "mine")
    assert "\n" not in str(error.value)
    return str(error.value)


grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
colour = np.arange(105, dtype=np.uint8).reshape(5, 7, 3)


def test_images_of_every_form_come_as_height_width_channels():
    images, labels = read(
        [grey, colour, colour.transpose(2, 0, 1), torch.from_numpy(colour), Image.fromarray(colour)]
    )
    assert labels is None
    assert np.array_equal(images[0], grey)
    for image in images[1:]:
        assert np.array_equal(image, colour)


def test_one_channel_is_grey():
    for image in (grey[None], grey[..., None], torch.from_numpy(grey)[None]):
        (read_back,), _ = read([image])
        assert np.array_equal(read_back, grey)


def test_labels_come_with_pairs_and_mappings():
    pairs = [(grey, 3), (grey, torch.tensor(1)), (grey, np.int64(0))]
    mappings = [{"image": grey, "label": 3}, {"img": grey, "label": 1}, {"image": grey, "label": 0}]
    for items in (pairs, mappings):
        images, labels = read(items)
        assert labels.tolist() == [3, 1, 0]
        assert all(np.array_equal(image, grey) for image in images)


class Squares(Dataset):
    """As torchvision's sets with ToTensor: floats (C, H, W) in [0, 1], and a class."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if not 0 <= index < 4:
            raise IndexError(index)
        return torch.full((1, 6, 6), index / 3), index


def test_a_torch_dataset_of_floats():
    images, labels = read(Squares())
    assert [int(image[0, 0]) for image in images] == [0, 85, 170, 255]
    assert labels.tolist() == [0, 1, 2, 3]


def test_floats_are_read_on_the_range_of_all_of_them():
    images, _ = read([np.full((2, 2), value) for value in (-1.0, 0.0, 1.0)])
    assert [int(image[0, 0]) for image in images] == [0, 128, 255]
    images, _ = read([np.full((2, 2), value) for value in (0.0, 1.0)])
    assert [int(image[0, 0]) for image in images] == [0, 255]


def test_palettes_and_other_modes_of_pillow():
    palette = Image.fromarray(colour).quantize(4)
    (image,), _ = read([palette])
    assert np.array_equal(image, np.asarray(palette.convert("RGB")))
    (image,), _ = read([Image.new("LA", (3, 3), (9, 100))])
    assert image[0, 0].tolist() == [9, 9, 9, 100]


def test_the_identity_is_of_pixels_and_labels():
    same = [Sequenced([(grey, 1), (grey, 2)]).identity() for _ in range(2)]
    assert same[0] == same[1]
    assert Sequenced([(grey, 1), (grey, 1)]).identity() != same[0]
    assert Sequenced([(grey, 1), (grey + 1, 2)]).identity() != same[0]


def test_what_is_no_image_is_named():
    assert "mine: empty" in refusal([])
    assert "mine, item 1: expected a Pillow image, an array or a tensor, got str" in refusal(
        [grey, "a.png"]
    )
    assert "floats must lie in [0, 1] or [-1, 1], got 0 … 255" in refusal(
        [np.array([[0.0, 255.0]])]
    )
    assert "floats must lie in" in refusal([np.array([[0.0, np.nan]])])
    assert "got int64" in refusal([grey.astype(np.int64)])
    assert "got (5, 7, 2)" in refusal([colour[..., :2]])
    assert "item 1: it has no label" in refusal([(grey, 1), grey])
    assert "label must be a whole number, got 'cat'" in refusal([(grey, "cat")])
    assert "labels must be 0 or more, got -1" in refusal([(grey, -1)])
    assert "labels must be below 1,048,576, got 1180591620717411303424" in refusal([(grey, 2**70)])
    assert "a mapping needs a key image or img or pixel_values, got x" in refusal([{"x": grey}])
