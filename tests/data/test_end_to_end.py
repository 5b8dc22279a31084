"""What is written to a folder, an archive, Parquet or an array is what comes back to train on."""

import io
import json
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stored_images import encoded

from inkdrop.config import DataConfig
from inkdrop.data.loading import Loaded, load_source
from inkdrop.errors import InkdropError

CLASSES = ("ants", "bees", "cats")
CHANNELS = {"1": 1, "L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 1}
MODES = {  # that each format keeps as they are
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("1", "L", "P"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
}
OPTIONS = {"WEBP": {"lossless": True, "exact": True}}
BAD = (b"", b"\x89PNG\r\n\x1a\n", b"no image at all", encoded(Image.new("RGB", (9, 9)))[:-30])


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INKDROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# What is stored, and what it should come back as


@dataclass(frozen=True)
class Picture:
    """An encoded image.

    Attributes:
        content: the file; its ending is that of the format.
        ending: such as "png".
        label: which of CLASSES.
        shown: its pixels, grey (H, W, 1 or 2) or colour (H, W, 3 or 4), the last for opacity; None
            for one that cannot be read.
    """

    content: bytes
    ending: str
    label: int
    shown: np.ndarray | None


def picture(mode: str, form: str, size: tuple[int, int], label: int, seed: int) -> Picture:
    draws = np.random.default_rng(seed)
    width, height = size
    stored = draws.integers(0, 256, (height, width, CHANNELS[mode]), np.uint8)
    if seed % 3 == 0 and mode in ("RGB", "RGBA"):
        stored[..., 1:3] = stored[..., :1]  # grey, though stored as colour
    if mode == "I;16":
        levels = draws.integers(0, 65536, (height, width), np.uint16)
        image, shown = Image.fromarray(levels), np.rint(levels[..., None] / 257).astype(np.uint8)
    elif mode == "1":
        shown = (stored > 99).astype(np.uint8) * 255
        image = Image.fromarray(shown[..., 0]).convert("1", dither=Image.Dither.NONE)
    elif mode == "P":
        palette = draws.integers(0, 256, (256, 3), np.uint8)
        image, shown = Image.fromarray(stored[..., 0]), palette[stored[..., 0]]
        image.putpalette(palette.tobytes())
    else:
        image = Image.frombytes(mode, size, stored.tobytes())
        shown = from_ink(stored) if mode == "CMYK" else stored
    content = encoded(image, form, **OPTIONS.get(form, {}))
    if form == "JPEG":
        lossy = np.asarray(Image.open(io.BytesIO(content))).reshape(height, width, -1)
        shown = from_ink(lossy) if mode == "CMYK" else lossy
    return Picture(content, form.lower(), label, shown)


def from_ink(cmyk: np.ndarray) -> np.ndarray:
    """What is left of the light after the ink of a colour and then the black."""
    ink, black = cmyk[..., :3].astype(int), 255 - cmyk[..., 3:].astype(int)
    return np.clip(black - np.rint(ink * black / 255), 0, 255).astype(np.uint8)


def is_coloured(shown: np.ndarray) -> bool:
    if shown.shape[2] < 3:
        return False
    seen = shown[shown[..., 3] > 0] if shown.shape[2] == 4 else shown
    return bool((seen[..., :1] != seen[..., 1:3]).any())


def reference(
    shown: np.ndarray, channels: int, background: tuple[int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """The pixels (C, H, W) that an image is to become, stretched where it has another size."""
    opacity = shown[..., -1:] if shown.shape[2] in (2, 4) else None
    colour = shown[..., : shown.shape[2] - (opacity is not None)]
    wide = np.broadcast_to(colour, (*shown.shape[:2], 3)).astype(int)
    if channels == 4:
        alpha = np.full_like(shown[..., :1], 255) if opacity is None else opacity
        wide = np.concatenate([wide, alpha], axis=2)
    elif opacity is not None:
        wide = np.rint((wide * opacity + np.array(background) * (255 - opacity)) / 255).astype(int)
    if channels == 1:  # ITU-R BT.601, in 65536ths
        wide = (wide @ np.array([19595, 38470, 7471]) + 32768) >> 16
    pixels = wide.astype(np.uint8)
    if pixels.shape[:2] != size:
        resized = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS)
        pixels = np.asarray(resized)
    return pixels.reshape(*size, channels).transpose(2, 0, 1)


def named(pictures: list[Picture]) -> dict[str, Picture]:
    """By names of which the natural order is that of the classes and then their own."""
    files = [f"{CLASSES[one.label]}/{i}.{one.ending}" for i, one in enumerate(pictures)]
    by_name = dict(zip(files, pictures, strict=True))
    return dict(sorted(by_name.items(), key=lambda file: file[1].label))


def classes_of(pictures: list[Picture]) -> list[int]:
    """The classes that there are: those of one class only have no labels."""
    found = sorted({one.label for one in pictures})
    return found if len(found) > 1 else []


# What it is stored in


def to_folder(place: Path, files: dict[str, Picture]) -> Path:
    for name, one in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(one.content)
    return place


def to_zip(place: Path, files: dict[str, Picture]) -> Path:
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, one in files.items():
            archive.writestr(name, one.content)
    return place


def to_tar(place: Path, files: dict[str, Picture], mode: str = "w") -> Path:
    with tarfile.open(place, mode) as archive:
        for name, one in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(one.content)
            archive.addfile(member, io.BytesIO(one.content))
    return place


def to_parquet(place: Path, files: dict[str, Picture]) -> Path:
    rows = [{"bytes": one.content, "path": name} for name, one in files.items()]
    classes = classes_of(list(files.values()))
    columns: dict[str, object] = {"image": rows}
    if classes:
        columns["label"] = [classes.index(one.label) for one in files.values()]
    label = {"_type": "ClassLabel", "names": [CLASSES[label] for label in classes]}
    features = {"image": {"_type": "Image"}, "label": label}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(note), place, row_group_size=3)
    return place


CONTAINERS = {
    "folder": to_folder,
    "zip": to_zip,
    "tar": to_tar,
    "tar.gz": partial(to_tar, mode="w:gz"),
    "parquet": to_parquet,
}


def load(path: Path, **options: object) -> Loaded:
    return load_source(DataConfig(source="files", path=(str(path),), workers=1, **options))


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InkdropError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@st.composite
def sets(draw: st.DrawFn) -> tuple[list[Picture], tuple[int, int] | None]:
    """Images of any mode and format, and the (height, width) of all, where they have one."""
    sides = st.integers(1, 40)
    size = draw(st.none() | st.tuples(sides, sides))
    made = []
    for _ in range(draw(st.integers(1, 6))):
        form = draw(st.sampled_from(sorted(MODES)))
        mode = draw(st.sampled_from(MODES[form]))
        own = draw(st.tuples(sides, sides)) if size is None else size[::-1]
        label, seed = draw(st.integers(0, 2)), draw(st.integers(0, 2**16))
        made.append(picture(mode, form, own, label, seed))
    return made, size


@settings(max_examples=150)
@given(
    drawn=sets(),
    bad=st.dictionaries(st.integers(0, 5), st.sampled_from(BAD), max_size=2),
    container=st.sampled_from(sorted(CONTAINERS)),
    channels=st.sampled_from([None, 1, 3, 4]),
    wanted=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    way=st.sampled_from([{}, {"memory": "mapped"}, {"streaming": True}]),
    background=st.sampled_from([(255, 255, 255), (0, 0, 0), (10, 200, 99)]),
)
def test_images_come_back_as_they_were_stored(
    drawn, bad, container, channels, wanted, way, background
):
    pictures, size = drawn
    for i, content in bad.items():
        if i < len(pictures):
            pictures[i] = Picture(content, "png", pictures[i].label, None)
    files = named(pictures)
    good = [one for one in files.values() if one.shown is not None]
    options = {"channels": channels, "background": ",".join(map(str, background)), **way}
    if size is None:
        options |= {"size": wanted, "fit": "stretch"}
    with tempfile.TemporaryDirectory() as folder:
        path = CONTAINERS[container](Path(folder) / "data", files)
        if len(good) < len(files):
            first = next(i for i, one in enumerate(files.values()) if one.shown is None)
            place = f"data, row {first}" if container == "parquet" else list(files)[first]
            assert f"first: {place}: " in refusal(path, **options)
        if not good:
            assert "not one of" in refusal(path, bad_images="skip", **options)
            return
        train = load(path, bad_images="skip", **options).source.train
        height, width = wanted if size is None else size
        made = channels or (3 if any(is_coloured(one.shown) for one in good) else 1)
        expected = [reference(one.shown, made, background, (height, width)) for one in good]
        assert np.array_equal(train.values.numpy(), np.stack(expected))
        classes = classes_of(pictures)
        if classes:
            assert train.labels.tolist() == [classes.index(one.label) for one in good]
            assert train.classes == len(classes)
        else:
            assert train.labels is None
        del train


@given(
    count=st.integers(1, 5),
    sides=st.tuples(st.integers(5, 40), st.integers(5, 40)),
    colours=st.sampled_from([(), (1,), (3,), (4,)]),
    deep=st.booleans(),
    order=st.sampled_from("CF"),
    seed=st.integers(0, 99),
    way=st.sampled_from([{}, {"memory": "mapped"}, {"streaming": True}]),
)
def test_arrays_come_back_as_they_were_stored(count, sides, colours, deep, order, seed, way):
    draws = np.random.default_rng(seed)
    top = 65536 if deep else 256
    array = draws.integers(0, top, (count, *sides, *colours), np.uint16 if deep else np.uint8)
    shown = (np.rint(array / 257).astype(np.uint8) if deep else array).reshape(count, *sides, -1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "array.npy"
        np.save(path, np.asarray(array, order=order))
        train = load(path, size=sides, background="0,0,0", **way).source.train
        made = 3 if any(map(is_coloured, shown)) else 1
        expected = [reference(one, made, (0, 0, 0), sides) for one in shown]
        assert np.array_equal(train.values.numpy(), np.stack(expected))
        assert train.labels is None
        del train


def test_the_same_images_have_the_same_fingerprint_wherever_they_lie(tmp_path):
    pictures = [
        picture(mode, form, (7, 5), i % 3, i)
        for i, (form, modes) in enumerate(MODES.items())
        for mode in modes
    ]
    files = named([*pictures, Picture(b"", "png", 1, None)])
    ways = {
        "memory": [{}, {"memory": "mapped"}, {"memory": "resident"}],
        "streaming": [{"streaming": True}, {"streaming": True, "window": 8}],
    }
    pixels, labels, fingerprints = set(), set(), {"memory": set(), "streaming": set()}
    for container, write in CONTAINERS.items():
        path = write(tmp_path / f"from-{container.replace('.', '-')}", files)
        for kind, options in ((kind, one) for kind, some in ways.items() for one in some):
            train = load(path, bad_images="skip", **options).source.train
            assert len(train) == len(pictures)
            pixels.add(train.values.numpy().tobytes())
            labels.add(tuple(train.labels.tolist()))
            fingerprints[kind].add(train.fingerprint)
    assert len(pixels) == len(labels) == 1
    assert [len(found) for found in fingerprints.values()] == [1, 1]

    pictures[0] = picture("1", "PNG", (7, 5), 0, 99)
    other = load(to_zip(tmp_path / "other", named(pictures)), bad_images="skip").source.train
    assert other.fingerprint not in fingerprints["memory"]


# What must not be opened


def tarred(path: Path, **fields: object) -> Path:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.png")
        for name, value in fields.items():
            setattr(member, name, value)
        archive.addfile(member)
    return path


def zipped(path: Path, name: str, content: bytes = b"x", mode: int = stat.S_IFREG) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo("placeholder")
        member.filename, member.external_attr = name, mode << 16
        archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../a.png", "leads out of it"),
        ("b/../../a.png", "leads out of it"),
        ("..\\a.png", "leads out of it"),
        ("/etc/a.png", "absolute path"),
        ("\\\\host\\a.png", "absolute path"),
        ("C:/a.png", "drive letter"),
    ],
)
def test_members_that_lead_out_of_an_archive_are_refused(tmp_path, name, fault):
    for path in (zipped(tmp_path / "a.zip", name), tarred(tmp_path / "a.tar", name=name)):
        message = refusal(path, bad_images="skip")
        assert message.startswith(f"{path} is refused, for its member {name}")
        assert fault in message


def test_links_and_devices_in_an_archive_are_refused(tmp_path):
    link = zipped(tmp_path / "a.zip", "a.png", b"/etc/passwd", stat.S_IFLNK)
    assert "a.png is a link" in refusal(link)
    for kind, fault in (
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.CHRTYPE, "is no regular file"),
        (tarfile.FIFOTYPE, "is no regular file"),
    ):
        path = tarred(tmp_path / "a.tar", type=kind, linkname="/etc/passwd")
        assert f"a.png {fault}" in refusal(path)


def test_bombs_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", "a.png", bytes(64 << 20))
    assert "as a zip bomb does" in refusal(path)
    size = struct.pack(">2I", 60_000, 60_000) + b"\x08\x00\x00\x00\x00"
    (tmp_path / "images").mkdir()
    small, header = encoded(Image.new("L", (1, 1))), b"IHDR" + size
    check = struct.pack(">I", zlib.crc32(header))
    (tmp_path / "images" / "a.png").write_bytes(small[:12] + header + check + small[33:])
    assert "a.png: more than Pillow's limit" in refusal(tmp_path / "images")


def test_arrays_of_objects_are_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(ran),)

    objects = np.array([Runs(), Runs()], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=objects)
    for name in ("a.npy", "a.npz"):
        assert "an array of Python objects, which could run code" in refusal(tmp_path / name)
    assert not ran.exists()


# Real data


def test_all_of_mnist(data_dir):
    loaded = load(data_dir / "mnist")
    train, test = loaded.source.train, loaded.source.test
    assert (len(train), len(test), train.shape) == (60_000, 10_000, (1, 28, 28))
    counts = torch.bincount(train.labels).tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert loaded.check.train.classes == tuple(counts)
    pixels = train.values.numpy() / np.float32(255)
    assert round(float(pixels.mean(dtype=np.float64)), 5) == 0.13066
    assert round(float(pixels.std(dtype=np.float64)), 5) == 0.30811
    known = loaded.check.train.statistics()
    assert round(known.mean[0], 5) == 0.13066
    assert round(known.std[0], 5) == 0.30811
    assert loaded.check.bad == []
    assert (train.at([0]).sum(), int(train.labels[0])) == (27_525, 5)


def test_all_of_cifar_10(data_dir):
    data = DataConfig(source="files", path=(str(data_dir / "cifar10"),), workers=2)
    loaded = load_source(data)
    train, test = loaded.source.train, loaded.source.test
    assert (len(train), len(test), train.shape) == (50_000, 10_000, (3, 32, 32))
    assert torch.bincount(train.labels).tolist() == [5_000] * 10
    assert torch.bincount(test.labels).tolist() == [1_000] * 10
    assert loaded.check.bad == []
    stored = pq.read_table(data_dir / "cifar10/test.parquet")
    for i in (0, 1, 511, 512, 5_000, 9_999):
        row = stored.slice(i, 1).to_pylist()[0]
        pixels = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB"))
        assert np.array_equal(test.at([i])[0].numpy(), pixels.transpose(2, 0, 1))
        assert test.labels[i] == row["label"]


def test_all_of_the_emoji(data_dir):
    path = data_dir / "emoji/noto-emoji-32.zip"
    loaded = load(path, channels=4)
    train = loaded.source.train
    assert (len(train), train.shape, train.labels) == (3_583, (4, 32, 32), None)
    assert loaded.check.train.modes == {"RGBA": 3_583}
    place = loaded.check.train.largest.place
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        assert place in names
        stored = {archive.read(name) for name in names[:300]}
    wanted = {
        np.asarray(Image.open(io.BytesIO(one))).transpose(2, 0, 1).tobytes() for one in stored
    }
    assert wanted <= {image.tobytes() for image in train.values.numpy()}
