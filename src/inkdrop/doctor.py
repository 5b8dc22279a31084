"""`inkdrop doctor`: what this machine is, and whether it will do."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from .build import build_denoiser, choose_device
from .config import Config, UNetConfig
from .diffusion import objectives
from .environment import describe, device_name, package_version
from .errors import InkdropError
from .randomness import normal, torch_seeded

_LOW_DISK = 2 * 1024**3


def examine(console: Console) -> int:
    """Print what was found; returns 0 when inkdrop can train here, 1 when something is wrong."""
    device = choose_device("auto")
    about = describe(device)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("inkdrop", str(about["versions"]["inkdrop"]))
    table.add_row("python", f"{about['python']} on {about['platform']}")
    table.add_row("torch", str(about["versions"]["torch"]))
    table.add_row("processor", f"{about['processor']}, {os.cpu_count()} cores")
    table.add_row("threads", f"{about['threads']} (OMP_NUM_THREADS sets them)")
    table.add_row("device", device_name(device))
    table.add_row("precision", _precisions(device))
    table.add_row("memory", _memory())
    free = shutil.disk_usage(Path.cwd()).free
    table.add_row("disk", f"{free / 1024**3:.1f} GiB free here")
    table.add_row("data", _data())
    tensorboard = package_version("tensorboard")
    table.add_row(
        "tensorboard", tensorboard or "not installed (pip install 'inkdrop[tensorboard]')"
    )
    console.print(table)

    faults = []
    if free < _LOW_DISK:
        faults.append(f"only {free / 1024**3:.1f} GiB of disk is free: checkpoints need room")
    if not os.access(Path.cwd(), os.W_OK):
        faults.append(
            f"{Path.cwd()} cannot be written to: runs go there unless --out says otherwise"
        )
    try:
        console.print(_trial(device), highlight=False)
    except InkdropError as error:
        faults.append(str(error))
    for fault in faults:
        console.print(f"[bold red]✗[/] {fault}", highlight=False)
    if not faults:
        console.print("[bold green]✓[/] ready; start with: inkdrop train digits", highlight=False)
    return 1 if faults else 0


def _trial(device: torch.device) -> str:
    """Trial steps of a small network: their speed, and whether they repeat bit for bit."""
    batch, shape = 64, (1, 16, 16)
    x_start = normal((batch, *shape), 0, "doctor", device=device)
    t = torch.arange(batch, device=device) * 15

    def steps(count: int) -> tuple[float, torch.Tensor]:
        with torch_seeded(0, "doctor"):
            denoiser = build_denoiser(Config(network=UNetConfig(channels=32)), shape)
        denoiser.network.to(device)
        optimizer = torch.optim.AdamW(denoiser.network.parameters(), lr=1e-3)
        for _ in range(count):
            optimizer.zero_grad()
            loss = objectives.simple(denoiser, x_start, t, x_start.flip(0)).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        value = loss.item()  # waits for the device
        return value, torch.cat([p.detach().flatten() for p in denoiser.network.parameters()])

    first_loss, first = steps(2)
    began = time.perf_counter()
    count = 5
    steps(count)
    rate = count * batch / (time.perf_counter() - began)
    again_loss, again = steps(2)
    if not (first.isfinite().all() and again.isfinite().all()):
        raise InkdropError("a trial training step gave weights that are not finite")
    same = first_loss == again_loss and torch.equal(first, again)
    repeat = "repeats bit for bit" if same else "does not repeat bit for bit on this device"
    return f"trial        {rate:,.0f} images/s on a small network (16×16); training {repeat}"


def _precisions(device: torch.device) -> str:
    if device.type == "cuda":
        return "float32, float16" + (", bfloat16" if torch.cuda.is_bf16_supported() else "")
    return "float32" if device.type == "cpu" else "float32, float16"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{free / 1024**3:.1f} of {total / 1024**3:.1f} GiB free"


def _data() -> str:
    root = os.environ.get("INKDROP_DATA")
    if not root:
        return (
            "INKDROP_DATA is not set: MNIST and CIFAR-10 come from the hub unless --data is given"
        )
    if not Path(root).is_dir():
        return f"INKDROP_DATA is {root}, which is not a folder"
    found = sorted(p.name for p in Path(root).iterdir() if p.is_dir())
    return f"{root}: {', '.join(found) or 'empty'}"
