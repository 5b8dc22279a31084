"""How long the features of an evaluation take, and how much memory a longer one takes.

    python benchmarks/evaluation_speed.py

Weights are random: they cost what trained ones do. Each number of samples is evaluated in a process
of its own, whose greatest resident memory is told.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import write_result

IMAGES, SHAPE = 10_000, (1, 28, 28)
SAMPLES = (1_000, 4_000, 16_000)


def features() -> float:
    """Seconds for the features of 10,000 images of 28×28."""
    from inkdrop.evaluation.extractors import classifier_extractor
    from inkdrop.networks.classifier import FEATURES, Classifier

    network = Classifier(SHAPE, 10).requires_grad_(False).eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    extractor = classifier_extractor(
        network, fingerprint="random", features=FEATURES, classes=10, shape=(1, 28, 28)
    )
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *SHAPE), dtype=np.uint8)
    batches = torch.from_numpy(images).split(256)  # type: ignore[no-untyped-call]
    extractor(batches[0])
    began = time.perf_counter()
    for batch in batches:
        extractor(batch)
    return time.perf_counter() - began


def one(folder: str, n: int) -> None:
    """Evaluate n samples of 32×32 in colour, and print what it took of memory."""
    import inkdrop
    from inkdrop import measuring
    from inkdrop.evaluation.extractors import classifier_extractor
    from inkdrop.networks.classifier import FEATURES, Classifier

    shape = (3, 32, 32)
    network = Classifier(shape, 10).requires_grad_(False).eval()
    extractor = classifier_extractor(
        network, fingerprint="random", features=FEATURES, classes=10, shape=shape
    )
    measuring._extractor = lambda *_: (extractor, {})
    run = inkdrop.load(folder, device="cpu")
    began = time.perf_counter()
    inkdrop.evaluate(
        run,
        source=images(),
        n=n,
        steps=1,
        metrics=["frechet_distance"],
        memorisation=False,
    )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"samples": n, "seconds": round(seconds, 2), "peak_megabytes": round(peak)}))


def images() -> np.ndarray:
    """Noise to train on."""
    return np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)


def make_run(folder: Path) -> None:
    """A run of images of 12 kB each in float32: 16,000 of them are 200 MB."""
    import inkdrop
    from inkdrop.config import UNetConfig

    config = inkdrop.presets.digits()
    config.network = UNetConfig(
        channels=4, multipliers=(1,), blocks=1, attention_in_bottleneck=False
    )
    config.training.steps = 2
    config.logging.samples_every = 0
    inkdrop.train(config, folder, source=images(), progress=False)


def main() -> None:
    """Measure, print and keep the result."""
    if len(sys.argv) > 1:
        one(sys.argv[1], int(sys.argv[2]))
        return
    seconds = features()
    print(f"{IMAGES:,} features of 28×28: {seconds:.1f} s, {torch.get_num_threads()} threads")
    evaluations = []
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "run")
        for n in SAMPLES:
            command = [sys.executable, __file__, str(Path(folder) / "run"), str(n)]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            evaluations.append(json.loads(ended.stdout.splitlines()[-1]))
            print(evaluations[-1])
    figures = {
        "threads": torch.get_num_threads(),
        "features": {"images": IMAGES, "shape": SHAPE, "seconds": round(seconds, 2)},
        "evaluations": evaluations,
    }
    print(f"kept in {write_result('evaluation_speed', figures)}")


if __name__ == "__main__":
    main()
