"""The hub: images arrive as they are stored, fetched or streamed, or one line says why not.

What is tested is a local folder in the hub's layout, which `datasets` takes for a set of the hub.
"""

import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from inkdrop.data.stored import hub
from inkdrop.data.stored.hub import HubStream, find_hub
from inkdrop.data.stored.parquet import find_parquet
from inkdrop.errors import InkdropError

IMAGES = [f"image {i}".encode() for i in range(100)]  # what is in them is not looked at
LABELS = [i % 3 for i in range(100)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = ("cat", "cow", "dog")


def table(images=IMAGES, **columns) -> pa.Table:
    held = [image if image is None else {"bytes": image, "path": None} for image in images]
    return pa.table({"image": pa.array(held, STRUCT), **columns})


def declared(images=IMAGES, labels=LABELS) -> pa.Table:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
    }
    note = json.dumps({"info": {"features": features}})
    return table(images, label=labels).replace_schema_metadata({"huggingface": note})


def hub_set(folder: Path, *, told: bool = True, **splits: pa.Table) -> str:
    """A set in the hub's layout, each split in two files; its card tells how large it is."""
    (folder / "data").mkdir(parents=True)
    card = ["---", "dataset_info:", "  splits:"]
    for split, content in splits.items():
        half = len(content) // 2
        for i, part in enumerate((content.slice(0, half), content.slice(half))):
            file = folder / "data" / f"{split}-0000{i}-of-00002.parquet"
            pq.write_table(part, file, row_group_size=20)
        card += [f"  - name: {split}", f"    num_examples: {len(content)}"]
    if told:
        (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return str(folder)


def contents(collection, start=0, stop=None) -> list:
    stop = len(collection) if stop is None else stop
    return [item.content for item in collection.read(start, stop)]


def refusal(function, *arguments) -> str:
    """The message with which the arguments are refused; it is one line."""
    with pytest.raises(InkdropError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


# Fetched


def test_a_set_of_the_hub_is_the_same_as_its_parquet(tmp_path, capfd):
    reference = hub_set(tmp_path / "set", train=declared(), test=declared(IMAGES[:9], LABELS[:9]))
    fetched, files = find_hub(reference), find_parquet([tmp_path / "set"])
    for mine, theirs in zip(fetched, files, strict=True):
        assert contents(mine) == contents(theirs)
        assert mine.labels.tolist() == theirs.labels.tolist()
        assert mine.class_names == theirs.class_names == CLASSES
        assert mine.notes == ()
    assert fetched.train.labels.dtype == np.int64
    assert capfd.readouterr() == ("", "")


def test_ranges_and_places(tmp_path):
    train = find_hub(hub_set(tmp_path / "set", train=declared())).train
    assert contents(train, 30, 71) == IMAGES[30:71]
    assert contents(train, 5, 5) == []
    (item,) = train.read(42, 43)
    assert item.place == f"{tmp_path / 'set'} train, row 42"


def test_missing_bytes_are_the_fault_of_their_image_alone(tmp_path):
    images = [*IMAGES[:3], None, *IMAGES[4:]]
    items = list(find_hub(hub_set(tmp_path / "set", train=table(images))).train.read(2, 5))
    assert [item.content for item in items] == [IMAGES[2], None, IMAGES[4]]
    assert items[1].fault == "the image's bytes are missing"


@pytest.mark.parametrize("streaming", [False, True])
def test_images_beside_the_set_are_read_from_their_files(tmp_path, streaming):
    folder = tmp_path / "set" / "train"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (2, 2), i).save(folder / name / f"{i}.png")
    train = find_hub(str(tmp_path / "set"), False).train
    if streaming:  # the size is known from what was fetched before
        train = find_hub(str(tmp_path / "set"), True).train
    expected = [file.read_bytes() for file in sorted(folder.glob("*/*.png"))]
    assert contents(train) == expected
    assert train.class_names == ("cat", "dog")
    (folder / "cat" / "1.png").unlink()
    fault = [item.fault for item in train.read(0, 6)]
    assert fault[1] == f"cannot read {folder / 'cat' / '1.png'}: no such file"
    assert fault[0] == fault[2] == ""


@pytest.mark.parametrize("path", ["https://example.com/1.png", "zip://1.png::file:///1.zip"])
def test_a_path_that_leads_elsewhere_is_not_followed(path):
    item = hub._item("set, row 0", None, path)
    assert item == ("set, row 0", None, f"cannot read {path}: it lies elsewhere than on the hub")


def test_a_device_is_not_an_image():
    assert hub._item("set, row 0", None, "/dev/zero").content is None


def test_a_pickled_copy_reads_the_same_without_torch(tmp_path):
    train = find_hub(hub_set(tmp_path / "set", train=declared())).train
    pickled = pickle.dumps(train)
    assert len(pickled) < 20_000
    code = (
        "import pickle, sys; train = pickle.load(sys.stdin.buffer); "
        "items = list(train.read(90, 100)); "
        "print(items[-1].content.decode(), train.labels[99], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True)
    assert (done.stdout.split(), done.stderr) == ([b"image", b"99", b"0", b"False"], b"")


def test_the_identity_is_that_of_what_was_fetched(tmp_path):
    first = hub_set(tmp_path / "a", train=declared(), test=declared())
    before = find_hub(first)
    again = find_hub(first)
    assert before.train.identity() == again.train.identity() != before.test.identity()
    other = hub_set(tmp_path / "b", train=declared(IMAGES[::-1]))
    assert find_hub(other).train.identity() != before.train.identity()


# Splits and configurations


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_serves_where_there_is_no_test(tmp_path, streaming):
    splits = {"train": declared(), "validation": declared(IMAGES[:5], LABELS[:5])}
    found = find_hub(hub_set(tmp_path / "a", **splits), streaming)
    assert contents(found.test) == IMAGES[:5]
    assert "validation serves as test images" in found.test.notes[0]
    splits["test"] = declared(IMAGES[:4], LABELS[:4])
    found = find_hub(hub_set(tmp_path / "b", **splits), streaming)
    assert contents(found.test) == IMAGES[:4]
    assert "validation is left aside" in found.train.notes[0]


def test_the_only_split_is_trained_on(tmp_path):
    found = find_hub(hub_set(tmp_path / "set", test=declared()))
    assert (len(found.train), found.test) == (100, None)
    assert found.train.notes == ("trained on its only split, test",)


def test_without_a_split_to_train_on_those_there_are_are_named(tmp_path):
    reference = hub_set(tmp_path / "set", test=declared(), validation=declared())
    message = refusal(find_hub, reference)
    assert message.startswith(f"{reference}: it has no split train; its splits are ")
    assert {"test", "validation"} <= set(message.replace(",", "").split())


def test_a_configuration_is_named_after_a_colon(tmp_path):
    for config, images in (("large", IMAGES), ("small", IMAGES[:4])):
        hub_set(tmp_path / "set" / config, told=False, train=table(images))
    card = "configs:\n- config_name: large\n  data_files: large/data/*\n"
    card += "- config_name: small\n  data_files: small/data/*\n"
    (tmp_path / "set" / "README.md").write_text(f"---\n{card}---\n")
    reference = str(tmp_path / "set")
    assert contents(find_hub(f"{reference}:small").train) == IMAGES[:4]
    assert len(find_hub(f"{reference}:large").train) == 100
    message = refusal(find_hub, reference)
    assert "['large', 'small']" in message
    assert "hf:NAME:CONFIG" in message
    assert "['large', 'small']" in refusal(find_hub, f"{reference}:none")


def test_columns_without_images_are_named(tmp_path):
    reference = hub_set(tmp_path / "set", train=pa.table({"text": ["a", "b"]}))
    assert f"{reference} train: which column holds the images?" in refusal(find_hub, reference)


def test_labels_are_checked(tmp_path):
    reference = hub_set(tmp_path / "set", train=table(label=[0] * 60 + [-3] * 40))
    assert f"{reference} train, row 60: the label is -3" in refusal(find_hub, reference)
    unknown = hub_set(tmp_path / "unknown", train=table(label=[-1] * 100))
    assert find_hub(unknown).train.labels is None


# Streamed


@pytest.fixture
def stream(tmp_path) -> HubStream:
    return find_hub(hub_set(tmp_path / "set", train=declared()), streaming=True).train


def test_a_stream_gives_the_same_images(stream, own_cache, capfd):
    assert (len(stream), stream.sequential, stream.streams_labels) == (100, True, True)
    assert (stream.labels, stream.class_names) == (None, CLASSES)
    assert contents(stream) == IMAGES
    assert [item.place for item in stream.read(7, 8)] == [f"{stream.name}, row 7"]
    assert not list(own_cache.rglob("*.arrow"))
    assert capfd.readouterr() == ("", "")


def test_any_range_of_a_stream_is_exact(stream):
    for start, stop in [(0, 7), (7, 50), (50, 51), (3, 40), (51, 100), (95, 100), (0, 100), (9, 9)]:
        assert contents(stream, start, stop) == IMAGES[start:stop]


def test_labels_travel_with_streamed_images(stream):
    pairs = list(stream.read_labelled(40, 75))
    assert [item.content for item, _ in pairs] == IMAGES[40:75]
    assert [label for _, label in pairs] == LABELS[40:75]


def test_a_stream_without_labels(tmp_path):
    train = find_hub(hub_set(tmp_path / "set", train=table()), streaming=True).train
    assert not train.streams_labels
    assert [label for _, label in train.read_labelled(0, 3)] == [None] * 3


def test_a_stream_goes_on_where_it_stopped(stream, monkeypatch):
    begun = []
    streamed = hub._streamed
    monkeypatch.setattr(hub, "_streamed", lambda *given: begun.append(1) or streamed(*given))
    for start in range(0, 100, 10):
        assert contents(stream, start, start + 10) == IMAGES[start : start + 10]
    assert len(begun) == 1
    contents(stream, 20, 30)
    contents(stream, 30, 40)
    assert len(begun) == 2


def test_a_stream_given_up_halfway_is_not_gone_on_with(stream):
    given_up = stream.read(0, 50)
    assert [next(given_up).content for _ in range(3)] == IMAGES[:3]
    assert contents(stream, 3, 6) == IMAGES[3:6]
    assert next(given_up).content == IMAGES[3]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None, *LABELS[3:]], "row 2: the label is missing"),
        ([0, 1, -2, *LABELS[3:]], "row 2: the label is -2, but must be 0 … 2"),
        ([0, 1, 3, *LABELS[3:]], "row 2: the label is 3, but must be 0 … 2"),
    ],
)
def test_labels_of_a_stream_are_checked_as_they_come(tmp_path, labels, message):
    content = declared(IMAGES, pa.array(labels, pa.int64()))
    train = find_hub(hub_set(tmp_path / "set", train=content), streaming=True).train
    assert message in refusal(contents, train)


def test_an_unknown_label_of_a_stream_is_none(tmp_path):
    content = declared(labels=[-1] * 100)
    train = find_hub(hub_set(tmp_path / "set", train=content), streaming=True).train
    assert [label for _, label in train.read_labelled(0, 100)] == [None] * 100


def test_a_stream_of_unknown_length_is_refused(tmp_path):
    reference = hub_set(tmp_path / "set", told=False, train=declared())
    message = refusal(find_hub, reference, True)
    assert message.startswith(f"{reference} train: the hub does not say how many images there are")
    assert "without --data.streaming" in message


def test_a_stream_that_ends_before_it_should_says_so(tmp_path):
    reference = hub_set(tmp_path / "set", train=declared())
    card = tmp_path / "set" / "README.md"
    card.write_text(card.read_text().replace("100", "120"))
    train = find_hub(reference, streaming=True).train
    assert contents(train, 0, 100) == IMAGES
    assert "ends after 100 images where 120 are promised" in refusal(contents, train, 90, 110)


def test_files_that_go_away_while_they_are_streamed(stream, tmp_path):
    for file in (tmp_path / "set" / "data").iterdir():
        file.unlink()
    assert "row 0: it does not come from the hub" in refusal(contents, stream)


def test_a_pickled_stream_begins_anew(stream):
    contents(stream, 0, 5)
    copy = pickle.loads(pickle.dumps(stream))
    assert contents(copy, 5, 100) == IMAGES[5:]
    assert copy.identity() == stream.identity()


def test_a_stream_left_open_is_silent_at_exit(tmp_path):
    reference = hub_set(tmp_path / "set", train=declared())
    code = (
        "import sys; from inkdrop.data.stored.hub import find_hub; "
        "train = find_hub(sys.argv[1], True).train; "
        "given_up = train.read(0, 9); next(given_up); del given_up; "
        "assert len(list(train.read(0, 5))) == 5"
    )
    done = subprocess.run([sys.executable, "-c", code, reference], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The network


@pytest.mark.parametrize("streaming", [False, True])
def test_without_a_network_one_line_comes_soon_and_says_what_to_do(
    own_cache, monkeypatch, capfd, streaming
):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nothing is there
    start = time.monotonic()
    message = refusal(find_hub, "ylecun/mnist", streaming)
    assert time.monotonic() - start < 15
    assert message.startswith("cannot fetch the data set 'ylecun/mnist' from the hub: the")
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
