"""Arrays become images without a guess that is not told, and nothing in their files is run."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.data.stored import npy
from inkdrop.data.stored.arrays import MappedArrays, Points, find_arrays, from_array
from inkdrop.errors import InkdropError

GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(256, size=(5, 8, 9), dtype=np.uint8)
COLOUR = GENERATOR.integers(256, size=(5, 8, 9, 3), dtype=np.uint8)


def saved(folder: Path, array: np.ndarray, name: str = "images.npy") -> Path:
    np.save(folder / name, array, allow_pickle=True)
    return folder / name


def zipped(folder: Path, packed: bool = True, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if packed else np.savez)(folder / "images.npz", **arrays)
    return folder / "images.npz"


def refusal(function, *arguments) -> str:
    """The message with which the arguments are refused; it is one line."""
    with pytest.raises(InkdropError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def made(array: np.ndarray, labels: np.ndarray | None = None):
    return from_array(array, labels, "images", "an array")


# Shapes


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_found_at_either_end(channels):
    last = GENERATOR.integers(256, size=(5, 8, 9, channels), dtype=np.uint8)
    for array in (last, np.ascontiguousarray(last.transpose(0, 3, 1, 2))):
        images = made(array)
        assert np.array_equal(images.pixels, last)
        assert images.notes == ()
        assert np.shares_memory(images.pixels, array)


def test_grey_images_need_no_channels():
    images = made(GREY)
    assert np.array_equal(images.pixels, GREY)
    assert [item.content.tolist() for item in images.read(1, 3)] == GREY[1:3].tolist()


@pytest.mark.parametrize(
    ("shape", "read", "pixels"),
    [
        ((6, 4, 4, 4), "(N, H, W, C)", (6, 4, 4, 4)),
        ((6, 3, 4, 4), "(N, C, H, W)", (6, 4, 4, 3)),
        ((6, 4, 4, 3), "(N, H, W, C)", (6, 4, 4, 3)),
        ((6, 1, 28, 1), "(N, H, W, C)", (6, 1, 28, 1)),
        ((6, 3, 32, 3), "(N, H, W, C)", (6, 3, 32, 3)),
        ((6, 1, 1, 1), "(N, H, W, C)", (6, 1, 1, 1)),
    ],
)
def test_a_shape_that_can_be_read_in_two_ways_is_told(shape, read, pixels):
    images = made(np.zeros(shape, np.uint8))
    assert images.pixels.shape == pixels
    assert images.notes == (f"its shape {shape} is taken as {read}",)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((), "an array of shape ()"),
        ((5,), "an array of shape (5,)"),
        ((5, 8, 9, 2), "with C = 1, 3 or 4"),
        ((5, 2, 8, 9), "with C = 1, 3 or 4"),
        ((2, 5, 8, 9, 3), "with C = 1, 3 or 4"),
        ((0, 8, 9), "empty: an array of shape (0, 8, 9)"),
        ((5, 0, 9, 3), "empty"),
        ((64, 65, 3), "(64, 65, 3) looks like one image in colour"),
        ((64, 784), "reshape them to (64, 28, 28)"),
        ((64, 3072), "reshape them to (64, 3, 32, 32)"),
        ((64, 2), "points must be floats, and images are (N, H, W)"),
    ],
)
def test_other_shapes_are_refused(tmp_path, shape, message):
    array = np.zeros(shape, np.uint8)
    assert message in refusal(made, array)
    assert message in refusal(find_arrays, saved(tmp_path, array))


def test_images_of_width_three_are_grey_where_they_are_small():
    assert made(np.zeros((7, 3, 3), np.uint8)).pixels.shape == (7, 3, 3)
    assert made(np.zeros((7, 4, 3), np.uint8)).pixels.shape == (7, 4, 3)


# Types and ranges


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
def test_pixels_of_8_and_16_bits_stay_as_they_are(dtype):
    array = np.arange(60).astype(dtype).reshape(3, 4, 5)
    images = made(array)
    assert images.pixels.dtype == (np.uint8 if dtype == "u1" else np.uint16)
    assert np.array_equal(images.pixels, array)
    assert images.notes == ()


def test_booleans_become_black_and_white():
    images = made(np.array([[[True, False]]]))
    assert images.pixels.tolist() == [[[255, 0]]]
    assert images.pixels.dtype == np.uint8
    assert images.notes == ("its booleans became 0 and 255",)


FLOATS = ["<f2", "<f4", ">f4", "<f8"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("values", "pixels", "note"),
    [
        ([0, 0.25, 0.5, 1], [0, 64, 128, 255], "0 … 1, became 0 … 255 (0 … 1 scaled)"),
        ([0, 0, 0, 0], [0, 0, 0, 0], "0 … 0, became 0 … 255 (0 … 1 scaled)"),
        ([1, 1, 1, 1], [255] * 4, "1 … 1, became 0 … 255 (0 … 1 scaled)"),
        ([-1, -0.5, 0, 1], [0, 64, 128, 255], "-1 … 1, became 0 … 255 (-1 … 1 scaled)"),
        ([-0.5, 0, 0, 0], [64, 128, 128, 128], "-0.5 … 0, became 0 … 255 (-1 … 1 scaled)"),
        ([0, 1, 2, 255], [0, 1, 2, 255], "0 … 255, became uint8"),
        ([0, 1, 1, 2], [0, 1, 1, 2], "0 … 2, became uint8"),
    ],
)
def test_floats_are_scaled_by_their_range(dtype, values, pixels, note):
    array = np.array(values, dtype).reshape(1, 2, 2)
    images = made(array)
    assert images.pixels.ravel().tolist() == pixels
    assert images.pixels.dtype == np.uint8
    assert images.notes == (f"its {array.dtype}, {note}",)


@pytest.mark.parametrize(
    ("values", "pixels"),
    [([-1e-6, 1 + 1e-6], [0, 255]), ([-1 - 1e-6, 1 + 1e-6], [0, 255]), ([-1e-6, 0.5], [0, 128])],
)
def test_floats_may_stray_as_far_as_arithmetic_does(values, pixels):
    assert made(np.array([[values]], np.float32)).pixels.ravel().tolist() == pixels


@pytest.mark.parametrize("dtype", ["i1", "<i2", ">i4", "<i8", "<u4", ">u8"])
def test_integers_within_0_and_255_become_bytes(dtype):
    images = made(np.array([[[0, 1, 127]]], dtype))
    assert images.pixels.tolist() == [[[0, 1, 127]]]
    assert images.pixels.dtype == np.uint8
    assert "0 … 127, became uint8" in images.notes[0]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([0, 256], "i8", "int64 with values 0 … 256: they must be 0 … 255"),
        ([-1, 5], "i8", "int64 with values -1 … 5: they must be 0 … 255"),
        ([-1, 1], "i1", "int8 with values -1 … 1: they must be 0 … 255"),
        ([0, 2**63], "u8", "9.22337e+18"),
        ([0, 1.5], "f4", "values 0 … 1.5: they must be 0 … 1, -1 … 1, or whole numbers 0 … 255"),
        ([-1.25, 1], "f8", "values -1.25 … 1"),
        ([0, 1.00002], "f8", "values 0 … 1.00002"),
        ([-2, 250], "f4", "values -2 … 250"),
        ([0, 256], "f4", "values 0 … 256"),
        ([0, 1], "c8", "complex64 is no type of images"),
        (["a", "b"], "U1", "<U1 is no type of images"),
        ([0, 1], "M8[s]", "datetime64[s] is no type of images"),
    ],
)
def test_other_types_and_ranges_are_refused(values, dtype, message):
    assert message in refusal(made, np.array(values).astype(dtype).reshape(1, 1, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_first_image_that_is_not_finite_is_named(monkeypatch, value, dtype):
    monkeypatch.setattr(npy, "_CHUNK_BYTES", 100)
    array = np.zeros((50, 3, 8, 8), dtype)
    array[[31, 40], 1, 2, 3] = value
    assert "image 31 has values that are not finite" in refusal(made, array)


def test_conversion_takes_no_more_memory_than_its_result(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "_CHUNK_BYTES", 1 << 18)
    array = np.linspace(0, 1, 400 * 64 * 64 * 3, dtype=np.float32).reshape(400, 64, 64, 3)
    path = saved(tmp_path, array)
    expected = np.rint(array * np.float32(255)).astype(np.uint8)
    packed = zipped(tmp_path, packed=False, x=array)
    del array
    for file in (path, packed):
        tracemalloc.start()
        found = find_arrays(file)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1.5 * expected.nbytes
        assert np.array_equal(found.train.pixels, expected)


@given(
    pixels=st.integers(0, 2**32 - 1).map(
        lambda seed: np.random.default_rng(seed).integers(256, size=(4, 5, 6, 3), dtype=np.uint8)
    ),
    channels=st.sampled_from([None, 1, 3]),
    first=st.booleans(),
    form=st.sampled_from(["u1", "<i2", ">i8", "0 … 1", "-1 … 1", "<f4", ">f8"]),
    order=st.sampled_from("CF"),
    container=st.sampled_from(["npy", "npz", "packed npz", "array"]),
)
def test_pixels_come_back_whatever_way_they_were_kept(
    tmp_path_factory, pixels, channels, first, form, order, container
):
    folder = tmp_path_factory.getbasetemp()
    pixels[0, 0, 0], pixels[0, 0, 1] = 0, 255  # so that the range is the one meant
    expected = pixels[..., 0] if channels is None else pixels[..., :channels]
    kept = expected.transpose(0, 3, 1, 2) if first and channels else expected
    if form == "0 … 1":
        kept = (kept / 255).astype(np.float32)
    elif form == "-1 … 1":
        kept = kept / 127.5 - 1
    else:
        kept = kept.astype(form)
    kept = np.array(kept, order=order)
    if container == "array":
        images = made(kept)
    elif container == "npy":
        images = find_arrays(saved(folder, kept)).train
    else:
        images = find_arrays(zipped(folder, container == "packed npz", x=kept)).train
    assert images.pixels.dtype == np.uint8
    assert np.array_equal(images.pixels, expected)


# Labels


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "?"])
@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_labels_are_whole_numbers(dtype, shape):
    labels = made(GREY, np.array([0, 1, 1, 0, 1], dtype).reshape(shape)).labels
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4, np.int64), "must have the shape (5,) or (5, 1), one for each, got (4,)"),
        (np.zeros((5, 2), np.int64), "got (5, 2)"),
        (np.zeros(5), "labels must be whole numbers, got float64"),
        (np.array([0, 1, -2, 3, -4]), "label 2 is -2"),
        (np.array([0, 1, 2, 3, 2**63], np.uint64), "label 4 is 9223372036854775808"),
    ],
    ids=["too few", "several", "floats", "negative", "huge"],
)
def test_other_labels_are_refused(labels, message):
    assert message in refusal(made, GREY, labels)


# .npy files


def test_a_file_of_pixels_is_mapped_and_not_read(tmp_path):
    array = np.zeros((400, 3, 64, 64), np.uint8)
    array[399, :, 1, 2] = 1, 2, 3
    path = saved(tmp_path, array)
    tracemalloc.start()
    found = find_arrays(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < array.nbytes / 10
    assert found.train.pixels.shape == (400, 64, 64, 3)
    (last,) = found.train.read(399, 400)
    assert last.content[1, 2].tolist() == [1, 2, 3]
    assert (found.train.name, found.train.kind, found.test) == ("images.npy", "a .npy file", None)


def test_a_mapped_file_pickles_as_its_path(tmp_path, monkeypatch):
    path = saved(tmp_path, np.tile(GREY, (100, 1, 1)))
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(find_arrays(Path(path.name)).train)
    assert len(content) < 2000
    monkeypatch.chdir("/")
    again = pickle.loads(content)
    assert isinstance(again, MappedArrays)
    assert "pixels" not in again.__dict__
    assert np.array_equal(again.pixels[:5], GREY)
    assert len(pickle.dumps(again)) < 2000
    assert again.identity() == find_arrays(path).train.identity()


def test_a_mapped_file_that_has_changed_is_not_opened_again(tmp_path):
    path = saved(tmp_path, GREY)
    content = pickle.dumps(find_arrays(path).train)
    os.utime(path, (1, 1))
    assert "has changed since it was opened" in refusal(lambda: pickle.loads(content).pixels)


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def with_header(header: str, payload: bytes = bytes(100), version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + payload


def header(shape: str = "(1, 10, 10)", dtype: str = "'|u1'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


HUGE = "(1000000000, 1000000, 1000)"
DAMAGED = {
    "nothing": (b"", "no array of NumPy"),
    "text": (b"<html>404</html>", "no array of NumPy"),
    "magic only": (b"\x93NUMPY", "no array of NumPy"),
    "header cut off": (npy_bytes(GREY)[:40], "no array of NumPy"),
    "image cut off": (npy_bytes(GREY)[:-1], "truncated: its header promises 360 bytes, but 359"),
    "byte too many": (npy_bytes(GREY) + b"\0", "too long: its header promises 360 bytes, but 361"),
    "two arrays": (npy_bytes(GREY) * 2, "were several arrays saved to one file?"),
    "version 9": (with_header(header(), version=b"\x09\x00"), "no array of NumPy"),
    "huge": (with_header(header(HUGE)), "promises 1,000,000,000,000,000,000 bytes, but 100"),
    "beyond 64 bits": (with_header(header(f"({2**62}, 4, 4)")), "truncated"),
    "huge and empty": (with_header(header(f"(0, {10**30})"), b""), "cannot read"),
    "negative": (with_header(header("(-1, 10, -10)")), "promises the shape (-1, 10, -10)"),
    "no shape": (with_header("{'descr': '|u1', 'fortran_order': False}"), "no array of NumPy"),
    "code": (with_header("__import__('os').system('x')"), "no array of NumPy"),
    "brackets": (with_header("(" * 9000), "no array of NumPy"),
    "unknown type": (with_header(header(dtype="'|z9'")), "no array of NumPy"),
    "objects": (with_header(header("(1,)", "'|O'"), pickle.dumps([0])), "Python objects"),
    "hidden objects": (with_header(header("(1,)", "[('a', '|O')]")), "Python objects"),
}


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_a_file_that_is_damaged_or_lies_is_refused_without_taking_memory(tmp_path, content, form):
    path = tmp_path / f"x.{form}"
    content, message = DAMAGED[content]
    if form == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
    tracemalloc.start()
    refused = refusal(find_arrays, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in refused
    assert message in refused or (form == "npz" and message == "cannot read")
    assert peak < 10_000_000


class Runs:
    def __reduce__(self):
        return os.mkdir, ("RAN",)


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_objects_are_refused_and_not_unpickled(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    array = np.array([Runs()], object)
    path = saved(tmp_path, array) if form == "npy" else zipped(tmp_path, x=array)
    assert "an array of Python objects, which could run code: refused" in refusal(find_arrays, path)
    assert not (tmp_path / "RAN").exists()


def test_a_missing_file(tmp_path):
    for name in ("x.npy", "x.npz"):
        assert f"cannot read {tmp_path / name}" in refusal(find_arrays, tmp_path / name)


@pytest.mark.parametrize("form", ["npy", "npz"])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_but_nothing_else(tmp_path_factory, form, data):
    path = tmp_path_factory.getbasetemp() / f"damaged.{form}"
    if form == "npy":
        np.save(path, GREY)
    else:
        np.savez_compressed(path, x=GREY[:2], y=np.arange(2))
    content = bytearray(path.read_bytes())
    flips = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), max_size=3)
    for position, mask in data.draw(flips):
        content[position] ^= mask
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        found = find_arrays(path)
    except InkdropError as error:
        message = str(error)
    else:
        message = str(path)
        assert isinstance(found, Points) or len(found.train) > 0
    assert str(path) in message
    assert "\n" not in message


# .npz files


@pytest.mark.parametrize("packed", [True, False])
def test_the_names_of_keras_make_two_parts(tmp_path, packed):
    path = zipped(
        tmp_path, packed, x_train=GREY, y_train=np.arange(5), x_test=GREY[:2], y_test=np.arange(2)
    )
    found = find_arrays(path)
    assert np.array_equal(found.train.pixels, GREY)
    assert np.array_equal(found.test.pixels, GREY[:2])
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([0, 1, 2, 3, 4], [0, 1])
    assert (found.train.name, found.test.name) == ("images.npz train", "images.npz test")
    assert found.train.identity() != found.test.identity()
    assert found.train.notes == ()


def test_the_names_of_medmnist_make_two_parts_and_a_note(tmp_path):
    parts = ("train", "val", "test")
    arrays = {f"{part}_images": COLOUR for part in parts}
    arrays |= {f"{part}_labels": np.arange(5, dtype=np.uint8)[:, None] for part in parts}
    found = find_arrays(zipped(tmp_path, **arrays))
    assert np.array_equal(found.test.pixels, COLOUR)
    assert found.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert found.train.notes == ("not used: val_images, val_labels",)


def test_validation_images_stand_in_for_test_images(tmp_path):
    found = find_arrays(
        zipped(tmp_path, x_train=GREY, x_val=GREY[:2], y_train=np.arange(5), y_val=np.arange(2))
    )
    assert len(found.test) == 2
    assert found.test.labels.tolist() == [0, 1]
    assert "the validation images are taken as test images" in found.train.notes[0]


def test_several_labels_for_an_image_are_left_out_with_a_note(tmp_path):
    found = find_arrays(zipped(tmp_path, train_images=GREY, train_labels=np.zeros((5, 14), int)))
    assert found.train.labels is None
    assert found.train.notes == ("no labels: train_labels has 14 for each image",)


def test_both_parts_are_scaled_alike(tmp_path):
    train = np.array([-1, 0, 1], np.float32).reshape(3, 1, 1)
    found = find_arrays(zipped(tmp_path, x_train=train, x_test=train[1:]))
    assert found.train.pixels.ravel().tolist() == [0, 128, 255]
    assert found.test.pixels.ravel().tolist() == [128, 255]


@pytest.mark.parametrize(
    ("images", "labels"),
    [("x", "y"), ("images", "labels"), ("data", "label"), ("X", "Y"), ("pictures", "label")],
)
def test_images_and_labels_are_known_by_their_names(tmp_path, images, labels):
    found = find_arrays(zipped(tmp_path, **{labels: np.arange(5), images: GREY}))
    assert np.array_equal(found.train.pixels, GREY)
    assert found.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert (found.train.name, found.train.notes) == ("images.npz", ())


def test_arrays_without_names_are_images_and_then_labels(tmp_path):
    np.savez(tmp_path / "x.npz", GREY, np.arange(5))
    assert find_arrays(tmp_path / "x.npz").train.labels.tolist() == [0, 1, 2, 3, 4]
    np.savez(tmp_path / "x.npz", GREY, np.linspace(0, 1, 5))
    found = find_arrays(tmp_path / "x.npz")
    assert found.train.labels is None
    assert found.train.notes == ("not used: arr_1",)


def test_a_known_name_goes_before_others(tmp_path):
    found = find_arrays(zipped(tmp_path, images=GREY, masks=GREY, names=np.array(["a"], object)))
    assert np.array_equal(found.train.pixels, GREY)
    assert found.train.notes == ("not used: masks, names",)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"one": GREY, "two": GREY}, "which are the images? Call them x_train and x_test"),
        ({"x": GREY, "images": GREY}, "it holds x (5, 8, 9), images (5, 8, 9)"),
        ({"x": GREY, "y": np.arange(5), "label": np.arange(5)}, "which are the labels, y or label"),
        ({"x": GREY, "X": GREY}, "names that differ only in case: x, X"),
        ({"mean": np.zeros(3)}, "holds no images or points, but mean (3,)"),
        ({}, "holds no images or points, but nothing"),
        ({"x": GREY, "y": np.zeros(5)}, "y: labels must be whole numbers, got float64"),
        ({"x": GREY, "y": np.arange(4)}, "y: labels must have the shape (5,)"),
        ({"x": GREY, "y": np.array([None] * 5)}, "y: an array of Python objects"),
        ({"x_train": GREY, "y_train": np.array([None] * 5)}, "y_train: an array of Python objects"),
        ({"x_train": GREY, "x_test": np.zeros((5, 2), "u1")}, "x_test: uint8 of shape (5, 2)"),
        ({"x_train": np.zeros((5, 2)), "x_test": np.zeros((5, 2))}, "points in two parts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_unclear_or_wrong_in_an_npz_file(tmp_path, arrays, message):
    path = zipped(tmp_path, **arrays)
    refused = refusal(find_arrays, path)
    assert message in refused
    assert str(path) in refused


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = zipped(tmp_path, x=np.zeros((4000, 64, 64), np.uint8))
    assert path.stat().st_size < 100_000
    memory = type("Memory", (), {"available": 10_000_000})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    message = refusal(find_arrays, path)
    assert "16,384,000 bytes, but 10,000,000 bytes of memory are free: save it as" in message


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", with_header(header("(1000000, 100, 100)"), bytes(1000)))
    real = struct.pack("<I", len(header("(1000000, 100, 100)")) + 10 + 1000)
    false = struct.pack("<I", (len(header("(1000000, 100, 100)")) + 10 + 10**10) % 2**32)
    path.write_bytes(path.read_bytes().replace(real, false))
    assert "x: " in refusal(find_arrays, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", with_header(header("(100000, 10, 10)"), bytes(1000)))
    size = len(header("(100000, 10, 10)")) + 10
    false = struct.pack("<I", size + 10**7)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", size + 1000), false))
    assert "bytes cannot hold 10,000,000" in refusal(find_arrays, path)


def test_a_wrong_checksum_is_found(tmp_path):
    path = zipped(tmp_path, packed=False, x=GREY)
    content = bytearray(path.read_bytes())
    content[content.index(GREY.tobytes()) + 100] ^= 1
    path.write_bytes(content)
    assert "damaged (Bad CRC-32" in refusal(find_arrays, path)


def test_what_else_a_zip_can_hold(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("folder")
        archive.writestr("x.npy", npy_bytes(GREY))
        archive.writestr("folder/line\nbreak.txt", b"hello")
    found = find_arrays(path)
    assert np.array_equal(found.train.pixels, GREY)
    assert found.train.notes == (r"not used: 'folder/line\nbreak.txt'",)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", npy_bytes(GREY))
    assert "x: packed in a way that NumPy does not use" in refusal(find_arrays, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", npy_bytes(GREY))
        archive.writestr("x.npy", npy_bytes(GREY))
    assert "holds 'x' twice" in refusal(find_arrays, path)


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04"])
def test_a_file_that_is_no_zip(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    assert "no .npz file, or one that is cut off" in refusal(find_arrays, tmp_path / "x.npz")


# Points


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_in_two_dimensions_are_points(tmp_path, dtype):
    array = np.array([[0.5, -2], [3, 4]], dtype)
    found = find_arrays(saved(tmp_path, array))
    assert isinstance(found, Points)
    assert found.values.dtype == np.float32
    assert found.values.tolist() == array.tolist()
    assert (found.labels, found.name) == (None, "images.npy")


def test_points_in_an_npz_file_can_have_labels(tmp_path):
    found = find_arrays(zipped(tmp_path, x=np.ones((3, 2)), y=np.array([2, 0, 1])))
    assert found.values.shape == (3, 2)
    assert found.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_points_that_are_not_finite_are_named(tmp_path, value):
    array = np.zeros((5, 2))
    array[3, 1] = value
    assert "point 3 is not finite" in refusal(find_arrays, saved(tmp_path, array))


def test_no_points(tmp_path):
    assert "empty" in refusal(find_arrays, saved(tmp_path, np.zeros((0, 2))))
