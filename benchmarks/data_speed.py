"""How fast are images checked, cached and streamed, and what memory does that take?

    python benchmarks/data_speed.py [FOLDER]

FOLDER is that of the data sets, $INKDROP_DATA by default; CIFAR-10's Parquet (60,000 JPEGs of
32×32) is read from it. Measures the check, the decoded cache, the time from starting `train` to its
first step on the cached set, batches from the cache with no network, what training waits for them,
and the resident memory while 200,000 JPEGs of 256×256 are streamed from tar shards (1,000 different
ones, linked 200 times). Writes results/data_speed.json and .png.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import psutil
from common import RESULTS, write_result
from PIL import Image

REPEATS, BATCH = 3, 128
SHARDS, PER_SHARD, SIDE = 200, 1000, 256

FIRST_STEP = """
import sys
import inkdrop
from inkdrop.training.trainer import Trainer
config = inkdrop.presets.cifar10()
config.network = inkdrop.config.UNetConfig(channels=16, multipliers=(1, 1), blocks=1)
config.data.path = (sys.argv[1],)
config.training.batch_size = 16
config.training.steps = 1
Trainer(config, sys.argv[2]).train_step()
print("stepped", flush=True)
"""


def timed(command: list[str]) -> float:
    """Seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def first_step_seconds(cifar: Path, out: Path) -> float:
    """Seconds from starting Python to the end of the first training step."""
    command = [sys.executable, "-c", FIRST_STEP, str(cifar / "train.parquet"), str(out)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("stepped"):
                return round(time.perf_counter() - began, 2)
    raise RuntimeError("it did not come to its first step")


def check_rate(place: Path) -> list[int]:
    """Images a second of the check alone, start of its processes included."""
    from inkdrop.data.check import check
    from inkdrop.data.stored.recognise import recognise

    rates = []
    for _ in range(REPEATS):
        found = recognise([place])
        began = time.perf_counter()
        check(found, refresh=True)
        count = sum(len(part) for part in found if part is not None)
        rates.append(round(count / (time.perf_counter() - began)))
    return rates


def check_seconds(place: Path, scratch: Path) -> list[float]:
    """A whole `inkdrop data check`, with nothing cached."""
    program = [sys.executable, "-m", "inkdrop", "data", "check", str(place), "--no-trial"]
    out = ["--refresh", "--out", str(scratch / "check")]
    return [round(timed([*program, *out]), 2) for _ in range(REPEATS)]


def folder_of_jpegs(cifar: Path, folder: Path, count: int = 20_000) -> Path:
    """The first images as files of their own."""
    import pyarrow.parquet as pq

    rows = pq.read_table(cifar / "train.parquet").slice(0, count).column("img").to_pylist()
    folder.mkdir()
    for i, row in enumerate(rows):
        (folder / f"{i}.jpg").write_bytes(row["bytes"])
    return folder


def stream_rates(cifar: Path) -> dict[str, float]:
    """Images a second in batches from the cache, without a network."""
    from inkdrop.config import DataConfig
    from inkdrop.data.augment import Augmentation
    from inkdrop.data.loading import load_source
    from inkdrop.data.stream import Stream

    train = load_source(DataConfig(source="files", path=(str(cifar),))).source.train
    rates = {}
    for name, augmentation in (
        ("plain", Augmentation()),
        ("flipped", Augmentation(horizontal_flip=True)),
        ("non-leaking", Augmentation(non_leaking=0.12)),
    ):
        stream = Stream(train, BATCH, 0, augmentation, memory="mapped")
        steps = 40 if augmentation.non_leaking else 400
        for step in range(10):
            stream.batch(step)
        found = []
        for repeat in range(REPEATS):
            began = time.perf_counter()
            for step in range(repeat * steps, (repeat + 1) * steps):
                stream.batch(step)
            found.append(steps * BATCH / (time.perf_counter() - began))
        rates[name] = round(median(found))
        print(f"from the cache, {name}: {rates[name]:,} images/s", flush=True)
    return rates


def data_wait(cifar: Path, out: Path) -> float:
    """The share of its time that training waits for data: the median over the metrics' lines."""
    import inkdrop

    config = inkdrop.presets.cifar10()
    config.network = inkdrop.config.UNetConfig(channels=32, multipliers=(1, 2), patch_size=2)
    config.data.path = (str(cifar),)
    config.training.steps = 200
    config.logging.metrics_every = 20
    config.logging.samples_every = 0
    run = inkdrop.train(config, out, progress=False)
    return median(row["data_wait"] for row in run.metrics if "data_wait" in row)


def write_shards(folder: Path) -> None:
    """One tar of different JPEGs with their classes, and links to it under other names."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    first = folder / "shard-000.tar"
    with tarfile.open(first, "w") as tar:
        for i in range(PER_SHARD):
            coarse = Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            encoded = io.BytesIO()
            coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=75)
            for name, content in (
                (f"{i:05d}.jpg", encoded.getvalue()),
                (f"{i:05d}.cls", str(i % 10).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for shard in range(1, SHARDS):
        os.link(first, folder / f"shard-{shard:03d}.tar")


def streamed_memory(folder: Path) -> dict[str, list[float]]:
    """Resident memory, in MB, over one epoch; and the images seen by then."""
    from inkdrop.config import DataConfig
    from inkdrop.data.loading import load_source
    from inkdrop.data.stream import Stream

    data = DataConfig(source="files", path=(str(folder),), size=(SIDE,), streaming=True)
    stream = Stream(load_source(data).source.train, 64, 0)
    process, began = psutil.Process(), time.perf_counter()
    found: dict[str, list[float]] = {"images": [], "megabytes": [], "seconds": []}
    steps = SHARDS * PER_SHARD // 64
    for step in range(steps):
        stream.batch(step)
        if step % 25 == 0 or step == steps - 1:
            found["images"].append((step + 1) * 64)
            found["megabytes"].append(round(process.memory_info().rss / 1e6, 1))
            found["seconds"].append(round(time.perf_counter() - began, 1))
    return found


def draw(found: dict[str, list[float]], path: Path) -> None:
    """Memory over images seen."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(np.array(found["images"]) / 1000, found["megabytes"], color="#1f4e79")
    axes.set(
        xlabel="thousand images streamed (JPEG, 256×256)",
        ylabel="resident memory, MB",
        ylim=(0, 1100),
        xlim=(0, None),
    )
    axes.axhline(2**30 / 1e6, color="#999999", linestyle=":", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure all of it."""
    if sys.argv[1:2] == ["--stream"]:
        print(json.dumps(streamed_memory(Path(sys.argv[2]))))
        return
    root = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["INKDROP_DATA"])
    cifar = (root / "cifar10").resolve()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["INKDROP_CACHE"] = str(scratch / "cache")
        figures: dict[str, object] = {"parquet_check_seconds": check_seconds(cifar, scratch)}
        print("check of the Parquet, seconds", figures["parquet_check_seconds"], flush=True)
        folder = folder_of_jpegs(cifar, scratch / "jpegs")
        seconds = check_seconds(folder, scratch)
        figures["folder_check_images_per_second"] = [round(20_000 / s) for s in seconds]
        print("check of a folder, images/s", figures["folder_check_images_per_second"], flush=True)

        figures["check_alone_images_per_second"] = {
            "parquet": check_rate(cifar),
            "folder": check_rate(folder),
        }
        print("check alone, images/s", figures["check_alone_images_per_second"], flush=True)

        figures["first_start_seconds"] = first_step_seconds(cifar, scratch / "first")
        figures["cached_start_seconds"] = [
            first_step_seconds(cifar, scratch / f"again-{i}") for i in range(REPEATS)
        ]
        print("start to first step", figures["cached_start_seconds"], flush=True)
        figures["stream_images_per_second"] = stream_rates(cifar)
        figures["data_wait"] = data_wait(cifar, scratch / "run")
        print("waiting for data", figures["data_wait"], flush=True)

        write_shards(scratch / "shards")
        streamed = subprocess.run(  # on its own, so that nothing else is in its memory
            [sys.executable, __file__, "--stream", str(scratch / "shards")],
            check=True,
            capture_output=True,
            text=True,
        )
        memory = json.loads(streamed.stdout.splitlines()[-1])
        draw(memory, RESULTS / "data_memory.png")
        kept = {name: values[:: max(1, len(values) // 20)] for name, values in memory.items()}
        rate = memory["images"][-1] / memory["seconds"][-1]
        figures["streaming"] = {
            "images_per_second": round(rate),
            "largest_megabytes": max(memory["megabytes"]),
            **kept,
        }
        print(f"streamed {rate:,.0f} images/s in {max(memory['megabytes']):,.0f} MB", flush=True)
    print(f"written to {write_result('data_speed', figures)}")


if __name__ == "__main__":
    main()
