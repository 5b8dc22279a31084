"""Decoded images are built once, are the right ones, and stay whole."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from io import StringIO
from pathlib import Path

import filelock
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from stored_images import Encoded, Killed, WithoutTorch, encoded

from inkdrop.data import cache, mapped
from inkdrop.data.cache import cache_entries, cached_images, clear_cache
from inkdrop.data.decode import decode
from inkdrop.data.images import ImageSet
from inkdrop.data.mapped import MappedImages, MappedRows
from inkdrop.data.stored.collection import Arrays, Item
from inkdrop.data.transform import Transform
from inkdrop.errors import InkdropError

TRANSFORM = Transform(5, 6, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def files(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 12, (count, 2)).tolist()
    return [
        encoded(Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))) for h, w in sizes
    ]


def collection(count: int = 20, labelled: bool = True, **fields: object) -> Encoded:
    found = Encoded(files(count), [i % 3 for i in range(count)] if labelled else None)
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def directly(found: Encoded, transform: Transform = TRANSFORM) -> torch.Tensor:
    return torch.from_numpy(
        np.stack([transform(decode(item)) for item in found.read(0, len(found))])
    )


def entry(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if path.is_dir()]
    return found


def heard(run) -> str:
    text = StringIO()
    run(Console(file=text, width=500))
    return text.getvalue()


# The right images


@pytest.mark.parametrize("labelled", [True, False])
def test_images_are_what_decoding_gives(labelled):
    found = collection(labelled=labelled)
    images = cached_images(found, "c", TRANSFORM)
    expected = ImageSet(
        directly(found),
        None if found.labels is None else torch.from_numpy(found.labels),
        "files",
    )
    assert torch.equal(images.values, expected.images)
    assert images.fingerprint == expected.fingerprint
    assert (images.shape, images.size, len(images)) == (expected.shape, expected.size, 20)
    assert (images.name, images.noun, images.in_memory) == ("files", "image", False)
    assert images.classes == expected.classes
    if labelled:
        assert torch.equal(images.labels, expected.labels)
    else:
        assert images.labels is None


def test_processes_give_the_same_images():
    found = collection(700, block=50)
    skip = frozenset({0, 99, 100, 350, 699})
    images = cached_images(found, "c", TRANSFORM, skip, workers=2)
    kept = [i for i in range(700) if i not in skip]
    assert torch.equal(images.values, directly(found)[kept])
    assert images.labels.tolist() == [i % 3 for i in kept]


@pytest.mark.parametrize("workers", [1, 2])
def test_places_of_random_crops_do_not_depend_on_who_draws_them(workers):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 5, 9), dtype=np.uint8)
    found = Arrays(pixels, None, "arrays", "an array")
    images = cached_images(found, "c", Transform(5, 5, 1, "random-crop"), workers=workers)
    again = cached_images(found, "d", Transform(5, 5, 1, "random-crop"), frozenset({3}))
    assert torch.equal(again.values, images.values[[i for i in range(600) if i != 3]])
    lefts = {
        next(x for x in range(5) if np.array_equal(image[0], whole[:, x : x + 5]))
        for image, whole in zip(images.values.numpy(), pixels, strict=True)
    }
    assert lefts == {0, 1, 2, 3, 4}


def test_a_collection_that_is_read_from_its_beginning_is_read_once():
    found = collection(600, sequential=True)
    starts = []
    read = found.read
    found.read = lambda start, stop: starts.append((start, stop)) or read(start, stop)
    images = cached_images(found, "c", TRANSFORM, workers=2)
    assert starts == [(0, 600)]
    assert torch.equal(images.values, directly(found))


def test_class_names_say_how_many_classes_there_are():
    images = cached_images(collection(class_names=("a", "b", "c", "d")), "c", TRANSFORM)
    assert images.classes == images.take([0, 1]).classes == 4


def test_workers_do_not_import_torch():
    images = cached_images(WithoutTorch([b""] * 600, None), "c", Transform(1, 2, 1), workers=2)
    with_torch, process = images.values[:, 0, 0].T
    assert (with_torch == 0).all()
    assert os.getpid() % 251 not in process


# Once


def test_the_second_call_builds_nothing(folder):
    cached_images(collection(), "c", TRANSFORM)
    before = (entry(folder) / "images.bin").stat()
    moved = collection(name="renamed")
    moved.read = None
    images = cached_images(moved, "c", TRANSFORM)
    after = (entry(folder) / "images.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert images.name == "renamed"


def test_other_content_settings_or_left_out_images_are_other_entries(folder):
    cached_images(collection(), "c", TRANSFORM)
    cached_images(collection(), "d", TRANSFORM)
    cached_images(collection(), "c", Transform(5, 6, 1))
    cached_images(collection(), "c", TRANSFORM, frozenset({1}))
    cached_images(collection(), "c", TRANSFORM, frozenset({2}))
    assert len(cache_entries()) == 5


SCRIPT = """
    import sys
    import numpy as np
    from rich.console import Console
    from inkdrop.data.cache import cached_images
    from inkdrop.data.stored.collection import Arrays
    from inkdrop.data.transform import Transform

    pixels = np.random.default_rng(0).integers(0, 256, (600, 9, 9), dtype=np.uint8)
    images = cached_images(
        Arrays(pixels, None, "arrays", "an array"), "c", Transform(8, 8, 1),
        console=Console(file=sys.stdout, width=500), workers=2,
    )
    print(images.fingerprint)
"""


def test_two_processes_at_once_build_once_and_need_no_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    both = [
        subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [errors for _, errors in outputs] == ["", ""]
    assert "".join(text for text, _ in outputs).count("decoding 600 images of arrays") == 1
    fingerprints = {text.split()[-1] for text, _ in outputs}
    assert len(fingerprints) == 1
    assert len(fingerprints.pop()) == 64


def test_waiting_for_another_process_is_told(folder, monkeypatch):
    monkeypatch.setattr(cache, "_PATIENCE", 0.01)
    cached_images(collection(), "c", TRANSFORM)
    found = entry(folder)
    (found / "cache.json").unlink()
    held = threading.Event()

    def hold() -> None:
        with filelock.FileLock(folder / f"{found.name}.lock"):
            held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    text = heard(lambda console: cached_images(collection(), "c", TRANSFORM, console=console))
    other.join()
    assert "waiting for another process, which is decoding the same images" in text


# Whole


def test_what_a_killed_process_left_is_built_anew(folder):
    cached_images(collection(), "c", TRANSFORM)
    done = entry(folder)
    left = done.with_name(done.name + ".building")
    done.rename(left)
    (left / "cache.json").unlink()
    assert [found.name for found in cache_entries()] == ["unfinished"]
    images = cached_images(collection(), "c", TRANSFORM)
    assert torch.equal(images.values, directly(collection()))
    assert entry(folder) == done


@pytest.mark.parametrize("file", ["images.bin", "labels.npy", "cache.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "nonsense"])
def test_damaged_files_are_built_anew(folder, file, damage):
    whole = cached_images(collection(), "c", TRANSFORM).fingerprint
    path = entry(folder) / file
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-9] if damage == "cut" else b"nonsense")
    text = heard(lambda console: cached_images(collection(), "c", TRANSFORM, console=console))
    assert f"the cache of files is damaged ({file}" in text
    images = cached_images(collection(), "c", TRANSFORM)
    assert images.fingerprint == whole
    assert torch.equal(images.values, directly(collection()))


def test_facts_of_other_images_are_not_believed(folder):
    cached_images(collection(), "c", TRANSFORM)
    path = entry(folder) / "cache.json"
    for changes in ({"count": 19}, {"shape": [1, 5, 18]}, {"fingerprint": 1}):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(facts | changes))
        text = heard(lambda console: cached_images(collection(), "c", TRANSFORM, console=console))
        assert "is of other images" in text


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_cannot_be_decoded_is_named_and_nothing_is_left(folder, workers):
    found = collection(600)
    found.files[577] = found.files[577][:50]
    with pytest.raises(InkdropError) as caught:
        cached_images(found, "c", TRANSFORM, workers=workers)
    assert str(caught.value).startswith("files/577.png: cut off; it could be read when")
    assert cache_entries() == []
    assert len(cached_images(found, "c", TRANSFORM, frozenset({577}), workers=workers)) == 599


def test_a_killed_worker_is_told_in_one_line():
    with pytest.raises(InkdropError, match="files: a process that decodes images was killed"):
        cached_images(Killed(files(600), None), "c", TRANSFORM, workers=2)
    assert cache_entries() == []


def test_a_full_disk_is_told_before_anything_is_written(folder, monkeypatch):
    usage = type("usage", (), {"free": 20 * 90 - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(InkdropError, match=r"no room in .*files take 0.00 GB; free some") as caught:
        cached_images(collection(), "c", TRANSFORM)
    assert str(folder) in str(caught.value)
    assert cache_entries() == []


def test_a_disk_that_fills_up_leaves_nothing(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_part", full)
    with pytest.raises(InkdropError, match="no room in"):
        cached_images(collection(), "c", TRANSFORM)
    assert cache_entries() == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "file"))
    with pytest.raises(InkdropError, match=r"cannot keep decoded images in .*set INKDROP_CACHE"):
        cached_images(collection(), "c", TRANSFORM)


def test_no_images_at_all_are_told():
    with pytest.raises(InkdropError, match="files: no images to decode"):
        cached_images(collection(2), "c", TRANSFORM, frozenset({0, 1}))


# Clearing


def test_entries_are_listed_and_cleared(folder):
    assert (cache_entries(), clear_cache()) == ([], 0)
    cached_images(collection(name="first"), "c", TRANSFORM)
    os.utime(entry(folder), (1000, 1000))
    kept = cached_images(collection(name="second"), "d", TRANSFORM)
    assert [found.name for found in cache_entries()] == ["first", "second"]
    assert cache_entries()[0].last_used == 1000
    os.utime(cache_entries()[1].path, (2000, 2000))
    assert all(found.bytes > 20 * 90 for found in cache_entries())
    cached_images(collection(name="first"), "c", TRANSFORM)
    assert [found.name for found in cache_entries()] == ["second", "first"]
    if os.name != "nt":  # where open files cannot be removed
        assert clear_cache() > 2 * 20 * 90
        assert cache_entries() == []
        assert torch.equal(kept.values, directly(collection()))


def test_what_a_process_is_building_is_not_cleared(folder):
    cached_images(collection(), "c", TRANSFORM)
    with filelock.FileLock(folder / f"{entry(folder).name}.lock"):
        assert clear_cache() == 0
    assert len(cache_entries()) == 1


# Mapped images


@given(st.data())
def test_taken_images_are_those_of_a_set_in_memory(tmp_path_factory, data):
    pixels = torch.arange(40 * 12).reshape(40, 3, 2, 2).to(torch.uint8)
    labels = torch.arange(40) % 7
    path = tmp_path_factory.getbasetemp() / "rows.bin"
    if not path.exists():
        path.write_bytes(pixels.numpy().tobytes())
    expected = ImageSet(pixels, labels, "rows")
    found = MappedImages(
        MappedRows(path, (3, 2, 2)), (3, 2, 2), labels, "rows", expected.fingerprint
    )
    for _ in range(3):
        index = data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=50))
        assert torch.equal(found.at(index), expected.at(index))
        assert torch.equal(found.labels_at(index), expected.labels_at(index))
        found, expected = found.take(index), expected.take(torch.tensor(index))
        assert found.fingerprint == expected.fingerprint
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("preadv", sorted({mapped._HAS_PREADV, False}))
def test_rows_are_read_at_once_by_many_threads(monkeypatch, preadv):
    monkeypatch.setattr(mapped, "_HAS_PREADV", preadv)
    monkeypatch.setattr(mapped, "_AT_ONCE", 100)
    found = collection()
    images, expected = cached_images(found, "c", TRANSFORM), directly(found)
    wrong = []

    def read(seed: int) -> None:
        order = torch.randint(20, (2000,), generator=torch.Generator().manual_seed(seed))
        wrong.append(not torch.equal(images.at(order), expected[order]))
        wrong.append(not torch.equal(images.values, expected))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 8


def test_memory_does_not_grow_with_what_is_read(tmp_path):
    count = 3000
    with open(tmp_path / "rows.bin", "wb") as file:
        file.truncate(count * 30_000)  # 90 MB
    rows = MappedRows(tmp_path / "rows.bin", (3, 100, 100))
    rows.gathered(np.arange(100))
    before = psutil.Process().memory_info().rss
    for start in range(0, count, 100):
        rows.gathered((np.arange(start, start + 100) * 7) % count)
    assert psutil.Process().memory_info().rss - before < 20_000_000


def test_a_file_that_was_cut_short_is_told(tmp_path):
    path = tmp_path / "rows.bin"
    path.write_bytes(bytes(100))
    rows = MappedRows(path, (10,))
    os.truncate(path, 55)
    assert rows.gathered(np.array([1, 4])).shape == (2, 10)
    for index in (5, 9):
        with pytest.raises(InkdropError, match="has been cut short"):
            rows.gathered(np.array([index]))


@pytest.mark.parametrize("index", [-1, 20])
def test_a_row_that_is_not_there_is_an_error(index):
    with pytest.raises(IndexError, match="rows 0 … 19"):
        cached_images(collection(), "c", TRANSFORM).at([0, index])


def test_mapped_images_pickle_as_where_they_lie():
    import pickle

    images = cached_images(collection(), "c", TRANSFORM).take([3, 1])
    content = pickle.dumps(images)
    again = pickle.loads(content)
    assert torch.equal(again.values, images.values)
    assert again.fingerprint == images.fingerprint


def test_items_that_are_left_out_need_not_be_readable():
    found = collection()
    found.files[4] = b""
    images = cached_images(found, "c", TRANSFORM, frozenset({4}))
    assert torch.equal(
        images.at([4])[0], torch.from_numpy(TRANSFORM(decode(Item("", found.files[5]))))
    )
