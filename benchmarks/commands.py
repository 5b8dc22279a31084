"""How long do a user's first commands take, after installation?

    python benchmarks/commands.py

Times `inkdrop --help` (twenty times), `make demo` and `make test` as whole processes and writes
results/commands.json.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write_result

ROOT = Path(__file__).parent.parent
INKDROP = Path(sys.executable).parent / "inkdrop"


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{done.stdout[-5000:]}\n{done.stderr}\n{command} failed")
    return took


subprocess.run(["make", "install"], cwd=ROOT, check=True)
helps = [seconds([str(INKDROP), "--help"]) for _ in range(20)]
print(f"inkdrop --help: median {statistics.median(helps):.3f} s", flush=True)
with tempfile.TemporaryDirectory() as temporary:
    demo = seconds(["make", "demo", f"DEMO={temporary}/digits"])
print(f"make demo: {demo:.0f} s", flush=True)
test = seconds(["make", "test"])
print(f"make test: {test:.0f} s", flush=True)
path = write_result(
    "commands",
    {
        "real_data_tests_ran": "INKDROP_DATA" in os.environ,
        "inkdrop_help_median_seconds": round(statistics.median(helps), 3),
        "inkdrop_help_seconds": [round(s, 3) for s in helps],
        "make_demo_seconds": round(demo, 1),
        "make_test_seconds": round(test, 1),
    },
)
print(f"written to {path}")
