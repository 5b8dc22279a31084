"""Evaluations of a run: figures, protocols, caches and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import inkdrop
from inkdrop import cli, evaluating
from inkdrop.classifying import TrainedClassifier
from inkdrop.copies import Copies
from inkdrop.data.images import ImageSet
from inkdrop.errors import InkdropError
from inkdrop.evaluating import write_evaluations
from inkdrop.evaluation.features import FeatureSet
from inkdrop.evaluation.figures import measure
from inkdrop.evaluation.record import (
    Evaluation,
    Figure,
    Memorisation,
    families,
    keep_evaluation,
    read_evaluations,
)
from inkdrop.extracting import FOLDER, features_of
from inkdrop.measuring import _classifier, cheap_extractor
from inkdrop.networks.classifier import Classifier
from inkdrop.processes import Processes
from inkdrop.randomness import torch_seeded

QUICK: dict[str, Any] = {"n": 90, "steps": 2, "extractor": "pixels", "batch_size": 32}
FEW: dict[str, Any] = {**QUICK, "metrics": ["frechet_distance"], "memorisation": False}


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> inkdrop.Run:
    return inkdrop.load(shutil.copytree(finished_run, tmp_path / "digits"), device="cpu")


@pytest.fixture
def points(points_run: Path, tmp_path: Path) -> inkdrop.Run:
    return inkdrop.load(shutil.copytree(points_run, tmp_path / "points"), device="cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TrainedClassifier:
    """A classifier of the digits that knows nothing, where one would be trained."""
    with torch_seeded(0, "untrained"):
        network = Classifier((1, 8, 8), 10).requires_grad_(False).eval()
    made = TrainedClassifier(network, tmp_path, (1, 8, 8), 10, 0.1, "digits", "untrained", {})
    monkeypatch.setattr("inkdrop.measuring.train_classifier", lambda *_, **__: made)
    return made


def one(run: inkdrop.Run, **options: Any) -> Evaluation:
    (found,) = write_evaluations(run, **options)
    return found


def test_the_figures_are_those_of_the_runs_samples_and_training_images(run: inkdrop.Run) -> None:
    found = one(run, **FEW, seed=3)
    x = inkdrop.sample(run.denoiser, 90, steps=2, seed=3)
    samples = inkdrop.to_uint8(x).flatten(1).numpy().astype(np.float32)
    train = run.load_data().train
    real = train.values.flatten(1).numpy().astype(np.float32)
    expected = measure(["frechet_distance"], FeatureSet(real), FeatureSet(samples))
    figure = found.figures["frechet_distance"]
    assert figure.value == pytest.approx(expected["frechet_distance"].value, rel=1e-3)
    assert set(figure.floor) == {"train halves", "train against held-out"}
    assert figure.value is not None
    assert figure.floor["train against held-out"] < figure.value  # the run is hardly trained


def test_the_protocol_is_enough_to_do_it_again(run: inkdrop.Run) -> None:
    found = one(run, **FEW, sampler="unipc", order=2, timesteps="karras", seed=1)
    kept = read_evaluations(run.path)
    assert kept == [found]
    protocol = found.protocol
    assert (protocol.step, protocol.weights, protocol.samples, protocol.seed) == (6, "ema", 90, 1)
    assert (protocol.sampler, protocol.order, protocol.clip) == ("unipc", 2, "range")
    assert protocol.timesteps == list(run.table("unipc", 2, timesteps="karras", order=2).timesteps)
    assert protocol.reference["split"] == "train"
    assert protocol.reference["fingerprint"] == run.fingerprint
    assert protocol.reference["count"] == len(run.load_data().train)
    assert protocol.extractor["name"] == "pixels"
    assert {"inkdrop", "torch", "torchmetrics", "scikit-learn", "numpy"} <= set(protocol.versions)
    assert protocol.settings["confidence"] == 0.95
    again = one(run, **FEW, sampler="unipc", order=2, timesteps="karras", seed=1)
    assert again.figures == found.figures
    assert len(read_evaluations(run.path)) == 1
    one(run, **FEW, seed=2)
    assert len(read_evaluations(run.path)) == 2


def test_figures_do_not_depend_on_the_batch_size(run: inkdrop.Run) -> None:
    values = [
        one(run, **{**FEW, "batch_size": size}).figures["frechet_distance"].value
        for size in (90, 7)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_several_evaluations_make_a_sweep_that_is_one_family(run: inkdrop.Run) -> None:
    options = {name: value for name, value in FEW.items() if name != "steps"}
    found = inkdrop.evaluate(run, **options, evaluations=[2, 4])
    assert isinstance(found, list)
    assert [each.protocol.evaluations for each in found] == [2, 4]
    assert families(read_evaluations(run.path), "timesteps") == [found]
    single = inkdrop.evaluate(run.path, **options, evaluations=2)
    assert isinstance(single, Evaluation)
    assert single.figures == found[0].figures


def test_copies_are_looked_for_and_the_nearest_are_drawn(run: inkdrop.Run) -> None:
    found = one(run, **{**QUICK, "metrics": ["kernel_distance"]})
    assert found.memorisation is not None
    assert found.memorisation.verdict == "none seen"
    (pixels,) = found.memorisation.nearest
    index, example, distance = pixels.pairs[0]
    x = inkdrop.to_uint8(inkdrop.sample(run.denoiser, 1, steps=2, first_index=index))
    apart = x[0].float() - run.load_data().train.values[example].float()
    assert float(apart.norm()) == pytest.approx(distance, rel=0.05)
    assert (run.path / "pictures" / "nearest.png").exists()


def test_a_copy_is_found_also_of_a_mirror_image(run: inkdrop.Run, tmp_path: Path) -> None:
    from inkdrop.measuring import measuring
    from inkdrop.real_examples import real_examples

    real = real_examples(run)
    assert real.train is not None
    assert real.held_out is not None
    by = measuring(run, "pixels", (), real, Processes(), "cpu")
    copies = Copies.of(real.train, real.held_out, by, 40, True, Processes(), tmp_path)
    mirrored = real.train.values[5:45].flip(-1)
    rows = mirrored.flatten(1).numpy()
    verdict = copies.judged(FeatureSet(rows.astype(np.float32)), rows)
    assert verdict.verdict == "copies"
    assert {(i, j - i, d) for i, j, d in verdict.nearest[0].pairs} == {
        (i, 5, 0.0) for i in range(40)
    }
    assert torch.equal(copies.picture(5, real.train, mirrored[0]), mirrored[0])


@pytest.mark.usefixtures("cache", "untrained")
def test_a_classifier_gives_figures_per_class(run: inkdrop.Run) -> None:
    found = one(run, n=140, steps=2, memorisation=False, metrics=["inception_score"])
    assert found.protocol.extractor["name"] == "classifier"
    assert found.protocol.extractor["accuracy"] == 0.1
    assert found.classes is not None
    assert [each.label for each in found.classes] == list(range(10))
    assert sum(each.share for each in found.classes) == pytest.approx(1)
    assert found.accuracy is None  # samples were told nothing


def test_features_are_kept_and_damaged_ones_made_anew(
    run: inkdrop.Run, cache: Path, untrained: TrainedClassifier
) -> None:
    from inkdrop.measuring import _of_classifier

    examples = run.load_data().train.take(range(40))
    extractor = _of_classifier(untrained)
    made = features_of(extractor, examples, Processes())
    (file,) = (cache / FOLDER).iterdir()
    content = file.read_bytes()
    before = file.stat().st_mtime_ns
    assert np.array_equal(features_of(extractor, examples, Processes()).values, made.values)
    assert file.stat().st_mtime_ns == before
    for damage in (content[:-7], content[:-1] + bytes([content[-1] ^ 1]), b""):
        file.write_bytes(damage)
        again = features_of(extractor, examples, Processes())
        assert np.array_equal(again.values, made.values)
        assert again.logits is not None
        assert file.read_bytes() == content
    features_of(extractor, examples, Processes(), mirrored=True)
    features_of(extractor, examples.take(range(20)), Processes())
    assert len(list((cache / FOLDER).iterdir())) == 3


def test_other_images_are_brought_to_the_runs_size(run: inkdrop.Run, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "others"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 12, 12, 3), dtype=np.uint8)
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{i:02d}.png")
    found = one(run, **{**FEW, "metrics": ["kernel_distance"]}, data=(str(folder),))
    assert found.protocol.reference["split"] == "given"
    assert found.protocol.reference["count"] == 70
    assert set(found.figures["kernel_distance"].floor) == {"halves of the reference"}


def test_held_out_images_can_be_the_reference(run: inkdrop.Run) -> None:
    found = one(run, **{**FEW, "metrics": ["kernel_distance"]}, reference="held-out")
    assert found.protocol.reference["split"] == "held-out"
    assert set(found.figures["kernel_distance"].floor) == {
        "held-out halves",
        "held-out against train",
    }


def test_points_are_measured_as_they_are(points: inkdrop.Run) -> None:
    found = one(points, n=200, steps=2)
    assert set(found.figures) == {
        "sliced_wasserstein",
        "energy_distance",
        "mmd",
        "mode_weight_error",
        "far_from_modes",
    }
    for figure in found.figures.values():
        assert figure.value is not None
        assert figure.value > figure.floor["train halves"]  # it is hardly trained
    assert read_evaluations(points.path) == [found]


def test_both_likelihoods_stand_side_by_side(
    run: inkdrop.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inkdrop.scoring._EXAMPLES_OF_BOTH", 48)
    found = one(run, **FEW, likelihood=True)
    assert found.likelihood is not None
    for split in ("train", "held-out"):
        assert found.likelihood[split]["examples"] == 48
        assert found.likelihood[split]["bits_per_dim"] > 1
        assert found.likelihood[split]["standard_error"] > 0
    assert "over-fitting" in found.likelihood["verdict"]


def test_samples_are_told_classes_as_often_as_they_occur_where_these_are_uneven() -> None:
    from inkdrop.config import Config, UNetConfig
    from inkdrop.real_examples import RealExamples

    labels = torch.tensor([0] * 30 + [1] * 10)
    examples = ImageSet(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), labels, "uneven")
    config = Config(network=UNetConfig(channels=4, classes=2))

    class Told:
        config = Config(network=UNetConfig(channels=4, classes=2))

        def conditions(self, first: int, count: int) -> torch.Tensor:
            return torch.arange(first, first + count) % 2

    assert config.told == "classes"
    real = RealExamples(examples, "train", None, examples, None)
    conditions, words = evaluating._conditions(Told(), None, real)  # type: ignore[arg-type]
    assert words == "classes as often as they occur"
    told = conditions(0, 40)
    assert told is not None
    assert told.bincount().tolist() == [30, 10]
    assert torch.equal(torch.cat([conditions(0, 15), conditions(15, 25)]), told)  # type: ignore[list-item]
    even = RealExamples(examples.take(range(20, 40)), "train", None, examples, None)
    assert evaluating._conditions(Told(), None, even)[1] == "classes in turn"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["frechet"]}, "unknown metric 'frechet'"),
        ({"metrics": ["mmd"]}, "mmd is for points"),
        ({"metrics": ["inception_score"], "extractor": "pixels"}, "classes"),
        ({"extractor": "vgg"}, "unknown extractor 'vgg'"),
        ({"extractor": "dinov2:"}, "unknown extractor"),
        ({"sampler": "dim"}, "unknown sampler 'dim'"),
        ({"n": 1}, "n must be at least 2"),
        ({"n": 20, "metrics": ["frechet_distance"], "extractor": "pixels"}, "20 samples"),
        ({"n": 3, "metrics": ["coverage"], "extractor": "pixels"}, "needs at least 6 images"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"reference": "test"}, "reference must be train or held-out"),
        ({"guidance": 2.0}, "nothing to guide"),
        ({"classes": ["all"]}, "in turn anyway"),
        ({"classes": ["3"]}, "told no class"),
        ({"evaluations": [4, 4]}, "not all different"),
        ({"guidance": [1.0, 1.0]}, "given twice"),
        ({"weights": "old"}, "weights must be ema or raw"),
        ({"clip": "hard"}, "clip"),
        ({"data": ("points-rings",)}, "nothing to hold this run's images"),
    ],
)
def test_mistakes_are_told_before_any_work(
    run: inkdrop.Run, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("_evaluated", "collected"):
        monkeypatch.setattr(evaluating, work, lambda *_: pytest.fail("worked"))
    monkeypatch.setattr(
        "inkdrop.measuring.train_classifier", lambda *_, **__: pytest.fail("trained")
    )
    before = sorted(run.path.rglob("*"))
    with pytest.raises(InkdropError, match=words):
        write_evaluations(run, **options)
    assert sorted(run.path.rglob("*")) == before


def test_a_run_that_cannot_keep_what_is_found_is_told_before_any_work(
    run: inkdrop.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "real_examples", lambda *_: pytest.fail("worked"))
    file = run.path / "evaluation.json"
    for damage in ("{", "[]", '{"format_version": 1}'):
        file.write_text(damage)
        with pytest.raises(InkdropError, match=r"evaluation\.json is damaged"):
            write_evaluations(run, **FEW)
        assert file.read_text() == damage
    file.unlink()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InkdropError, match="cannot write into"):
        write_evaluations(run, **FEW)


def test_two_evaluations_at_once_are_both_kept(run: inkdrop.Run) -> None:
    found = one(run, **FEW)
    several = [replace(found, protocol=replace(found.protocol, seed=seed)) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: keep_evaluation(run.path, each), several))
    kept = read_evaluations(run.path)
    assert sorted(each.protocol.seed for each in kept) == list(range(8))


def test_what_is_left_out_the_second_time_stays(run: inkdrop.Run) -> None:
    found = one(run, **FEW)
    copies = Memorisation("none seen", "Nothing was near.", [])
    keep_evaluation(run.path, replace(found, memorisation=copies))
    bits = {"train": {"bits_per_dim": 4.0, "standard_error": 0.1, "examples": 10}}
    again = {"precision": Figure(0.25), "recall": Figure(0.5)}
    keep_evaluation(run.path, replace(found, figures=again, likelihood=bits))
    (kept,) = read_evaluations(run.path)
    assert (kept.memorisation, kept.likelihood) == (copies, bits)
    assert kept.figures == found.figures | again


def test_points_have_no_image_metrics_and_no_extractor(points: inkdrop.Run) -> None:
    with pytest.raises(InkdropError, match="frechet_distance is for images"):
        write_evaluations(points, metrics=["frechet_distance"])
    with pytest.raises(InkdropError, match="pixels is for images"):
        write_evaluations(points, extractor="pixels")


def test_a_classifier_needs_labels(tmp_path: Path, cache: Path) -> None:
    from inkdrop.real_examples import RealExamples

    images = ImageSet(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), None, "blank")
    real = RealExamples(images, "train", images, images, images)

    class Run:
        fingerprint = "none"

    with pytest.raises(InkdropError, match="blank has no classes"):
        _classifier(Run(), real, "cpu", None)  # type: ignore[arg-type]


def test_thumbnails_are_means_of_places() -> None:
    images = torch.arange(2 * 3 * 16 * 24).reshape(2, 3, 16, 24).remainder(256).to(torch.uint8)
    extractor = cheap_extractor((3, 16, 24))
    assert extractor.features == 3 * 64
    made = extractor(images).values.reshape(2, 3, 8, 8)
    assert made[0, 0, 0, 0] == pytest.approx(float(images[0, 0, :2, :3].float().mean()))
    assert cheap_extractor((1, 8, 8)).name == "pixels"


def test_the_command_prints_a_table_and_what_is_next(
    run: inkdrop.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--steps", "2", "-n", "90", "--extractor", "pixels", "--device", "cpu"]
    assert cli.run(["evaluate", str(run.path), *words]) == 0
    said = capsys.readouterr().out
    for expected in ("90 samples of seed 0", "Fréchet distance ↓", "halves", "copies of"):
        assert expected in said
    assert f"next: inkdrop report {run.path}" in said
    (kept,) = json.loads((run.path / "evaluation.json").read_text())["evaluations"]
    assert kept["command"] == f"inkdrop evaluate {run.path} {' '.join(words)}"


WORK = """
import sys
import inkdrop
from inkdrop.evaluating import write_evaluations
from inkdrop.processes import joined

with joined() as processes:
    assert processes.size == 2
    run = inkdrop.load(sys.argv[1], device="cpu")
    write_evaluations(
        run, n=90, steps=2, extractor="pixels", batch_size=32, metrics=["precision", "coverage"]
    )
    assert (run.path / "pictures" / "nearest.png").exists()
"""


def test_two_processes_find_what_one_finds(run: inkdrop.Run, tmp_path: Path) -> None:
    job = shutil.copytree(run.path, tmp_path / "job")
    script = tmp_path / "script.py"
    script.write_text(WORK)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [sys.executable, *launch, str(script), str(job)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = one(run, **QUICK, metrics=["precision", "coverage"])
    torch.set_num_threads(threads)
    (together,) = read_evaluations(job)
    assert replace(together, seconds={}) == replace(alone, seconds={})
    picture = Path("pictures") / "nearest.png"
    assert (job / picture).read_bytes() == (run.path / picture).read_bytes()
