"""Damages files of one kind and tells what became of each: test_fuzz runs it on its own.

    python fuzzing.py KIND COUNT FOLDER_OF_REAL_DATA SCRATCH [SEED]

A crash of the process, or a hang, is then seen from outside. Half of the damage is done beneath
the checksums, which would otherwise keep nearly all of it from what lies behind them. Prints how
many mutants were read, skipped by name and refused in one line, as JSON.
"""

import gzip
import io
import json
import shutil
import struct
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from inkdrop.config import DataConfig
from inkdrop.data.decode import BadImage, decode
from inkdrop.data.loading import Seen, look
from inkdrop.data.stored.trees import shown
from inkdrop.errors import InkdropError

SECONDS = 10  # that no mutant may take


class Original(NamedTuple):
    """What is damaged, and what then is made of it: the file, with the right checksums."""

    content: bytes
    packed: Callable[[bytes], bytes] = bytes


class Kind(NamedTuple):
    """Files of one kind: what they are called, a few of them, and what lies beside each."""

    name: str
    originals: list[Original]
    beside: dict[str, bytes] = {}  # noqa: RUF012


def emoji(data: Path, count: int) -> list[bytes]:
    with zipfile.ZipFile(data / "emoji/noto-emoji-32.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        return [archive.read(name) for name in names[:count]]


def photographs(data: Path, count: int) -> list[bytes]:
    table = next(pq.ParquetFile(data / "cifar10/test.parquet").iter_batches(count))
    return [row["bytes"] for row in table.column("img").to_pylist()]


def digits(data: Path, count: int) -> np.ndarray:
    with gzip.open(data / "mnist/t10k-images-idx3-ubyte.gz") as file:
        return np.frombuffer(file.read(16 + count * 784)[16:], np.uint8).reshape(count, 28, 28)


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in members.items():
            written.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def parquet(images: list[bytes], **options: object) -> bytes:
    rows = [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)]
    table = pa.table({"image": rows, "label": list(range(len(rows)))})
    return saved(lambda file: pq.write_table(table, file, row_group_size=4, **options))


def mended(png: bytes) -> bytes:
    """A PNG file with the checksum of each chunk made right again."""
    made, place = png[:8], 8
    while place + 12 <= len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4], "big")
        if end + 4 > len(png):
            break
        made += png[place:end] + struct.pack(">I", zlib.crc32(png[place + 4 : end]))
        place = end + 4
    return made + png[place:]


def repacked(png: bytes) -> Original:
    """The lines of a PNG of one chunk of pixels, to be packed again."""
    start = png.index(b"IDAT") + 4
    length = int.from_bytes(png[start - 8 : start - 4], "big")

    def packed(lines: bytes) -> bytes:
        pixels = zlib.compress(lines, 1)
        size = struct.pack(">I", len(pixels))
        return mended(png[: start - 8] + size + b"IDAT" + pixels + png[start + length :])

    return Original(zlib.decompress(png[start : start + length]), packed)


def png(data: Path) -> Kind:
    small = [saved(lambda f, m=mode: Image.new(m, (40, 30)).save(f, "PNG")) for mode in "1LP"]
    files = [*emoji(data, 8), *small]
    ways = [*map(Original, files), *(Original(file, mended) for file in files)]
    return Kind("image.png", [*ways, *map(repacked, small)], {"sound.png": files[-1]})


def jpeg(data: Path) -> Kind:
    return Kind(
        "image.jpg", [*map(Original, photographs(data, 10))], {"sound.jpg": photographs(data, 1)[0]}
    )


def idx(data: Path) -> Kind:
    plain = struct.pack(">4I", 0x803, 20, 28, 28) + digits(data, 20).tobytes()
    packed = Original(gzip.compress(plain, mtime=0))
    ways = [Original(plain), packed, Original(plain, lambda content: gzip.compress(content, 1))]
    return Kind("train-images-idx3-ubyte", ways)


def parquet_file(data: Path) -> Kind:
    images = photographs(data, 10)
    plain = parquet(images, compression="none", use_dictionary=False)
    changed = Original(images[1], lambda image: parquet([images[0], image, *images[2:]]))
    return Kind("train.parquet", [Original(parquet(images)), Original(plain), changed])


def npz(data: Path) -> Kind:
    images, labels = digits(data, 12), np.arange(12)
    whole = saved(lambda f: np.savez_compressed(f, images=images, labels=labels))
    one, other = (saved(lambda f, a=array: np.save(f, a)) for array in (images, labels))
    starts = [Original(content[:128]) for content in (one, other)]  # where the headers are
    ways = [
        Original(one, lambda content: zipped({"images.npy": content, "labels.npy": other})),
        Original(other, lambda content: zipped({"images.npy": one, "labels.npy": content})),
        *(
            Original(
                start.content,
                lambda content, i=i: zipped(
                    {
                        "images.npy": content + one[128:] if i == 0 else one,
                        "labels.npy": content + other[128:] if i == 1 else other,
                    }
                ),
            )
            for i, start in enumerate(starts)
        ),
    ]
    return Kind("set.npz", [Original(whole), *ways])


def zip_file(data: Path) -> Kind:
    members = {f"{'ab'[i % 2]}/{i}.png": image for i, image in enumerate(emoji(data, 6))}
    inner = Original(members["b/1.png"], lambda content: zipped({**members, "b/1.png": content}))
    return Kind("images.zip", [Original(zipped(members)), inner])


KINDS: dict[str, Callable[[Path], Kind]] = {
    "png": png,
    "jpeg": jpeg,
    "idx": idx,
    "parquet": parquet_file,
    "npz": npz,
    "zip": zip_file,
}


def damaged(original: bytes, draws: np.random.Generator) -> bytes:
    """One of: bytes changed, the end cut off, a piece cut out, a piece written twice."""
    content = bytearray(original)
    way = draws.integers(4)
    start, length = int(draws.integers(len(content))), int(draws.integers(1, 64))
    if way == 0:
        for place in draws.integers(len(content), size=int(draws.integers(1, 9))):
            content[place] = int(draws.integers(256))
    elif way == 1:
        del content[start:]
    elif way == 2:
        del content[start : start + length]
    else:
        content[start:start] = content[start : start + length]
    return bytes(content)


def outcome(path: Path) -> str:
    """What becomes of a file, or of a folder with it."""
    data = DataConfig(source="files", path=(str(path),), bad_images="skip", workers=1)
    seen = seen_or_refusal(data)
    if isinstance(seen, str):
        assert shown(seen) == seen, f"not one line: {seen!r}"
        return "refused"
    skipped = skipped_by_name(seen)
    assert "sound" not in " ".join(skipped), "a sound image is skipped"
    return "skipped" if skipped else "read"


def seen_or_refusal(data: DataConfig) -> Seen | str:
    try:
        return look(data)
    except InkdropError as error:
        return str(error)


def skipped_by_name(seen: Seen) -> list[str]:
    """What the check says cannot be used; the decoding agrees, and all else has its shape."""
    for collection, part in (
        (seen.found.train, seen.check.train),
        (seen.found.test, seen.check.test),
    ):
        if collection is None:
            continue
        assert len(collection) == part.count
        assert collection.labels is None or len(collection.labels) == part.count
        bad = {one.index: (one.place, one.kind, one.reason) for one in part.bad}
        for i, item in enumerate(collection.read(0, part.count)):
            try:
                found = seen.proposal.transform(decode(item))
                found, wanted = (found.shape, found.dtype), (seen.shape, np.uint8)
            except BadImage as fault:
                found, wanted = (item.place, fault.kind, fault.reason), bad.pop(i, None)
            assert found == wanted, f"{item.place}: {found}, not {wanted}"
        assert not bad, "found bad, but decoded"
    said = [f"{one.place}: {one.reason}" for one in seen.check.bad]
    assert list(map(shown, said)) == said, said
    return said


def main(kind: str, count: int, data: Path, scratch: Path, seed: int) -> None:
    """Damage `count` files of a kind, one after the other."""
    name, originals, beside = KINDS[kind](data)
    draws = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    for number in range(count):
        original = originals[number % len(originals)]
        folder = scratch / f"{kind}-{number}"
        folder.mkdir()
        for file, content in beside.items():
            (folder / file).write_bytes(content)
        (folder / name).write_bytes(original.packed(damaged(original.content, draws)))
        began = time.monotonic()
        try:
            outcomes[outcome(folder if beside else folder / name)] += 1
        except Exception as error:
            raise AssertionError(f"mutant {number} of {kind}: {error!r}") from error
        took = time.monotonic() - began
        assert took < SECONDS, f"mutant {number} of {kind} took {took:.1f} s"
        shutil.rmtree(folder)
    print(json.dumps(outcomes))  # noqa: T201


if __name__ == "__main__":
    seed = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), seed)
