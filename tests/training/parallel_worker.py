"""What each process of test_parallel.py does; also called there, as one process, to compare."""

import copy
import math
import os
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint
import torch.distributed.fsdp
from torch import Tensor, nn

from inkdrop.checkpoint import Checkpoint, NonFiniteError
from inkdrop.config import MLPConfig, UNetConfig
from inkdrop.errors import InkdropError
from inkdrop.networks.mlp import MLP
from inkdrop.networks.unet import UNet
from inkdrop.processes import Processes, joined
from inkdrop.sharded_files import (
    full,
    host_copy,
    is_shared,
    local,
    read_shards_into,
    write_shards,
)
from inkdrop.training.ema import EMA
from inkdrop.training.parallel import Parallel, load_full, same_weights
from inkdrop.training.sharded_saving import ShardedWriter

BATCH, PARTS, STEPS = 8, 2, 2
CPU = torch.device("cpu")
UNET = UNetConfig(channels=6, multipliers=(1, 2), blocks=1, attention_resolutions=(2,), classes=3)


class WithIdleParts(nn.Module):
    """A module of one's own, of which a layer and a whole block have nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 5), nn.Linear(2, 3)
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.head = nn.Linear(5, 2)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        h = self.used(x)
        for block in (self.blocks[0], self.blocks[2]):
            h = h + torch.tanh(block(h)) * self.scale
        return self.head(h)


class Tied(nn.Module):
    """A module whose block and head are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.head = nn.Linear(2, 2)
        self.head.weight = self.blocks[0].weight

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


MAKERS: dict[str, Any] = {
    "unet": lambda: UNet(UNET, 1, (4, 4)),
    "mlp": lambda: MLP(MLPConfig(width=7, blocks=2, waves=3), 2),
    "told": lambda: MLP(MLPConfig(width=7, blocks=1, vector=3), 2, null=True),
    "idle": WithIdleParts,
    "tied": Tied,
}


def make(name: str, seed: int = 0) -> nn.Module:
    """A network in float64 of which no parameter is zero, so that every gradient says something."""
    torch.manual_seed(seed)
    network = MAKERS[name]().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def batch(name: str, step: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    g = torch.Generator().manual_seed(step)
    shape = (BATCH, 1, 4, 4) if name == "unet" else (BATCH, 2)
    x = torch.randn(shape, dtype=torch.float64, generator=g)
    target = torch.randn(shape, dtype=torch.float64, generator=g)
    t = torch.randint(10, (BATCH,), generator=g)
    if name == "told":
        vectors = torch.randn(BATCH, 3, generator=g)
        vectors[0] = math.nan  # none is told, to one example of one process only
        return x, t, vectors, target
    classes = torch.randint(3, (BATCH,), generator=g) if name == "unet" else None
    return x, t, classes, target


class Training:
    """Some steps as the trainer takes them: parts of a batch, clipping, AdamW, the average."""

    def __init__(self, name: str, kind: str, processes: Processes, seed: int = 0) -> None:
        self.name, self.processes = name, processes
        network = make(name, seed)
        same_weights(network, processes)
        self.ema = EMA(network, 0.9)
        self.parallel = Parallel(network, CPU, processes, kind, unused=name == "idle")
        self.parallel.place(self.ema.network)
        self.parameters = dict(network.named_parameters())
        self.optimizer = torch.optim.AdamW(
            # Some gradients are zero but for rounding; the default eps would divide by that.
            self.parameters.values(),
            lr=1e-2,
            eps=1e-3,
            weight_decay=0.1,
            fused=True,
        )
        self.norms: list[float] = []
        self.step = 0

    def take_step(self) -> None:
        x, t, classes, target = batch(self.name, self.step)
        own = self.processes.share(BATCH)
        self.optimizer.zero_grad(set_to_none=True)
        size = len(own) // PARTS
        for part in range(PARTS):
            rows = slice(own.start + part * size, own.start + (part + 1) * size)
            with self.parallel.backward_context(last=part == PARTS - 1):
                told = None if classes is None else classes[rows]
                output = self.parallel.module(x[rows], t[rows], told)
                ((output - target[rows]).square().sum() / len(own)).backward()
        # The second step is not clipped.
        limit = 1e9 if self.step == 1 else 0.05
        self.norms.append(float(self.parallel.clip(self.parameters.values(), limit)))
        self.gradients = {
            name: full(p.grad).clone() for name, p in self.parameters.items() if p.grad is not None
        }
        self.optimizer.step()
        self.ema.update(self.parallel.network, self.step)
        self.step += 1
        if self.step > 1:
            return
        with torch.no_grad():  # as samples do between steps, of both
            self.ema.network(*batch(self.name, 99)[:3])
            self.parallel.network(*batch(self.name, 99)[:3])

    def tensors(self) -> dict[str, Tensor]:
        moments = {
            f"optimizer/{kind}/{name}": value
            for name, p in self.parameters.items()
            for kind, value in self.optimizer.state.get(p, {}).items()
        }
        weights = {f"weights/{k}": v for k, v in self.parallel.network.state_dict().items()}
        averages = {f"ema/{k}": v for k, v in self.ema.network.state_dict().items()}
        return {**weights, **averages, **moments}

    def results(self) -> dict[str, Tensor]:
        """All of it, whole."""
        found = {name: full(tensor).clone() for name, tensor in self.tensors().items()}
        found |= {f"gradient/{name}": g for name, g in self.gradients.items()}
        found["norms"] = torch.tensor(self.norms, dtype=torch.float64)
        return found


def trained(name: str, kind: str, processes: Processes, seed: int = 0) -> Training:
    training = Training(name, kind, processes, seed)
    for _ in range(STEPS):
        training.take_step()
    return training


def train_all(processes: Processes, out: Path) -> None:
    """Every kind of network both ways; the results, and the shards of the U-Net's."""
    for kind in ("ddp", "fsdp"):
        for name in MAKERS:
            # Other weights in each process to begin with: the first one's count.
            training = trained(name, kind, processes, seed=processes.rank)
            assert training.parallel.sharded == (kind == "fsdp")
            parts = [is_shared(p) for p in training.parameters.values()]
            assert all(parts) if kind == "fsdp" else not any(parts)
            results = training.results()
            norms = processes.gather(results["norms"][None])
            assert (norms == norms[0]).all(), "the processes do not agree"
            safetensors.torch.save_file(
                results, out / f"{kind}-{name}-{processes.rank}.safetensors"
            )
            if kind == "fsdp" and name == "unet":
                write_in_a_thread(training, out)
                read_back(training, out)
                autocast_works(training)
                an_overflow_in_one_skips_the_step_in_all(training)
    refuses_a_scalar_parameter(processes)
    one_disk_refuses(processes, out)


def write_in_a_thread(training: Training, out: Path) -> None:
    group = dist.new_group(backend="gloo")
    kept = {name: host_copy(tensor) for name, tensor in training.tensors().items()}
    kept = {name: host_copy(tensor, kept[name]) for name, tensor in training.tensors().items()}
    history = {"losses": torch.arange(3.0)}
    checkpoint = Checkpoint(2, {"all": kept, "timesteps": history}, {"seconds": 1.5}, 0.25)
    writer = ShardedWriter(training.processes)
    failed = []

    def write() -> None:
        try:
            write_shards(out / "shards", kept, group)
            writer(out / "checkpoints", checkpoint, 1)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    other = copy.copy(training)  # of the same tensors: training goes on while they are written
    while True:
        other.take_step()
        alive = torch.tensor([thread.is_alive()])
        if not training.processes.gather(alive).any():
            break
    thread.join()
    assert not failed, failed
    one_has_what_is_not_finite(training.processes, checkpoint, out, writer)
    expected = trained("unet", "fsdp", training.processes).results()
    read_shards_into(out / "shards", training.tensors())
    for name, tensor in training.tensors().items():
        assert torch.equal(full(tensor), expected[name]), name


def one_has_what_is_not_finite(
    processes: Processes, checkpoint: Checkpoint, out: Path, writer: ShardedWriter
) -> None:
    tensors = dict(checkpoint.tensors["all"])
    name = "weights/stem.weight"
    tensors[name] = host_copy(tensors[name])
    if not processes.first:
        local(tensors[name])[-1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"stem\.weight of the all"):
        writer(out / "checkpoints", Checkpoint(3, {"all": tensors}, {}), 1)


def read_back(training: Training, out: Path) -> None:
    """What one process wrote, into parts; and whole tensors into parts."""
    fresh = Training("unet", "fsdp", training.processes, seed=5)
    weights = {f"weights/{k}": v for k, v in fresh.parallel.network.state_dict().items()}
    read_shards_into(out / "of-one", weights)
    expected = trained("unet", "ddp", Processes()).parallel.network.state_dict()
    for name, tensor in fresh.parallel.network.state_dict().items():
        assert torch.equal(full(tensor), expected[name]), name
    before = make("unet", seed=6).state_dict()
    load_full(fresh.parallel.network, before)
    for name, tensor in fresh.parallel.network.state_dict().items():
        assert torch.equal(full(tensor), before[name]), name


def autocast_works(training: Training) -> None:
    network = make("mlp").float()
    plain = copy.deepcopy(network)
    parallel = Parallel(network, CPU, training.processes, "fsdp")
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    for module in (parallel.module, plain):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            module(x, torch.arange(8), None).square().sum().backward()
    for name, p in parallel.network.named_parameters():
        torch.testing.assert_close(full(p.grad), plain.get_parameter(name).grad)


def an_overflow_in_one_skips_the_step_in_all(training: Training) -> None:
    parallel = Parallel(make("mlp").float(), CPU, training.processes, "fsdp")
    parameters = list(parallel.network.parameters())
    optimizer = torch.optim.AdamW(parameters, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [full(p).clone() for p in parameters]
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    for overflow in (True, False):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = parallel.module(x, torch.arange(8), None).float().square().mean()
        scaler.scale(loss).backward()
        if overflow and training.processes.first:
            local(parameters[0].grad)[0] = float("inf")
        scaler.unscale_(optimizer)
        norm = float(parallel.clip(parameters, 1.0))
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(full(p), b) for p, b in zip(parameters, before, strict=True))
        assert same == overflow, overflow
        assert math.isfinite(norm) == (not overflow), norm
        assert scaler.get_scale() == 2.0**9


def refuses_a_scalar_parameter(processes: Processes) -> None:
    network = nn.Linear(2, 2)
    network.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(InkdropError, match=r"temperature.*--training.parallel ddp"):
        Parallel(network, CPU, processes, "fsdp")


def one_disk_refuses(processes: Processes, out: Path) -> None:
    folder = out / "refused"
    if processes.first:  # where the second's file should be, there is a folder
        (folder / "shard-00002-model-00001-of-00001.safetensors").mkdir(parents=True)
    processes.wait_for_all("a folder in the way")
    tensors = {"a": torch.ones(10), "b": torch.zeros(10)}
    with pytest.raises(OSError, match="process 1"):
        write_shards(folder, tensors)


def read_with_more(processes: Processes, out: Path) -> None:
    """What two processes wrote, into three's parts."""
    training = Training("unet", "fsdp", processes, seed=7)
    training.take_step()  # so that there are moments to fill
    read_shards_into(out / "shards", training.tensors())
    whole = {name: full(tensor).contiguous() for name, tensor in training.tensors().items()}
    if processes.first:
        safetensors.torch.save_file(whole, out / "read-by-three.safetensors")


def run(task: Any, rank: int, size: int, port: int, out: Path) -> None:
    """Be one process of a job, in an environment like that which torchrun makes."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with joined() as processes:
        assert (processes.rank, processes.size) == (rank, size)
        task(processes, out)


def launch(task: Any, size: int, out: Path) -> None:
    """Fork a job's processes, which saves each of them the imports; end all when one fails."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = set()
    for rank in range(size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside a thread
            child = os.fork()
        if child == 0:
            status = 1
            try:
                run(task, rank, size, store.port, out)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.add(child)
    failed = False
    while children:
        child, status = os.wait()
        children.remove(child)
        failed = failed or status != 0
        if failed:
            for other in children:
                os.kill(other, signal.SIGKILL)
    if failed:
        sys.exit(f"{task.__name__} failed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    launch(train_all, 2, Path(sys.argv[1]))
    launch(read_with_more, 3, Path(sys.argv[1]))
