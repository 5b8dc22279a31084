"""What every benchmark writes: its figures, with machine, versions and command."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inkdrop.environment import package_version, processor

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write NAME.json into benchmarks/results; every figure stands beside what produced it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{
                name: package_version(name)
                for name in ("inkdrop", "torch", "numpy", "scikit-learn")
            },
        },
        **figures,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
