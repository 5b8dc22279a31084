"""Two processes that share a network, whole or in parts, compute what one computes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn

from inkdrop.checkpoint import newest_whole, read_checkpoint
from inkdrop.errors import InkdropError
from inkdrop.processes import Processes
from inkdrop.sharded_files import read_shards, read_shards_into, write_shards
from inkdrop.training.ema import EMA
from inkdrop.training.parallel import Parallel, load_full, same_weights

sys.path.insert(0, str(Path(__file__).parent))
import parallel_worker as worker
from parallel_worker import CPU, MAKERS, make, trained

ALONE = Processes()


@pytest.fixture(scope="module")
def of_many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two processes, and of three; what only they can check is checked there."""
    out = tmp_path_factory.mktemp("parallel")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    write_shards(out / "of-one", trained("unet", "ddp", ALONE).tensors())
    dist.destroy_process_group()
    # No warning of torch's may reach a user.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, worker.__file__, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return out


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", list(MAKERS))
def test_two_processes_compute_what_one_does(of_many: Path, kind: str, name: str) -> None:
    expected = trained(name, "ddp", ALONE).results()
    for rank in range(2):
        path = of_many / f"{kind}-{name}-{rank}.safetensors"
        torch.testing.assert_close(
            safetensors.torch.load_file(path), expected, rtol=1e-12, atol=1e-12
        )


def test_clipping_and_the_second_step_did_something() -> None:
    norms = trained("mlp", "ddp", ALONE).norms
    assert all(norm > 0.05 for norm in norms)
    assert len(set(norms)) == worker.STEPS


def test_one_process_puts_the_shards_of_many_together(of_many: Path) -> None:
    written = safetensors.torch.load_file(of_many / "fsdp-unet-0.safetensors")
    read = read_shards(of_many / "shards")
    assert read.keys() == {k for k in written if not k.startswith(("gradient/", "norms"))}
    for name, tensor in read.items():
        assert torch.equal(tensor, written[name]), name
    files = sorted(path.name for path in (of_many / "shards").iterdir())
    assert len(files) == 2, files
    assert all(name.endswith(".safetensors") for name in files), files

    network = make("unet", seed=3)
    read_shards_into(
        of_many / "shards", {f"ema/{name}": t for name, t in network.state_dict().items()}
    )
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, written[f"ema/{name}"]), name


def test_a_checkpoint_of_two_is_whole_and_read_by_one(of_many: Path) -> None:
    folder = of_many / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]  # and none half written
    path = newest_whole(folder, pytest.fail)
    read = read_checkpoint(path, ("all", "timesteps"))
    assert (read.step, read.state) == (2, {"seconds": 1.5})
    assert read.tensors["timesteps"]["losses"].tolist() == [0, 1, 2]
    for name, tensor in read_shards(of_many / "shards").items():
        assert torch.equal(read.tensors["all"][name], tensor), name
    copy = of_many / "damaged" / path.name
    shutil.copytree(path, copy)
    shard = sorted((copy / "all").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(InkdropError, match="damaged"):
        read_checkpoint(copy, ("all",))


def test_the_shards_of_two_are_cut_anew_for_three(of_many: Path) -> None:
    read = safetensors.torch.load_file(of_many / "read-by-three.safetensors")
    written = read_shards(of_many / "shards")
    assert read.keys() == written.keys()
    for name, tensor in read.items():
        assert torch.equal(tensor, written[name]), name


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_process_trains_the_network_itself(kind: str) -> None:
    network = make("mlp")
    same_weights(network, ALONE)
    parallel = Parallel(network, CPU, ALONE, kind)
    assert parallel.module is parallel.network is network
    assert not parallel.sharded
    for last in (False, True):
        with parallel.backward_context(last=last):
            parallel.module(torch.ones(2, 2).double(), torch.arange(2), None).sum().backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    norm = float(parallel.clip(network.parameters(), 0.5))
    assert norm == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item())
    assert float(parallel.clip(network.parameters(), 9.0)) == pytest.approx(0.5, rel=1e-5)


def test_whole_tensors_of_other_names_are_refused() -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*foreign"):
        load_full(network, {**nn.Linear(2, 2).state_dict(), "foreign": torch.ones(1)})


def test_the_average_of_a_network_that_was_shared_follows_it_when_made_before() -> None:
    network = make("mlp")
    ema = EMA(network, 0.5)
    parallel = Parallel(network, CPU, ALONE, "fsdp")
    parallel.place(ema.network)
    nn.init.ones_(network.head.bias)
    ema.update(network, 100)
    before = make("mlp").head.bias
    torch.testing.assert_close(ema.network.head.bias, 0.5 * (before + 1))
