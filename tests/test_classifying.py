"""The classifier that is trained and kept."""

import io
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import inkdrop
from inkdrop import classifying
from inkdrop.classifying import (
    TrainedClassifier,
    find_classifier,
    load_classifier,
    train_classifier,
)
from inkdrop.cli import run as command
from inkdrop.data.examples import Examples, to_x_start
from inkdrop.data.images import ImageSet
from inkdrop.data.points import PointSet
from inkdrop.data.stream import held_out_split
from inkdrop.errors import InkdropError

EPOCHS = 3


@pytest.fixture(scope="module")
def split() -> tuple[Examples, Examples]:
    """The digits as a run of them is trained and tested."""
    source = inkdrop.load_data("digits")
    train, held_out = held_out_split(source.train, source.test, 256)
    assert held_out is not None
    return train, held_out


@pytest.fixture(scope="module")
def few(split) -> tuple[Examples, Examples]:
    train, held_out = split
    return train.take(range(200)), held_out.take(range(40))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INKDROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def digits(cache, split) -> TrainedClassifier:
    return train_classifier(*split, epochs=EPOCHS)


@pytest.fixture
def kept(tmp_path, few) -> Path:
    """The folder of a classifier that may be spoilt."""
    return train_classifier(*few, tmp_path / "kept", epochs=1).path


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def a_console() -> Console:
    return Console(file=io.StringIO(), width=200)


# ---- what it is ----------------------------------------------------------------------------------


def test_three_epochs_tell_the_digits_apart(digits, split):
    train, held_out = split
    assert digits.accuracy > 0.85
    assert (digits.shape, digits.classes, digits.data) == ((1, 8, 8), 10, train.fingerprint)
    logits = digits.network(to_x_start(held_out.values))
    assert digits.accuracy == (logits.argmax(dim=1) == held_out.labels).double().mean().item()


def test_what_is_trained_again_is_the_same_to_the_bit(few, tmp_path):
    torch.manual_seed(1)
    first = train_classifier(*few, tmp_path / "a", epochs=1)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = train_classifier(*few, tmp_path / "b", epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    one, two = first.network.state_dict(), second.network.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert first.fingerprint == second.fingerprint


def test_another_seed_is_another_classifier(few, kept, tmp_path):
    other = train_classifier(*few, tmp_path / "other", epochs=1, seed=1)
    assert other.fingerprint != load_classifier(kept).fingerprint


def test_what_is_loaded_is_what_was_trained_and_is_not_to_be_trained(digits):
    loaded = load_classifier(digits.path)
    assert not loaded.network.training
    assert not any(weights.requires_grad for weights in loaded.network.parameters())
    same = {**vars(loaded), "network": None} == {**vars(digits), "network": None}
    assert same
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    loaded.network(x)[0, 3].backward()
    assert x.grad is not None


def test_an_image_s_features_do_not_depend_on_the_batch_it_is_in(digits, split):
    x = to_x_start(split[1].values[:7])
    together = digits.network.features(x)
    apart = torch.cat([digits.network.features(part) for part in x.split([1, 4, 2])])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_variation_moves_images_a_little_and_by_their_step():
    x = torch.full((64, 1, 28, 28), -1.0)
    x[:, :, 13:15, 13:15] = 1.0
    one, two = classifying._varied(x, 0, 0), classifying._varied(x, 0, 1)
    assert not torch.equal(one, two)
    assert torch.equal(one, classifying._varied(x, 0, 0))
    assert one.min() >= -1
    assert one.max() <= 1
    mass = (one + 1)[:, 0]
    place = torch.arange(28.0) - 13.5
    total = mass.sum(dim=(1, 2))
    across = (mass.sum(dim=1) * place).sum(dim=1) / total
    down = (mass.sum(dim=2) * place).sum(dim=1) / total
    for centre in (across, down):
        assert centre.abs().max() < 0.07 * 28 * 1.3
        assert centre.std() > 0.5


def test_a_plain_image_stays_as_it_is_under_variation():
    x = torch.full((8, 3, 9, 5), 0.25)
    torch.testing.assert_close(classifying._varied(x, 0, 3), x)


def test_the_number_of_epochs_follows_the_number_of_images(split):
    def usual(count, channels=1):
        pixel = torch.zeros(1, channels, 1, 1, dtype=torch.uint8)
        images = ImageSet(pixel.expand(count, -1, -1, -1), None, "images")
        return classifying._usual_epochs(images)

    assert usual(60_000) == 8
    assert usual(1_000_000) == 8
    assert usual(24_000) == 20
    assert usual(50_000, channels=3) == 20
    assert usual(100) == 40


def test_flips_are_only_where_they_are_asked_for(few, kept, tmp_path):
    flipped = train_classifier(*few, tmp_path / "flipped", epochs=1, horizontal_flip=True)
    assert flipped.protocol["horizontal_flip"]
    assert flipped.fingerprint != load_classifier(kept).fingerprint


# ---- kept and found ------------------------------------------------------------------------------


def test_a_run_of_the_same_images_finds_it(digits, finished_run):
    run = inkdrop.load(finished_run)
    assert find_classifier(run.fingerprint) == digits.path
    assert find_classifier("0" * 64) is None


def test_the_same_settings_are_not_trained_twice(digits, split, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(classifying, "_trained", refuse)
    console = a_console()
    again = train_classifier(*split, epochs=EPOCHS, console=console)
    assert again.fingerprint == digits.fingerprint
    assert "trained with these settings before" in said(console)


def test_other_settings_do_not_replace_it_unasked(few, kept):
    before = (kept / "classifier.json").read_bytes()
    with pytest.raises(InkdropError, match=r"trained otherwise \(seed 0, not 5\): --refresh"):
        train_classifier(*few, kept, epochs=1, seed=5)
    assert (kept / "classifier.json").read_bytes() == before
    replaced = train_classifier(*few, kept, epochs=1, seed=5, refresh=True)
    assert replaced.protocol["seed"] == 5
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_folder_in_use_and_one_of_other_images_are_left_alone(few, kept, tmp_path):
    train, held_out = few
    with pytest.raises(InkdropError, match="other images"):
        train_classifier(train.take(range(100)), held_out, kept, epochs=1)
    used = tmp_path / "used"
    used.mkdir()
    (used / "letter.txt").write_text("dear")
    for refresh in (False, True):
        with pytest.raises(InkdropError, match="keeps no classifier; choose another folder"):
            train_classifier(*few, used, epochs=1, refresh=refresh)
    assert [path.name for path in used.iterdir()] == ["letter.txt"]


def test_nothing_is_left_where_writing_fails(few, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(classifying, "write_part", fail)
    with pytest.raises(OSError, match="No space"):
        train_classifier(*few, tmp_path / "new", epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_before_training(few, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained")

    monkeypatch.setattr(classifying, "_trained", refuse)
    (tmp_path / "file").write_text("")
    with pytest.raises(InkdropError, match=r"cannot keep a classifier in .*file .*--out"):
        train_classifier(*few, tmp_path / "file" / "new", epochs=1)
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "file"))
    with pytest.raises(InkdropError, match=r"cannot keep a classifier in .*INKDROP_CACHE"):
        train_classifier(*few, epochs=1)


def test_who_needs_the_same_one_waits_and_finds_it(digits, split, monkeypatch):
    monkeypatch.setattr(classifying, "_PATIENCE", 0.01)
    console = a_console()
    with ThreadPoolExecutor(1) as other:
        with classifying._locked(digits.path, None):
            found = other.submit(train_classifier, *split, epochs=EPOCHS, console=console)
            while "waiting for another process" not in said(console):
                assert not found.done()
                time.sleep(0.01)
        assert found.result().fingerprint == digits.fingerprint
    assert "trained with these settings before" in said(console)


def test_a_damaged_one_is_told_in_one_line_and_can_be_made_anew(few, kept):
    weights = kept / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InkdropError, match=r"damaged: the content of weights.* --refresh"):
        load_classifier(kept)
    weights.unlink()
    console = a_console()
    with pytest.raises(InkdropError, match="cannot be read"):
        train_classifier(*few, kept, epochs=1, console=console)
    assert said(console) == ""
    facts = kept / "classifier.json"
    facts.write_text(facts.read_text().replace('"classes": 10', '"classes": 11'))
    with pytest.raises(InkdropError, match=r"classifier\.json is not what was written"):
        load_classifier(kept)
    for content in (b"", b"{}", b"[1]", b"\xff"):
        facts.write_bytes(content)
        with pytest.raises(InkdropError, match="damaged or not inkdrop's"):
            load_classifier(kept)
    made = train_classifier(*few, kept, epochs=1, refresh=True)
    assert load_classifier(kept).fingerprint == made.fingerprint


def test_a_pickle_and_a_newer_version_are_refused(kept):
    facts = json.loads((kept / "classifier.json").read_text())
    (kept / "weights.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InkdropError, match="is a pickle"):
        load_classifier(kept)
    (kept / "classifier.json").write_text(json.dumps({**facts, "format_version": 99}))
    with pytest.raises(InkdropError, match="format version 99"):
        load_classifier(kept)


def test_folders_without_one_are_told_apart(tmp_path):
    with pytest.raises(InkdropError, match="there is no classifier"):
        load_classifier(tmp_path / "nothing")
    with pytest.raises(InkdropError, match="is not a classifier"):
        load_classifier(tmp_path)


# ---- what cannot be ------------------------------------------------------------------------------


def images(labels: torch.Tensor | None, name: str = "pictures") -> ImageSet:
    return ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels, name)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (images(None), "pictures has no classes"),
        (images(torch.zeros(4, 2)), "pictures has no classes"),
        (images(torch.zeros(4, dtype=torch.int64)), "pictures has one class"),
        (PointSet(torch.zeros(4, 2), torch.arange(4), "dots"), "dots holds points"),
    ],
    ids=["no labels", "vectors", "one class", "points"],
)
def test_what_has_no_classes_is_refused_in_one_line(examples, message, tmp_path):
    with pytest.raises(InkdropError, match=message):
        train_classifier(examples, examples, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_refused_before_any_work(few, tmp_path):
    train, held_out = few
    other = ImageSet(torch.zeros(4, 1, 9, 9, dtype=torch.uint8), torch.arange(4), "larger")
    with pytest.raises(InkdropError, match="do not fit"):
        train_classifier(train, other, tmp_path / "new")
    with pytest.raises(InkdropError, match="epochs must be at least 1, got 0"):
        train_classifier(train, held_out, tmp_path / "new", epochs=0)
    with pytest.raises(InkdropError, match="device 'tpu'"):
        train_classifier(train, held_out, tmp_path / "new", device="tpu")
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_that_learnt_nothing_is_said_to_mean_little(tmp_path):
    draws = np.random.default_rng(0)
    noise = torch.from_numpy(draws.integers(0, 256, (80, 1, 4, 4), dtype=np.uint8))
    labels = torch.from_numpy(draws.integers(0, 4, 80))
    examples, console = ImageSet(noise, labels, "noise"), a_console()
    held_out = examples.take(range(40))
    trained_on = examples.take(range(40, 80))
    train_classifier(trained_on, held_out, tmp_path / "a", epochs=1, console=console)
    assert "would mean little" in said(console)


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_trains_for_a_run_finds_it_again_and_lists_it(
    finished_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    given = ["classifier", "train", str(finished_run), "--epochs", "1"]
    assert command(given) == 0
    out = capsys.readouterr().out
    assert "1,618 images of 10 classes, 1 epoch" in out
    assert f"next: inkdrop evaluate {finished_run} --extractor classifier" in out
    assert command(["classifier", "train", "digits", "--epochs", "1"]) == 0
    assert "trained with these settings before" in capsys.readouterr().out
    assert find_classifier(inkdrop.load(finished_run).fingerprint) is not None
    assert command(["classifier", "list"]) == 0
    out = capsys.readouterr().out
    assert "digits" in out
    assert "1 classifier in" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a command: train, list"),
        (["trian"], "did you mean 'train'?"),
        (["train"], "needs a preset or a run folder first"),
        (["train", "digit"], "unknown preset or run folder 'digit': did you mean 'digits'?"),
        (["train", "no/where"], "there is no run folder no/where"),
        (["train", "points-gmm"], "holds points"),
        (["train", "digits", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["train", "digits", "--epoch", "1"], "did you mean --epochs?"),
        (["train", "digits", "--device", "tpu"], "device 'tpu' cannot be used here"),
        (["list", "all"], "unexpected 'all'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_commands_are_told_in_one_line(arguments, message, capsys):
    assert command(["classifier", *arguments]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
