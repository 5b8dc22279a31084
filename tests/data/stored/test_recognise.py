"""What a path holds is seen by looking at it, and what is not one thing is refused."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from inkdrop.data.stored.arrays import Points
from inkdrop.data.stored.collection import Found
from inkdrop.data.stored.recognise import recognise
from inkdrop.errors import InkdropError


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, "PNG")
    return file.getvalue()


PNG = png()


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "0.PNG").write_bytes(PNG)
    return path


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", PNG)
    return path


def tar(path: Path, *extensions: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for i in range(3):
            for extension in ("png", *extensions):
                content = PNG if extension == "png" else b"1"
                member = tarfile.TarInfo(f"{i}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def shards(path: Path) -> Path:
    return tar(path, "cls")


def parquet(path: Path) -> Path:
    pq.write_table(pa.table({"image": [{"bytes": PNG, "path": None}]}), path)
    return path


def idx(path: Path) -> Path:
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 1, 2, 2) + bytes(4), mtime=0))
    return path


def npy(path: Path) -> Path:
    np.save(path, np.zeros((3, 8, 8), np.uint8))
    return path


def npz(path: Path) -> Path:
    np.savez(path, images=np.zeros((3, 8, 8), np.uint8))
    return path


def cifar(path: Path) -> Path:
    path.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
        (path / name).write_bytes(pickle.dumps(batch, protocol=2))
    return path


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (folder, "photos", "a folder of images"),
        (zipped, "photos.zip", "a zip of images"),
        (tar, "photos.tar", "a tar of images"),
        (shards, "0000.tar", "WebDataset shards"),
        (parquet, "photos.parquet", "Parquet"),
        (parquet, "without-extension", "Parquet"),
        (idx, "train-images-idx3-ubyte.gz", "IDX"),
        (npy, "photos.npy", ".npy"),
        (npz, "photos.NPZ", ".npz"),
        (cifar, "cifar-10-batches-py", "CIFAR-10"),
    ],
)
def test_images_are_recognised(
    tmp_path: Path, make: Callable[[Path], Path], name: str, kind: str
) -> None:
    path = tmp_path / name
    made = make(tmp_path / "made.npz").rename(path) if make is npz else make(path)
    found = recognise([made])
    assert isinstance(found, Found)
    assert kind in found.train.kind
    assert found.description.startswith(f"{found.train.name}: {found.train.kind}, ")


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.txt", "a.dat", "a.npy"])
def test_points_are_recognised(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, np.array([[0.5, 1], [2, 3]]))
    else:
        separator = "\t" if name.endswith("TSV") else ","
        path.write_text(f"0.5{separator}1\n2{separator}3\n")
    found = recognise([path])
    assert isinstance(found, Points)
    assert found.values.tolist() == [[0.5, 1], [2, 3]]


def test_several_of_one_kind_are_one_set(tmp_path: Path) -> None:
    for name, make in (("a", folder), ("b.zip", zipped)):
        make(tmp_path / name)
    found = recognise([tmp_path / "a", tmp_path / "b.zip"])
    assert isinstance(found, Found)
    assert len(found.train) == 2


def test_a_folder_of_images_may_have_a_table_beside_them(tmp_path: Path) -> None:
    parquet(folder(tmp_path / "photos") / "metadata.parquet")
    found = recognise([tmp_path / "photos"])
    assert isinstance(found, Found)
    assert found.train.kind == "a folder of images"
    assert any("metadata.parquet" in note for note in found.train.notes)


def refusal(*paths: Path) -> str:
    with pytest.raises(InkdropError) as error:
        recognise(paths)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_not_there_is_named_with_what_there_could_be(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert f"no such file or folder: {tmp_path / 'nowhere'}; --data takes a folder" in message


def test_a_path_that_the_system_will_not_take_is_refused() -> None:
    assert "cannot read" in refusal(Path("x" * 5000))
    assert "cannot read" in refusal(Path("null\0")) or "no such file" in refusal(Path("null\0"))


def test_nothing_to_be_found_is_said_with_what_there_could_be(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("to do")
    for name in ("empty", "notes.md"):
        assert f"{tmp_path / name}: no images" in refusal(tmp_path / name)


def test_files_of_two_kinds_are_refused_and_both_are_named(tmp_path: Path) -> None:
    npy(tmp_path / "a.npy")
    parquet(tmp_path / "b.parquet")
    idx(tmp_path / "train-images-idx3-ubyte.gz")
    (tmp_path / "c.csv").write_text("1,2\n")
    a, b, c = tmp_path / "a.npy", tmp_path / "b.parquet", tmp_path / "c.csv"
    assert f"{b} is Parquet, but {a} is not" in refusal(a, b)
    assert "IDX files" in refusal(tmp_path / "train-images-idx3-ubyte.gz", b)
    assert ".csv and .npy files are read one at a time" in refusal(a, c)
    assert ".npy files are read one at a time" in refusal(a, folder(tmp_path / "photos"))


def test_idx_and_parquet_in_one_folder_are_refused(tmp_path: Path) -> None:
    idx(tmp_path / "train-images-idx3-ubyte.gz")
    parquet(tmp_path / "b.parquet")
    assert "give the files of one kind" in refusal(tmp_path)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    assert "Python objects" in refusal(tmp_path / "a.npy")
