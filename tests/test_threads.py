import os
import subprocess
import sys

import pytest

_THREADS = """
import os, sys, torch
from concurrent.futures import ThreadPoolExecutor
from inkdrop.threads import helper

torch.ones(2**22).exp()  # this thread's own team
pool = helper("test") if sys.argv[1] == "helper" else ThreadPoolExecutor(1)
pool.submit(int).result()
before = len(os.listdir("/proc/self/task"))
pool.submit(lambda: torch.ones(2**22).exp()).result()
print(len(os.listdir("/proc/self/task")) - before, torch.get_num_threads())
"""


def counted(kind):
    command = [sys.executable, "-c", _THREADS, kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux shows them")
def test_a_helper_computes_without_a_team_of_its_own():
    assert counted("helper") == [0, 2]
    assert counted("plain") == [1, 2]
