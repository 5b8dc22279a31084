"""How well does the classifier know MNIST, and how fast is it trained and asked? Some seeds.

    python benchmarks/classifier.py

For each seed: train by the defaults of `inkdrop classifier train mnist` on the 60,000 training
images, and take the accuracy on the 10,000 test images. Then make features of these, in batches of
256, and take the fastest of three times. Seconds are those of a clock; processor seconds are those
of all threads, and tell how long it takes where nothing else runs. MNIST is read from $INKDROP_DATA
or fetched. Writes results/classifier.json.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import write_result

from inkdrop.build import choose_device
from inkdrop.classifying import TrainedClassifier, train_classifier
from inkdrop.data.examples import Examples, to_x_start
from inkdrop.data.loading import load_data
from inkdrop.data.stream import held_out_split
from inkdrop.environment import device_name

BATCH, REPEATS = 256, 3

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default="mnist", help="a set's name, or where images lie")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--epochs", type=int, help="passes over the images, if not the default")
parser.add_argument("--flip", action="store_true", help="mirror half of the images in training")
parser.add_argument("--device", default="auto")
parser.add_argument("--name", default="classifier", help="of the result")
options = parser.parse_args()

source = load_data(options.data)
train, held_out = held_out_split(source.train, source.test, 256)
tested = source.test or held_out
if tested is None:
    raise SystemExit("too few images to test a classifier on")
device = choose_device(options.device)


def feature_seconds(kept: TrainedClassifier, examples: Examples) -> float:
    values, times = examples.values.to(device), []
    with torch.inference_mode():
        for _ in range(REPEATS):
            began = time.perf_counter()
            parts = [kept.network.features(to_x_start(batch)) for batch in values.split(BATCH)]
            torch.cat(parts).cpu()
            times.append(time.perf_counter() - began)
    return min(times)


rows = []
for seed in options.seeds:
    with tempfile.TemporaryDirectory() as temporary:
        began, cpu = time.perf_counter(), time.process_time()
        kept = train_classifier(
            train,
            tested,
            Path(temporary) / "classifier",
            epochs=options.epochs,
            seed=seed,
            horizontal_flip=options.flip,
            device=options.device,
        )
        row = {
            "seed": seed,
            "epochs": kept.protocol["epochs"],
            "accuracy": kept.accuracy,
            "wrong": round((1 - kept.accuracy) * len(tested)),
            "seconds": round(time.perf_counter() - began, 1),
            "processor_seconds": round(time.process_time() - cpu, 1),
        }
        taken = feature_seconds(kept, tested)
        row["features_per_second"] = round(len(tested) / taken)
        row["seconds_of_10000_features"] = round(taken * 10_000 / len(tested), 2)
    rows.append(row)
    print(row, flush=True)

path = write_result(
    options.name,
    {
        "data": options.data,
        "train": len(train),
        "tested": len(tested),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "parameters": sum(weights.numel() for weights in kept.network.parameters()),
        "features": kept.network.head.in_features,
        "median_accuracy": statistics.median(row["accuracy"] for row in rows),
        "lowest_accuracy": min(row["accuracy"] for row in rows),
        "seeds": rows,
    },
)
print(f"written to {path}")
