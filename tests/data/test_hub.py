"""Parquet and the hub: images arrive exactly, or one line says which one does not."""

import io
import json
import socket
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from inkdrop.data import hub
from inkdrop.data.hub import load_hub, load_parquet
from inkdrop.errors import InkdropError

NOISE = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def table(images, column="image", **columns) -> pa.Table:
    held = [image if image is None else {"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({column: pa.array(held, kind), **columns})


def write(folder: Path, content: pa.Table, name: str = "train.parquet", **options) -> Path:
    pq.write_table(content, folder / name, **options)
    return folder / name


RGB = [png(pixels) for pixels in NOISE]
GREY = [png(pixels[..., 0]) for pixels in NOISE]


def refusal(function, *arguments) -> str:
    """The message with which the arguments are refused; it is one line."""
    with pytest.raises(InkdropError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Parquet


def test_colour_images_arrive_exactly_with_their_labels(tmp_path):
    file = write(tmp_path, table(RGB, label=[3, 1, 4, 1, 5, 9, 2]), row_group_size=3)
    images = load_parquet([file], "noise")
    assert torch.equal(images.images, torch.from_numpy(NOISE).permute(0, 3, 1, 2))
    assert images.labels.tolist() == [3, 1, 4, 1, 5, 9, 2]
    assert images.labels.dtype == torch.int64
    assert images.name == "noise"


def test_grey_images_have_one_channel_and_labels_may_be_missing(tmp_path):
    images = load_parquet([write(tmp_path, table(GREY))], "noise")
    assert torch.equal(images.images, torch.from_numpy(NOISE[..., 0]).unsqueeze(1))
    assert images.labels is None


def test_files_follow_each_other_in_the_order_given(tmp_path):
    first = write(tmp_path, table(RGB[:2], label=[0, 1]), "a.parquet")
    second = write(tmp_path, table(RGB[2:], label=[2, 3, 4, 5, 6]), "b.parquet")
    images = load_parquet([second, first], "noise")
    assert images.labels.tolist() == [2, 3, 4, 5, 6, 0, 1]
    assert torch.equal(images.images[5], torch.from_numpy(NOISE[0]).permute(2, 0, 1))


def test_more_rows_than_are_read_at_once(tmp_path):
    count = hub._ROWS_AT_ONCE * 2 + 5
    file = write(tmp_path, table([GREY[i % 7] for i in range(count)], label=range(count)))
    images = load_parquet([file], "many")
    assert images.labels.tolist() == list(range(count))
    assert torch.equal(images.images[-1, 0], torch.from_numpy(NOISE[(count - 1) % 7, ..., 0]))


@pytest.mark.parametrize("column", ["image", "img"])
def test_an_image_column_is_found_by_its_name(tmp_path, column):
    file = write(tmp_path, table(RGB, column, labels=[0] * 7, fine_label=[1] * 7))
    assert load_parquet([file], "noise").labels.tolist() == [0] * 7


def test_fine_labels_are_not_taken_for_labels(tmp_path):
    file = write(tmp_path, table(RGB, fine_label=[1] * 7, coarse_label=[0] * 7))
    assert load_parquet([file], "noise").labels is None


def test_an_image_column_is_found_by_its_declared_type(tmp_path):
    note = {"info": {"features": {"scan": {"_type": "Image"}, "n": {"_type": "Value"}}}}
    content = table(RGB, "scan", n=[0] * 7, image=["the name of a file"] * 7)
    content = content.replace_schema_metadata({"huggingface": json.dumps(note)})
    assert len(load_parquet([write(tmp_path, content)], "noise")) == 7


@pytest.mark.parametrize("note", ["no JSON", "[]", '{"info": null}', '{"info": {"features": 3}}'])
def test_a_note_in_the_file_that_makes_no_sense_is_passed_over(tmp_path, note):
    content = table(RGB).replace_schema_metadata({"huggingface": note})
    assert len(load_parquet([write(tmp_path, content)], "noise")) == 7


def test_a_column_of_plain_bytes_holds_images_too(tmp_path):
    assert len(load_parquet([write(tmp_path, pa.table({"image": RGB}))], "noise")) == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pa.table({"text": ["a"], "label": [1]}), "its columns are text, label"),
        (pa.table({"image": ["a"]}), "column 'image' holds string, not encoded images"),
        (table(RGB, label=["cat"] * 7), "column 'label' holds string, but labels must be whole"),
        (table(RGB, label=[0, 1, None, 3, 4, 5, 6]), "row 2: the label is missing"),
        (table(RGB, label=[0, 1, 2, -1, 4, 5, 6]), "label 3 is -1"),
        (table([*RGB[:5], None, RGB[6]]), "row 5: the image's bytes are missing"),
        (table([RGB[0], b"not an image"]), "row 1: not an image in a format that Pillow knows"),
        (table([RGB[0], RGB[1][:-60]]), "row 1: the image cannot be decoded"),
        (table([]), "empty: it has no rows"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, content, message):
    assert message in refusal(load_parquet, [write(tmp_path, content)], "noise")


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (png(NOISE[0, :3]), "row 4: an image of 3x6 RGB among images of 4x6 RGB"),
        (png(NOISE[0, ..., 0]), "row 4: an image of 4x6 grey among images of 4x6 RGB"),
        (png(np.zeros((4, 6, 4), np.uint8)), "row 4: an image of mode 'RGBA'; L and RGB"),
        (png(np.zeros((4, 6), np.uint16)), "row 4: an image of mode 'I;16'; L and RGB"),
    ],
)
def test_the_first_odd_image_is_named(tmp_path, odd, message):
    file = write(tmp_path, table([*RGB[:4], odd, RGB[5], odd]))
    assert f"{file}, {message}" in refusal(load_parquet, [file], "noise")


def test_an_odd_image_in_the_second_file_is_named_with_its_row_there(tmp_path):
    first = write(tmp_path, table(RGB), "a.parquet")
    second = write(tmp_path, table([RGB[0], GREY[0]]), "b.parquet")
    assert f"{second}, row 1: an image of" in refusal(load_parquet, [first, second], "noise")


def test_files_of_different_columns(tmp_path):
    first = write(tmp_path, table(RGB, label=[0] * 7), "a.parquet")
    second = write(tmp_path, table(RGB), "b.parquet")
    message = refusal(load_parquet, [first, second], "noise")
    assert f"{second} has images in 'image' and no labels, but {first} has" in message


def test_a_file_that_is_missing_or_no_parquet(tmp_path):
    missing, other = tmp_path / "no.parquet", tmp_path / "text.parquet"
    other.write_text("hello, this is text\n" * 10)
    assert refusal(load_parquet, [missing], "noise") == f"no such file: {missing}"
    assert f"{other}: not a readable Parquet file" in refusal(load_parquet, [other], "noise")
    assert "no Parquet files given" in refusal(load_parquet, [], "noise")


def test_a_damaged_parquet_file(tmp_path):
    file = write(tmp_path, table(RGB))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert f"{file}: not a readable Parquet file" in refusal(load_parquet, [file], "noise")
    file.write_bytes(content[:4] + bytes(40) + content[44:])
    assert str(file) in refusal(load_parquet, [file], "noise")


def test_images_that_do_not_fit_in_memory():
    message = refusal(hub._room_for, 10**9, (3, 10**5, 10**5), "huge")
    assert message == "huge: 1000000000 images of 100000x100000 RGB do not fit in memory"


def test_cifar10_is_what_pillow_makes_of_it(data_dir):
    file = data_dir / "cifar10" / "test.parquet"
    images = load_parquet([file], "cifar10 test")
    assert images.images.shape == (10_000, 3, 32, 32)
    assert images.labels.bincount().tolist() == [1000] * 10
    row = pq.read_table(file).slice(7_777, 1).to_pylist()[0]
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(row["img"]["bytes"]))))
    assert torch.equal(images.images[7_777], pixels.permute(2, 0, 1))
    assert images.labels[7_777] == row["label"]


# The hub


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def test_a_set_through_datasets_is_the_same_as_its_parquet(tmp_path, own_cache, capfd):
    # `datasets` takes a folder in the hub's layout for a set of the hub.
    (tmp_path / "data").mkdir()
    file = write(tmp_path / "data", table(RGB, label=[3, 1, 4, 1, 5, 9, 2]))
    fetched = load_hub(str(tmp_path / "data"), "train")
    assert fetched.fingerprint == load_parquet([file], "noise").fingerprint
    assert capfd.readouterr() == ("", "")


def test_an_unknown_split_names_those_there_are(tmp_path, own_cache):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", table(RGB))
    message = refusal(load_hub, str(tmp_path / "data"), "tests")
    assert "tests" in message
    assert "train" in message.split("Should be one of")[1]


def test_without_a_network_one_line_comes_soon_and_says_what_to_do(own_cache, monkeypatch, capfd):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nothing is there
    start = time.monotonic()
    message = refusal(load_hub, "ylecun/mnist", "train")
    assert time.monotonic() - start < 15
    assert message.startswith("cannot fetch the data set 'ylecun/mnist' (train) from the hub: the")
    assert "--data PATH" in message
    assert "INKDROP_DATA" in message
    assert capfd.readouterr() == ("", "")
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_network_that_swallows_everything_does_not_answer(monkeypatch):
    monkeypatch.setattr(hub, "_HUB_ANSWERS_WITHIN", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{port}")
        start = time.monotonic()
        assert not hub._hub_answers()
        assert time.monotonic() - start < 5


def test_a_lookup_of_a_name_that_takes_for_ever_is_not_waited_for(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(hub, "_HUB_ANSWERS_WITHIN", 0.3)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: never.wait(20))
    start = time.monotonic()
    assert not hub._hub_answers()
    assert time.monotonic() - start < 5
    never.set()


def test_any_answer_is_an_answer(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        port = server.getsockname()[1]
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert hub._hub_answers()
