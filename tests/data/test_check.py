"""A check counts what there is, what is wrong and what is twice; and it remembers."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from stored_images import Encoded, Killed, WithoutTorch, encoded

from inkdrop.data import check as checking
from inkdrop.data import facts
from inkdrop.data.check import check
from inkdrop.data.checked import FORMAT_VERSION, Check
from inkdrop.data.stored.collection import MOST_CLASSES, Arrays, Collection, Found
from inkdrop.data.stored.recognise import recognise
from inkdrop.data.summary import lines, stop_for_bad
from inkdrop.errors import InkdropError

RANDOM = np.random.default_rng(0)
BACKGROUNDS = [(255, 255, 255), (0, 0, 0), (10, 200, 99)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(*shape: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, shape or (8, 8, 3), dtype=np.uint8))


def files(*images: Image.Image, labels: list[int] | None = None, name: str = "files") -> Encoded:
    return Encoded([encoded(image) for image in images], labels, name)


def alone(collection: Collection, **how: object) -> Check:
    return check(Found(collection, None), refresh=True, **how)


def numbered(values: list[int]) -> Arrays:
    """Images of which two are the same if their numbers are."""
    pixels = np.array(values, dtype=np.uint8).reshape(-1, 1, 1) + np.zeros((1, 2, 2), np.uint8)
    return Arrays(pixels, None, "numbers", "an array")


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes, a test part, and every kind of trouble."""
    folder = tmp_path_factory.mktemp("messy")
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cats", "dogs"):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                picture(8 + i, 9, 3).save(folder / part / name / f"{i}.png")
    train = folder / "train"
    (train / "cats/copy.png").write_bytes((train / "cats/0.png").read_bytes())
    (folder / "test/dogs/leak.png").write_bytes((train / "dogs/1.png").read_bytes())
    (train / "cats/empty.png").write_bytes(b"")
    (train / "dogs/cut.png").write_bytes(encoded(picture(64, 64, 3))[:3000])
    (folder / "test/cats/text.png").write_bytes(b"some text")
    Image.new("RGB", (5, 5)).save(train / "dogs/blank.png")
    picture(6, 6, 4).save(train / "dogs/clear.png")
    return folder


# Statistics


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3), (6, 7, 4)], ids=["grey", "RGB", "RGBA"])
def test_statistics_are_those_of_the_pixels(shape, background):
    images = [RANDOM.integers(0, 256, shape, dtype=np.uint8) for _ in range(5)]
    found = alone(files(*map(Image.fromarray, images))).train.statistics(background)
    shown = np.stack([on_background(image / 255, background) for image in images])
    np.testing.assert_allclose(found.mean, shown.mean(axis=(0, 1, 2)), 1e-12)
    np.testing.assert_allclose(found.std, shown.std(axis=(0, 1, 2)), 1e-12)
    assert found.sigma_data == pytest.approx((shown * 2 - 1).std(), rel=1e-12)


def on_background(image: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    if image.ndim == 2:
        return np.stack([image] * 3, axis=2)
    if image.shape[2] == 3:
        return image
    alpha = image[..., 3:]
    return image[..., :3] * alpha + np.array(background) / 255 * (1 - alpha)


def test_every_image_counts_alike_whatever_its_size():
    known = alone(files(Image.new("L", (1, 1), 255), Image.new("L", (30, 30), 0))).train
    assert known.statistics().mean == pytest.approx((0.5, 0.5, 0.5), abs=1e-15)


def test_mnist_has_its_known_statistics(data_dir):
    found = recognise([data_dir / "mnist"])
    known = check(found)
    statistics = known.train.statistics()
    assert statistics.mean[0] == pytest.approx(0.13066, abs=5e-6)
    assert statistics.std[0] == pytest.approx(0.30811, abs=5e-6)
    assert known.train.classes[:4] == (5923, 6742, 5958, 6131)
    assert known.train.duplicates == known.leaks == 0


# Counts


def test_a_messy_folder_is_seen_through(messy):
    known = check(recognise([messy]))
    train = known.train
    assert (train.count, train.usable) == (13, 11)
    assert {(Path(bad.place).name, bad.kind) for bad in known.bad} == {
        ("empty.png", "zero bytes"),
        ("cut.png", "truncated"),
        ("text.png", "unreadable"),
    }
    assert train.classes == (5, 6)
    assert train.class_names == ("cats", "dogs")
    assert train.flagged(facts.CONSTANT) == train.flagged(facts.TRANSPARENT) == 1
    assert train.flags[facts.CONSTANT].examples[0].place.endswith("dogs/blank.png")
    assert train.flagged(facts.CMYK) == 0
    assert train.duplicates == 1
    ((first, second),) = train.duplicate_groups
    assert {Path(first.place).name, Path(second.place).name} == {"0.png", "copy.png"}
    assert known.leaks == 1
    ((original, leak),) = known.leak_pairs
    assert (Path(original.place).name, Path(leak.place).name) == ("1.png", "leak.png")


def test_the_skipped_are_the_bad_ones(messy):
    known = check(recognise([messy])).train
    assert known.skipped == {bad.index for bad in known.bad}
    assert len(known.skipped) == 2


def test_sizes_are_counted_upright():
    sizes = [(4, 8)] * 3 + [(8, 4)] * 2 + [(5, 5)]
    known = alone(files(*(picture(h, w, 3) for w, h in sizes))).train
    assert known.sizes == {"4×8": 3, "8×4": 2, "5×5": 1}
    assert next(iter(known.sizes)) == "4×8"
    assert known.shorter_sides == {4: 5, 5: 1}
    assert known.aspect == (0.5, 0.5, 2.0)
    assert (known.smallest.width, known.largest.width) == (5, 4)
    assert known.distinct_sizes == 3


def test_only_the_most_common_sizes_are_listed():
    known = alone(files(*(Image.new("L", (i + 1, 1)) for i in range(60)))).train
    assert (len(known.sizes), known.distinct_sizes) == (50, 60)


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_duplicates_are_those_that_repeat_an_earlier_one(values):
    known = alone(numbered(values)).train
    assert known.duplicates == len(values) - len(set(values))
    groups = [[where.index for where in group] for group in known.duplicate_groups]
    repeated = [v for v in dict.fromkeys(values) if values.count(v) > 1]
    expected = [[i for i, v in enumerate(values) if v == again][:6] for again in repeated]
    assert groups == expected


@given(
    train=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    test=st.lists(st.integers(0, 9), min_size=1, max_size=12),
)
def test_leaks_are_test_images_that_are_also_in_train(train, test):
    known = check(Found(numbered(train), numbered(test)), refresh=True)
    leaked = [i for i, v in enumerate(test) if v in train]
    assert known.leaks == len(leaked)
    pairs = [(original.index, copy.index) for original, copy in known.leak_pairs]
    assert pairs == [(train.index(test[i]), i) for i in leaked]


def test_bad_images_are_no_duplicates_and_no_leaks():
    known = check(Found(Encoded([b"", b""], None), Encoded([b""], None, "test")), refresh=True)
    assert (known.train.duplicates, known.leaks) == (0, 0)
    assert known.train.averages is None
    with pytest.raises(InkdropError, match="not one of 2 images"):
        known.train.statistics()
    assert lines(known)


def test_a_label_that_is_no_class_is_named():
    labels = [0, MOST_CLASSES - 1, 2**60]
    images = files(picture(), picture(), picture(), labels=labels)
    with pytest.raises(InkdropError, match=r"files: the label of image 2 is 1152921504606846976"):
        alone(images)
    images.labels[2] = 0
    assert len(alone(images).train.classes) == MOST_CLASSES


def test_an_empty_collection_is_refused():
    with pytest.raises(InkdropError, match="files: empty"):
        alone(Encoded([], None))


def test_a_collection_that_changes_is_refused():
    class Shrinking(Encoded):
        def read(self, start, stop):
            yield from super().read(start, stop - 1)

    with pytest.raises(InkdropError, match="2 images were found but 1 read"):
        alone(Shrinking([encoded(picture())] * 2, None))


def test_content_changes_with_pixels_order_labels_and_names():
    a, b = picture(), picture()
    base = files(a, b, labels=[0, 1])
    named = files(a, b, labels=[0, 1])
    named.class_names = ("x", "y")
    others = [files(b, a, labels=[0, 1]), files(a, b), files(a, b, labels=[1, 0]), named]
    contents = {alone(one).content for one in [base, *others]}
    assert len(contents) == 5
    assert alone(files(a, b, labels=[0, 1], name="elsewhere")).content == alone(base).content


# Other processes


def test_workers_give_the_same(monkeypatch):
    monkeypatch.setattr(checking, "_ALONE", 0.0)
    monkeypatch.setattr(checking, "_WORTH", 0.0)
    whole = Encoded([encoded(picture()) if i % 7 else b"" for i in range(100)], None)
    shared, single = alone(whole, workers=2), alone(whole, workers=1)
    assert shared.train == single.train


def test_a_worker_does_not_import_torch():
    from joblib import Parallel, delayed

    source = WithoutTorch([b""] * 2, None)
    (seen,) = Parallel(n_jobs=2)(delayed(_first)(source) for _ in range(1))
    with_torch, process = seen[0].tolist()
    assert with_torch == 0
    assert process != os.getpid() % 251


def _first(source: Collection) -> np.ndarray:
    """What the source says of the process that has looked at it."""
    facts.examine(source, 0, 2)
    return next(iter(source.read(0, 1))).content


def test_a_killed_process_is_a_sentence(monkeypatch):
    monkeypatch.setattr(checking, "examine", _examine_first)
    monkeypatch.setattr(checking, "_WORTH", 0.0)
    with pytest.raises(InkdropError, match="was killed"):
        alone(Killed([encoded(picture())] * 40, None), workers=2)


def _examine_first(collection: Collection, start: int, stop: int, **how: object) -> facts.Facts:
    """Only the first image where this process looks; all of them elsewhere."""
    return facts.examine(collection, start, stop, seconds=0) if how else _die()


def _die() -> facts.Facts:
    os._exit(9)


@given(
    start=st.integers(0, 50),
    more=st.integers(1, 500),
    block=st.integers(1, 90),
    each=st.floats(1e-4, 10),
    workers=st.integers(2, 9),
)
def test_ranges_cover_every_image_once(start, more, block, each, workers):
    ranges = list(checking._ranges(start, start + more, block, each, workers))
    covered = [i for first, last in ranges for i in range(first, last)]
    assert covered == list(range(start, start + more))


# Remembering


def test_a_check_is_the_same_after_json(messy):
    known = check(recognise([messy]))
    assert Check.from_json(json.loads(json.dumps(known.to_json()))) == known


def test_a_second_check_looks_at_nothing(messy, monkeypatch):
    first = check(recognise([messy]))
    monkeypatch.setattr(checking, "examine", None)
    assert check(recognise([messy])) == first


def test_a_changed_file_is_looked_at_again(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        picture().save(folder / f"{i}.png")
    before = check(recognise([folder]))
    picture(8, 20, 3).save(folder / "1.png")
    after = check(recognise([folder]))
    assert before.train.distinct_sizes == 1
    assert after.train.distinct_sizes == 2


def test_a_check_is_made_anew_when_asked(messy, monkeypatch):
    check(recognise([messy]))
    looked: list[str] = []

    def watched(collection, *range_, **how):
        looked.append(collection.name)
        return facts.examine(collection, *range_, **how)

    monkeypatch.setattr(checking, "examine", watched)
    check(recognise([messy]), refresh=True)
    assert len(looked) == 2


@pytest.mark.parametrize("damage", ["cut", "version", "nonsense"])
def test_a_damaged_check_is_made_anew(messy, cache, damage):
    first = check(recognise([messy]))
    (kept,) = (cache / "checks").iterdir()
    text = kept.read_text()
    version = f'"format_version":{FORMAT_VERSION}'
    assert version in text
    other = {
        "cut": text[:-9],
        "version": text.replace(version, '"format_version":0'),
        "nonsense": "{}",
    }
    kept.write_text(other[damage])
    again = check(recognise([messy]))
    assert again.train == first.train
    assert again.format_version == FORMAT_VERSION
    assert Check.from_json(json.loads(kept.read_text())) == again


def test_a_cache_that_cannot_be_written_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "file"))
    out = io.StringIO()
    assert alone(files(picture()), console=Console(file=out)).train.count == 1
    assert "cannot be kept" in out.getvalue()


# In words


def test_bad_images_stop_with_one_line(messy):
    out = io.StringIO()
    with pytest.raises(InkdropError) as caught:
        stop_for_bad(check(recognise([messy])), Console(file=out, width=200))
    message = str(caught.value)
    assert message.startswith("3 of 19 images cannot be used (")
    assert "1 truncated" in message
    assert "--bad-images skip" in message
    assert "\n" not in message
    assert out.getvalue().count("\n") == 3
    assert "cut.png: cut off" in out.getvalue()


def test_only_the_first_twenty_are_named():
    out = io.StringIO()
    with pytest.raises(InkdropError, match="30 of 31"):
        stop_for_bad(alone(Encoded([b""] * 30 + [encoded(picture())], None)), Console(file=out))
    assert out.getvalue().count("\n") == 21
    assert "10 more" in out.getvalue()


def test_good_images_do_not_stop():
    stop_for_bad(alone(files(picture())))


def test_lines_say_what_was_found(messy):
    text = "\n".join(lines(check(recognise([messy])), ["size 8×8"]))
    for words in (
        "13 training images",
        "6 test images",
        "cats 5 █",
        "2: 1 ",
        "1 of nearly one colour: ",
        "1 repeats an earlier image",
        "1 test image is also among the training images",
        "proposed\n  size 8×8",
    ):
        assert words in text


def test_lines_of_a_clean_set_are_short():
    text = lines(alone(files(*(picture() for _ in range(5)))))
    assert len(text) < 12
    assert any("8×8, all of them" in line for line in text)


def test_sigma_data_is_twice_the_deviation_of_grey():
    known = alone(files(picture(9, 9))).train.statistics()
    assert known.sigma_data == pytest.approx(2 * known.std[0], rel=1e-12)
