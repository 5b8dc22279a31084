"""Runs are held against the data they share, by the same protocol."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

import inkdrop
from inkdrop.config import Config, MLPConfig
from inkdrop.errors import InkdropError
from inkdrop.report import pictures
from inkdrop.report.compare import Comparison, compare, default_folder
from inkdrop.report.truth import as_rows, truth_of


def trained(folder: Path, source: str = "points-gmm", **how: object) -> Path:
    config = Config(
        name=source,
        data={"source": source},
        schedule={"kind": "cosine", "timesteps": 20},
        network=MLPConfig(width=8, blocks=1),
        training={"steps": 4, "batch_size": 32},
        logging={"metrics_every": 2, "held_out_every": 2, "samples_every": 0},
        **how,
    )
    return inkdrop.train(config, folder, progress=False).path


@pytest.fixture(scope="module")
def runs(points_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("compared")
    return [points_run, trained(folder / "velocity", prediction="velocity")]


@pytest.fixture(scope="module")
def compared(runs: list[Path]) -> Comparison:
    return compare(runs, n=400, steps=10, seed=2)


def test_each_run_has_a_row_and_so_have_the_real_and_the_perfect_ones(
    compared: Comparison,
) -> None:
    names = [row["name"] for row in compared.table]
    assert names == ["points", "velocity", "real", "oracle"]
    first, second, real, oracle = compared.table
    assert (first["prediction"], second["prediction"]) == ("noise", "velocity")
    assert first["loss_unit"] == "mean squared error of the noise"
    assert (first["steps"], second["steps"]) == (6, 4)
    for name in ("energy_distance", "far_from_modes"):
        assert min(first[name], second[name]) > 3 * oracle[name]
    for name in compared.measures:
        assert oracle[name] == pytest.approx(real[name], abs=0.06)
    assert "held_out_loss" not in real


def test_the_numbers_are_those_of_the_samples(runs: list[Path], compared: Comparison) -> None:
    run = inkdrop.load(runs[1])
    truth = truth_of(run)
    assert truth is not None
    made = as_rows(inkdrop.sample(run.denoiser, 400, "ddim", 10, seed=2))
    row = compared.table[1]
    for name, measure in compared.measures.items():
        assert row[name] == pytest.approx(measure.of(truth.real(400), made), rel=1e-4)
    assert compared.table[2]["energy_distance"] == truth.floor(400)["energy_distance"]
    assert (
        row["held_out_loss"]
        == [r for r in run.metrics if "held_out_loss" in r][-1]["held_out_loss"]
    )


def test_a_comparison_is_written_with_its_protocol_and_pictures(
    compared: Comparison, tmp_path: Path
) -> None:
    folder = compared.write(tmp_path / "new" / "comparison")
    assert {path.name for path in folder.iterdir()} == {
        "comparison.json",
        "comparison.md",
        "comparison.html",
        "loss.png",
        "samples.png",
        "marginals.png",
        "reverse.png",
    }
    content = json.loads((folder / "comparison.json").read_text())
    assert content["table"] == compared.table
    assert content["protocol"]["n"] == 400
    assert content["protocol"]["evaluations"] == {"points": 10, "velocity": 10}
    text = (folder / "comparison.md").read_text()
    assert text.count("\n| ") == 5
    for name in compared.figures:
        assert f"({name}.png)" in text
    console = Console(width=120)
    with console.capture() as capture:
        console.print(compared.printed())
    for said in ("points", "velocity", "real", "oracle", "held-out loss", "energy distance"):
        assert said in capture.get()


def test_images_are_compared_by_their_pixels(finished_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(finished_run, tmp_path / "digits"))
    found = compare([finished_run, other], n=40, steps=3)
    assert set(found.measures) == {
        "frechet_distance",
        "sliced_wasserstein",
        "energy_distance",
        "nearest_ratio",
    }
    first, second, real = found.table
    assert first["name"] != second["name"]
    assert first["energy_distance"] == second["energy_distance"] > 2 * real["energy_distance"]
    assert set(found.figures) == {"loss", "samples", "reverse"}
    for figure in found.figures.values():
        assert pictures.png(figure)


def test_runs_of_the_same_name_are_told_apart_by_the_folders_above(
    points_run: Path, tmp_path: Path
) -> None:
    paths = [shutil.copytree(points_run, tmp_path / place / "run") for place in ("a", "b")]
    found = compare(paths, n=20, steps=2)
    assert [row["name"] for row in found.table][:2] == ["a/run", "b/run"]


def test_each_schedule_has_its_perfect_denoiser(runs: list[Path], tmp_path: Path) -> None:
    config = inkdrop.load(runs[0]).config.model_copy(deep=True)
    config.schedule.timesteps = 30
    other = inkdrop.train(config, tmp_path / "longer", progress=False)
    found = compare([runs[0], other], n=20, steps=5)
    assert [row["name"] for row in found.table][3:] == ["oracle as points", "oracle as longer"]


def test_runs_on_other_data_are_refused(
    runs: list[Path], finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(InkdropError, match=r"examples of shape \(1, 8, 8\)"):
        compare([runs[0], finished_run])
    rings = trained(tmp_path / "rings", "points-rings")
    with pytest.raises(InkdropError, match=r"other data \(points-rings\) than points"):
        compare([runs[0], rings])
    assert "oracle" not in [row["name"] for row in compare([rings, _copy(rings)], n=9).table]


def test_a_comparison_of_one_is_refused(runs: list[Path]) -> None:
    for few in ([], runs[:1]):
        with pytest.raises(InkdropError, match=f"at least two runs, got {len(few)}"):
            compare(few)
    with pytest.raises(InkdropError, match="is given twice"):
        compare([runs[0], runs[0]])


def test_wrong_arguments_are_refused_before_any_work(runs: list[Path]) -> None:
    with pytest.raises(InkdropError, match="n must lie between 1 and 30,000, half"):
        compare(runs, n=30_001)
    with pytest.raises(InkdropError, match="unknown sampler 'dddim'"):
        compare(runs, sampler="dddim")
    with pytest.raises(InkdropError, match="steps must lie between"):
        compare(runs, steps=21)


def test_data_of_ones_own_has_to_be_given(tmp_path: Path) -> None:
    source = inkdrop.Source(inkdrop.PointSet(torch.randn(60, 3), None, "cloud"), None)
    config = Config(
        schedule={"kind": "cosine", "timesteps": 10},
        network=MLPConfig(width=8, blocks=1),
        training={"steps": 1, "batch_size": 8},
    )
    first = inkdrop.train(config, tmp_path / "a", source=source, progress=False)
    second = _copy(first.path)
    with pytest.raises(InkdropError, match="is the user's own: pass it"):
        compare([first, second])
    found = compare([first, second], source=source)
    assert found.protocol.n == 30
    assert set(found.figures) == {"loss"}


def test_the_default_folder_is_beside_the_runs() -> None:
    assert default_folder(["/r/a", "/r/b/"]) == Path("/r/comparison")
    assert default_folder(["/r/x/a", "/r/y/b"]) == Path("/r/comparison")


def _copy(run: Path) -> Path:
    return Path(shutil.copytree(run, run.with_name(f"{run.name} again"), dirs_exist_ok=True))
