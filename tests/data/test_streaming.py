"""Images that are decoded as they are needed are those of the cache, in any order of asking."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from inkdrop.data.order import Windowed
from inkdrop.data.pixels import to_float
from inkdrop.data.stored.collection import Arrays, Collection, Item
from inkdrop.data.stream import Stream, held_out_split
from inkdrop.data.streaming import StreamedImages
from inkdrop.data.transform import Transform
from inkdrop.errors import InkdropError

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 6, 5, 3), dtype=np.uint8)


class Counting(Collection):
    """Encoded images that count how they are read."""

    name = kind = "counting"
    labels = np.arange(300)

    def __init__(self, bad: int | None = None) -> None:
        self.reads: list[tuple[int, int]] = []
        self.bad = bad

    def __len__(self) -> int:
        return len(PIXELS)

    def identity(self) -> str:
        return "counting"

    def read(self, start: int, stop: int):
        self.reads.append((start, stop))
        for i in range(start, stop):
            encoded = io.BytesIO()
            Image.fromarray(PIXELS[i]).save(encoded, "PNG")
            content = encoded.getvalue()
            yield Item(f"{i}.png", content[:60] if i == self.bad else content)


def streamed(collection=None, window=64, kept=None, **options) -> StreamedImages:
    collection = collection or Counting()
    kept = np.arange(len(collection)) if kept is None else kept
    transform = Transform(6, 5, 3, **options)
    return StreamedImages(collection, kept, transform, "known", window)


def pixels(indices) -> torch.Tensor:
    return torch.from_numpy(PIXELS[np.asarray(indices)].transpose(0, 3, 1, 2).copy())


def test_images_and_labels_are_the_collections():
    images = streamed()
    assert (len(images), images.shape, images.fingerprint) == (300, (3, 6, 5), "known")
    asked = [7, 299, 0, 7]
    assert torch.equal(images.at(asked), pixels(asked))
    assert images.labels_at(asked).tolist() == asked


def test_a_part_is_a_view():
    part = streamed(kept=np.arange(0, 300, 3)).take([5, 2, 99])
    assert torch.equal(part.values, pixels([15, 6, 297]))
    assert part.labels.tolist() == [15, 6, 297]
    assert part.fingerprint != "known"


def test_an_epoch_streams_every_image_once_and_reads_it_once():
    collection = Counting()
    stream = Stream(streamed(collection), 32, seed=1)
    batches = [stream.batch(step) for step in range(300 // 32)]
    labels = torch.cat([batch.labels for batch in batches])
    assert len(set(labels.tolist())) == len(labels)
    for batch in batches:
        assert torch.equal(batch.x_start, to_float(pixels(batch.labels)))
    assert sum(stop - start for start, stop in collection.reads) <= 300 + 2 * 64


def test_a_batch_is_the_same_after_a_fresh_start_in_the_middle():
    stream = Stream(streamed(), 32, seed=1)
    whole = [stream.batch(step) for step in range(40)]
    for step in (0, 9, 17, 39):
        fresh = Stream(streamed(), 32, seed=1).batch(step)
        assert torch.equal(fresh.labels, whole[step].labels)
        assert torch.equal(fresh.x_start, whole[step].x_start)


def test_processes_share_streamed_batches():
    whole = Stream(streamed(), 32, seed=1).batch(3)
    parts = [Stream(streamed(), 32, 1, rank=r, world_size=4).batch(3) for r in range(4)]
    assert torch.equal(torch.cat([part.x_start for part in parts]), whole.x_start)


def test_no_more_than_two_windows_are_at_hand():
    images = streamed(window=20)
    stream = Stream(images, 8, seed=0)
    for step in range(100):
        stream.batch(step)
        assert sum(map(len, images._at_hand.values())) <= 40
    assert isinstance(stream.order, Windowed)


def test_a_bad_image_is_named():
    collection = Counting(bad=7)
    with pytest.raises(InkdropError, match=r"^7\.png: .*changed since the check\?$"):
        streamed(collection).at([6, 7])
    collection.sequential = True
    with pytest.raises(InkdropError, match=r"^7\.png: .*a stream is not checked"):
        streamed(collection).at([6, 7])


def test_what_is_read_from_its_beginning_is_held_out_from_there():
    collection = Counting()
    collection.sequential = True
    train, held_out = held_out_split(streamed(collection), None, 20)
    assert held_out.labels.tolist() == list(range(20))
    assert train.labels.tolist() == list(range(20, 300))


def test_random_crops_are_those_of_the_cache(tmp_path, monkeypatch):
    from inkdrop.data.cache import cached_images

    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path))
    arrays = Arrays(PIXELS, None, "pixels", "an array")
    transform = Transform(4, 4, 3, "random-crop")
    cached = cached_images(arrays, "content", transform)
    live = StreamedImages(arrays, np.arange(300), transform, "", 64)
    assert torch.equal(live.at(range(300)), cached.values)
    middle = StreamedImages(arrays, np.arange(300), Transform(4, 4, 3), "", 64)
    assert not torch.equal(middle.at(range(300)), cached.values)
