"""What this machine is: versions, processor, devices."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("inkdrop", "torch", "numpy", "safetensors", "pydantic")


def describe(device: torch.device) -> dict[str, Any]:
    """What a session runs on, as JSON: time, command, machine and versions."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {name: package_version(name) for name in _PACKAGES},
    }


def command() -> str:
    """The command that started this process, as it would be typed."""
    program = Path(sys.argv[0]).name
    if program in ("inkdrop", "__main__.py"):
        return shlex.join(["inkdrop", *sys.argv[1:]])
    return shlex.join(["python", *sys.argv]) if program else "python"


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The device, with the GPU's name where it is one."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
