"""Collections of encoded images, for tests; worker processes import it too."""

import io
import os
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from inkdrop.data.stored.collection import Collection, Item


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


class Encoded(Collection):
    """Encoded files in memory."""

    kind = "files in memory"

    def __init__(
        self, files: Sequence[bytes], labels: Sequence[int] | None, name: str = "files"
    ) -> None:
        self.files = list(files)
        self.labels = None if labels is None else np.array(labels, dtype=np.int64)
        self.name = name

    def __len__(self) -> int:
        return len(self.files)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        for i in range(start, stop):
            yield Item(f"{self.name}/{i}.png", self.files[i])

    def identity(self) -> str:
        return self.name


class WithoutTorch(Encoded):
    """Says where torch is, and who reads, in the images it gives: 0 or 1, and the process."""

    def read(self, start: int, stop: int) -> Iterator[Item]:
        import sys

        with_torch = int("torch" in sys.modules)
        process = os.getpid() % 251
        for i in range(start, stop):
            yield Item(str(i), np.array([[with_torch, process]], dtype=np.uint8))


class Killed(Encoded):
    """Ends the process that reads it."""

    def read(self, start: int, stop: int) -> Iterator[Item]:
        yield from super().read(start, start + 1)
        os._exit(9)
