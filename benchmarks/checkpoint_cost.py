"""What does a checkpoint cost the training that it is of?

    python benchmarks/checkpoint_cost.py

Saves the training state of the preset ho-cifar10's network (35.7 million parameters: weights,
averaged weights and Adam's two moments) as training does: copied to the host's memory, then
written by a thread. Measures the copy, what else `Saver.save` takes, the seconds of writing and the
CPU time that the thread takes for it; and the steps of the preset digits meanwhile, beside those
before and after, which say something on a machine that does nothing else.

What one checkpoint a minute costs is the time in `save`, and the thread's CPU time as a part of
what all of training's threads have. The first copy also makes the room for all later ones, and is
told apart. Writes results/checkpoint_cost.json, medians of --repeats.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from common import write_result

import inkdrop
from inkdrop.build import build_network
from inkdrop.checkpoint import Checkpoint, write_checkpoint
from inkdrop.training.saving import Saver
from inkdrop.training.trainer import Trainer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--folder", type=Path, help="on the disk to measure (default: a temporary one)")
options = parser.parse_args()
INTERVAL = 60.0


def seconds_of(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def write_timed(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write one, and remember the CPU time of this thread."""
    began = time.thread_time()
    write_checkpoint(folder, checkpoint, keep)
    thread_seconds.append(time.thread_time() - began)


thread_seconds: list[float] = []
with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
    network = build_network(inkdrop.presets.ho_cifar10().network, (3, 32, 32))
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    parts = {
        "weights": weights,
        "ema": {name: tensor.clone() for name, tensor in weights.items()},
        "optimizer": {
            f"{kind}/{name}": torch.rand_like(tensor)
            for kind in ("exp_avg", "exp_avg_sq")
            for name, tensor in weights.items()
        },
    }
    size = sum(t.numel() * t.element_size() for part in parts.values() for t in part.values())
    config = inkdrop.presets.digits()
    config.training.steps = 1_000_000
    config.training.device = "cpu"
    trainer = Trainer(config, Path(temporary) / "run")
    for _ in range(20):
        trainer.train_step()

    saver = Saver(Path(temporary) / "checkpoints", keep=1, write=write_timed)
    copying, beyond, writing, alone, meanwhile = [], [], [], [], []
    for repeat in range(options.repeats + 1):
        steps = [seconds_of(trainer.train_step) for _ in range(20)]
        copied, stalled = saver.copied, saver.stalled
        began = time.perf_counter()
        saver.save(Checkpoint(repeat, parts, {"seconds": 1.0}))
        copied, stalled = saver.copied - copied, saver.stalled - stalled
        steps_meanwhile = []
        while saver.busy:
            steps_meanwhile.append(seconds_of(trainer.train_step))
        took = time.perf_counter() - began - stalled
        saver.wait()
        steps += [seconds_of(trainer.train_step) for _ in range(20)]
        if repeat == 0:  # which makes the room
            first_copy = copied
            continue
        copying.append(copied)
        beyond.append(stalled - copied)
        writing.append(took)
        alone.append(median(steps))
        meanwhile.append(median(steps_meanwhile))
    synchronous = median(
        seconds_of(lambda: write_checkpoint(Path(temporary) / "plain", Checkpoint(1, parts, {}), 1))
        for _ in range(options.repeats)
    )

stalled = median(copying) + median(beyond)
threads = torch.get_num_threads()
lost = stalled + median(thread_seconds[1:]) / threads
figures = {
    "parameters": sum(tensor.numel() for tensor in weights.values()),
    "megabytes": round(size / 1e6, 1),
    "threads": threads,
    "repeats": options.repeats,
    "first_copy_seconds": round(first_copy, 4),
    "copy_seconds": round(median(copying), 4),
    "stall_beyond_the_copy_seconds": round(median(beyond), 5),
    "longest_stall_beyond_the_copy_seconds": round(max(beyond), 5),
    "writing_seconds": round(median(writing), 3),
    "writing_cpu_seconds": round(median(thread_seconds[1:]), 3),
    "step_seconds_alone": round(median(alone), 4),
    "step_seconds_while_writing": round(median(meanwhile), 4),
    "lost_of_a_minute_percent": round(100 * lost / INTERVAL, 3),
    "stalled_of_a_minute_percent": round(100 * stalled / INTERVAL, 3),
    "written_without_a_thread_seconds": round(synchronous, 3),
}
print(*(f"{name}: {value}" for name, value in figures.items()), sep="\n")
print(f"written to {write_result('checkpoint_cost', figures)}")
