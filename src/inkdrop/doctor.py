"""`inkdrop doctor`: whether this machine will do, a preset fits on it, and a run is sound."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .build import augmentation_of, build_denoiser, build_network, choose_device
from .config import Config, UNetConfig
from .console import duration, say
from .data.images import image_size
from .diagnosis import Finding, check_checkpoints, diagnose
from .diffusion import objectives
from .environment import describe, device_name, package_version
from .errors import InkdropError, unknown_name
from .launcher import launched, rank_told
from .options import DoctorOptions
from .presets import PRESETS, preset
from .processes import joined
from .randomness import normal, torch_seeded
from .round_trip import between_two_processes, measure
from .run import load, read_config

_GIB = 1024**3
_LOW_DISK = 2 * _GIB
_FEW_FILES = 1024  # open at once
_SMALL_SHM = _GIB
_MARKS = {True: "[green]✓[/]", False: "[bold red]✗[/]", None: "[dim]–[/]"}
_SHAPES: dict[str, tuple[int, int, int]] = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "files": (3, 32, 32),
}


@dataclass
class _Findings:
    """Facts for a table, and what is wrong."""

    facts: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def show(self, console: Console, well: str) -> None:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, fact in self.facts.items():
            table.add_row(Text(name, style="dim"), Text(fact))
        console.print(table)
        say(console, "")
        for fault in self.faults:
            _mark(console, False, fault)
        if not self.faults:
            _mark(console, True, well)


def examine(target: str | None, options: DoctorOptions, console: Console) -> int:
    """Print what was found; returns 0 when all is well, 1 when something is wrong.

    Args:
        target: a run folder or a preset; None for the machine alone.

    Raises:
        InkdropError: for a target that is neither, or a device that cannot be used.
    """
    if rank_told() and target is not None:
        return 0  # one process of a job is enough
    if target is None:
        with joined() as processes:
            found = _machine(choose_device(options.device), options.trial)
            if processes.size > 1:  # all leave alike
                every = [found.faults] * processes.size
                dist.all_gather_object(every, found.faults)
                found.faults = list(dict.fromkeys(chain(*every)))
        if processes.first:
            _tell(found, "ready; start with: inkdrop train digits", options, console)
        return 1 if found.faults else 0
    device = choose_device(options.device)
    if (Path(target) / "config.json").exists():
        return _examine_run(Path(target), options, console)
    if target in PRESETS:
        found = _needs(preset(target), device, options.trial, None if options.json else console)
        _tell(found, f"it fits; start with: inkdrop train {target}", options, console)
        return 1 if found.faults else 0
    if Path(target).exists() or len(Path(target).parts) > 1:
        read_config(Path(target))  # says what it is not
    raise unknown_name("preset or run folder", target, PRESETS)


def _tell(found: _Findings, well: str, options: DoctorOptions, console: Console) -> None:
    if options.json:
        _print_json(asdict(found))
    else:
        found.show(console, well)


def _mark(console: Console, ok: bool | None, text: str) -> None:
    console.print(_MARKS[ok], Text(text), highlight=False, soft_wrap=True)


def _print_json(content: dict[str, Any]) -> None:
    json.dump(content, sys.stdout, indent=1, ensure_ascii=False)
    print()  # noqa: T201


# The machine


def _machine(device: torch.device, trial: bool) -> _Findings:
    """What this machine is; under torchrun all processes of the job call this."""
    found = _Findings()
    facts, faults = found.facts, found.faults
    about = describe(device)
    facts["inkdrop"] = str(about["versions"]["inkdrop"])
    facts["python"] = f"{about['python']} on {about['platform']}"
    facts["torch"] = str(about["versions"]["torch"])
    facts["processor"] = f"{about['processor']}, {_cores()}"
    facts["threads"] = f"{about['threads']} (OMP_NUM_THREADS sets them)"
    facts["device"] = device_name(device)
    for name, fact in _devices():
        facts[name] = fact
    available, total = _memory()
    facts["memory"] = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    free = shutil.disk_usage(Path.cwd()).free
    facts["disk"] = f"{free / _GIB:.1f} GiB free here"
    facts.update(_limits())
    facts["data"] = _data()
    tensorboard = package_version("tensorboard")
    facts["tensorboard"] = tensorboard or "not installed (pip install 'inkdrop[tensorboard]')"
    if free < _LOW_DISK:
        faults.append(f"only {free / _GIB:.1f} GiB of disk is free: checkpoints need room")
    if not os.access(Path.cwd(), os.W_OK):
        faults.append(
            f"{Path.cwd()} cannot be written to: runs go there unless --out says otherwise"
        )
    try:
        facts["processes"] = _processes(device, faults)
    except InkdropError as error:
        faults.append(str(error))
    if trial:
        try:
            facts["trial"] = _trial(device)
        except InkdropError as error:
            faults.append(str(error))
    return found


def _processes(device: torch.device, faults: list[str]) -> str:
    """How processes reach each other: those of this job, or two that are started for it."""
    if not dist.is_available():
        return "this build of torch has no torch.distributed: one process only"
    backends = ", ".join(
        name
        for name, there in (
            ("gloo", dist.is_gloo_available()),
            ("nccl", dist.is_nccl_available()),
            ("mpi", dist.is_mpi_available()),
        )
        if there
    )
    if not launched():
        return f"{backends}; between two over gloo {between_two_processes()}"
    own = {
        "torch": str(torch.__version__),
        "inkdrop": str(package_version("inkdrop")),
        "kind of device": device.type,
    }
    every: list[dict[str, str]] = [own] * dist.get_world_size()
    dist.all_gather_object(every, own)
    for name in own:
        values = [each[name] for each in every]
        if len(set(values)) > 1:
            told = ", ".join(f"{value} in {rank}" for rank, value in enumerate(values))
            faults.append(
                f"the processes of this job differ in their {name} ({told}): they have to be alike"
            )
    if len({each["kind of device"] for each in every}) > 1:
        device = torch.device("cpu")  # gloo is the one backend that all of them have
    return f"{backends}; between the {len(every)} of this job {measure(device)}"


def _devices() -> list[tuple[str, str]]:
    """Every device, with the types it computes in and how fast beside float32."""
    devices = [("cpu", "")]
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        devices.append(
            (
                f"cuda:{i}",
                f"{about.name}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free, "
                f"capability {about.major}.{about.minor}; ",
            )
        )
    if torch.backends.mps.is_available():
        devices.append(("mps", ""))
    return [(name, about + _precisions(torch.device(name))) for name, about in devices]


def _precisions(device: torch.device) -> str:
    """Which types a product of matrices can be computed in, and its speed beside float32."""
    size = 512 if device.type == "cpu" else 2048
    took: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        try:
            ones = torch.ones(size, size, dtype=dtype, device=device)
            times = []
            for _ in range(3):
                began = time.perf_counter()
                if (ones @ ones)[0, 0].item() != size:  # also waits for the device
                    raise RuntimeError("a wrong product")
                times.append(time.perf_counter() - began)
            took[name] = min(times)
        except RuntimeError:
            continue
    if "float32" not in took:
        return "cannot multiply matrices"
    return ", ".join(
        name if name == "float32" else f"{name} (×{took['float32'] / seconds:.2g} as fast)"
        for name, seconds in took.items()
    )


def _cores() -> str:
    count = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    mine = f", {allowed} for this process" if allowed != count else ""
    return f"{count} core{'s' if count > 1 else ''}{mine}"


def _memory() -> tuple[int, int]:
    """Bytes of memory that can be had, and of all there is: a container's where it has its own."""
    memory = psutil.virtual_memory()
    available, total = int(memory.available), int(memory.total)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            most = int(Path(limit).read_text())
            if most < total:
                total, available = most, min(available, most - int(Path(used).read_text()))
    return available, total


def _limits() -> dict[str, str]:
    """What the system allows that training runs into."""
    found = {}
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        few = f"; few: ulimit -n {most}" if files < min(_FEW_FILES, most) else ""
        found["open files"] = f"{files:,} at once{few}"
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        small = free < _SMALL_SHM and torch.cuda.device_count() > 1
        advice = "; little for several GPUs (docker run --shm-size 8g)" if small else ""
        found["shared memory"] = f"{free / _GIB:.1f} GiB free in {shared}{advice}"
    return found


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
    return f"{rate:,.0f} images/s on a small network (16×16); training {repeat}"


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


# A preset


def _needs(config: Config, device: torch.device, trial: bool, console: Console | None) -> _Findings:
    """What training a configuration takes, beside what there is."""
    found = _Findings()
    facts, faults = found.facts, found.faults
    image = _SHAPES.get(config.data.source)
    facts["examples"] = "points in the plane" if image is None else f"images, {image_size(image)}"
    if config.data.source == "files":
        facts["examples"] += "; inkdrop data check PATH tells what your own take"
    assert config.network is not None
    learned = config.variance == "learned"
    with torch.device("meta"):  # which holds no numbers
        labels = augmentation_of(config.data).labels
        network = build_network(config.network, image or (2,), learned, labels)
    parameters = sum(p.numel() for p in network.parameters())
    facts["parameters"] = f"{parameters:,} on {device_name(device)}"
    saved = 4 * 4 * parameters  # weights, their average and Adam's two moments in float32
    state = saved + 4 * parameters  # and gradients
    available = _memory()[0]
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0]

    memory, whole = state, "weights, their average, gradients and Adam's moments"
    facts["training state"] = f"{_size(state)}: {whole}"
    if trial and image is not None:
        from .training.trial import trial as timed

        config.training.device = str(device)
        waiting = console.status("timing ten steps of training") if console else None
        try:
            with waiting or contextlib.nullcontext():
                measured = timed(config, image)
            memory, whole = measured.memory, "all of training at its peak"
            facts["speed"] = (
                f"{measured.images_per_second:,.0f} images/s: {duration(measured.seconds)} for "
                f"{config.training.steps:,} steps of {config.training.batch_size}"
            )
        except torch.OutOfMemoryError:
            faults.append(
                f"a batch of {config.training.batch_size} does not fit in the {_size(available)} "
                f"free on {device}: give --batch-size auto, which computes it in parts"
            )
    facts["memory"] = f"{_size(memory)} of {_size(available)} free: {whole}"
    if memory > available:
        faults.append(
            f"training takes {_size(memory)} of memory, but {_size(available)} is free on "
            f"{device}: give --batch-size auto, a smaller network (--network.channels), or free "
            "some"
        )

    kept = config.logging.keep_checkpoints
    disk, free = (kept + 2) * saved, shutil.disk_usage(Path.cwd()).free
    facts["disk"] = (
        f"{_size(disk)} of {_size(free)} free here: {kept} checkpoints of {_size(saved)}, the best "
        "and one being written"
    )
    if disk > free:
        faults.append(
            f"checkpoints take {_size(disk)}, but {_size(free)} of disk is free here: keep fewer "
            "(--logging.keep-checkpoints), give --out on another disk, or make room"
        )
    return found


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# A run


def _examine_run(path: Path, options: DoctorOptions, console: Console) -> int:
    read_config(path)
    run, findings = None, []
    checkpoints = check_checkpoints(path / "checkpoints")
    try:
        run = load(path, device=options.device)
    except InkdropError:
        if checkpoints.ok:
            raise  # it has none, or none of ours
        findings = [checkpoints]
    if run is not None:
        watching = None if options.json else console
        waiting = watching.status("looking at the run") if watching else None
        with waiting or contextlib.nullcontext():
            findings = [checkpoints, *diagnose(run, data=options.data, checkpoints=False)]
    wrong = [finding for finding in findings if finding.ok is False]
    if options.json:
        _print_json(
            {
                "run": str(path),
                "step": None if run is None else run.step,
                "sound": not wrong,
                "findings": [asdict(finding) for finding in findings],
            }
        )
        return 1 if wrong else 0
    _show(findings, console)
    say(console, "")
    for finding in wrong:
        _mark(console, False, f"{finding.name}: {finding.mend}")
    if not wrong:
        unknown = sum(finding.ok is None for finding in findings)
        but = f", as far as {len(findings) - unknown} of {len(findings)} checks tell"
        _mark(console, True, f"nothing is wrong with {path}{but if unknown else ''}")
    return 1 if wrong else 0


def _show(findings: list[Finding], console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    told = set()
    for finding in findings:
        evidence = finding.evidence
        if finding.ok is None and evidence in told:
            evidence = "not checked, for the same reason"
        told.add(evidence)
        name = Text(finding.name, style="" if finding.ok is False else "dim")
        table.add_row(_MARKS[finding.ok], name, Text(evidence))
    console.print(table)
