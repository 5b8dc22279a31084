"""Does training that is killed at random instants end as if it had never been?

    python benchmarks/kills.py --kills 200
    python benchmarks/kills.py --kills 60 --processes 2

Trains the preset digits, shortened, by the command line: once uninterrupted, then in other folders
where every start is killed with SIGKILL, at an instant drawn by address, and the same command is
given again until it finishes; round after round until there were enough kills. A third of the
instants lie in the start, a third among steps, and a third after `.writing-…` is seen in
checkpoints/. With --processes 2 torchrun starts two, and it is killed with both, or one of the two
is killed alone, or torchrun alone: then the others have to end by themselves, with an error where
one is left to give it, within 15 seconds.

Checks every start: it goes on from the newest finished checkpoint there was, and sets none aside as
damaged. And every round that finishes: its folder has the uninterrupted one's files, no more and no
fewer, and all of them (weights, averaged weights, optimizer, samples, metrics) are the same to the
bit, but for how long things took.

All is kept in --work, so that the same command goes on when this one is stopped. Writes
results/kills.json, or kills_2_processes.json.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from common import write_result

from inkdrop.randomness import generator

KINDS = ("starting", "stepping", "saving")
# What may differ in metrics and manifests: times, and the hash of a manifest that holds them.
TIMES = {"seconds", "images_per_second", "data_wait", "manifest_sha256"}
LOST_SECONDS = 15.0  # in which a job has to end that lost a process
STEPPING_SECONDS = 3.0
SAVING_SECONDS = 0.05
TRAINING = re.compile(r"^(?:going on from step ([\d,]+)|starting):", re.MULTILINE)


@dataclass(frozen=True)
class Start:
    """One start of the command, and its end.

    Attributes:
        round: in which folder.
        kind: of the instant it was to be killed at.
        target: "all", or what was killed alone: "launcher" or a rank.
        before, after: the newest finished checkpoint's step; 0 without one.
        went_on_from: the step it said, if it came that far.
        killed: not, if it finished before.
        was_writing: whether a checkpoint was half written when it ended.
        seconds: from the start to its end.
        seconds_to_end: from the death of one to the end of all.
        faults: what should not have been.
    """

    round: int
    kind: str
    target: str
    before: int
    after: int
    went_on_from: int | None
    killed: bool
    was_writing: bool
    seconds: float
    seconds_to_end: float | None
    faults: list[str]


def command(options: argparse.Namespace, out: Path) -> list[str]:
    """The command that is given again and again."""
    launcher = []
    if options.processes > 1:
        per_node = ["--nproc-per-node", str(options.processes)]
        launcher = ["-m", "torch.distributed.run", "--standalone", *per_node]
    settings = {
        "--steps": options.steps,
        "--logging.checkpoint-every": options.checkpoint_every,
        "--logging.checkpoint-minutes": None,  # by the clock they would lie elsewhere every time
        "--logging.metrics-every": 10,
        "--logging.held-out-every": 40,
        "--logging.samples-every": options.steps // 3,
    }
    flags = [str(word) for pair in settings.items() for word in pair]
    train = ["-m", "inkdrop", "train", "digits", "--out", str(out)]
    return [sys.executable, *launcher, *train, *flags]


def spawn(options: argparse.Namespace, out: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start it."""
    one_thread = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "300"}
    with open(output, "wb") as file:
        return subprocess.Popen(
            command(options, out),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | one_thread,
            start_new_session=True,
        )


def finished_steps(out: Path) -> list[int]:
    """The steps of the checkpoints that bear their final name."""
    return sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-*"))


def newest_step(out: Path) -> int:
    """That of the newest one; 0 without any."""
    return max(finished_steps(out), default=0)


def being_written(out: Path) -> list[str]:
    """The checkpoints that are half written."""
    return [path.name for path in (out / "checkpoints").glob(".writing-*")]


def wait_until(process: subprocess.Popen[bytes], true: Callable[[], bool], every: float) -> bool:
    """Whether it became true before the process ended."""
    while process.poll() is None:
        if true():
            return True
        time.sleep(every)
    return False


def wait_seconds(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process lived as long."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def wait_for_instant(
    process: subprocess.Popen[bytes], kind: str, out: Path, output: Path, draw: Any, startup: float
) -> bool:
    """Let the instant come; whether the process lived to see it."""
    if kind == "starting":
        return wait_seconds(process, draw.uniform(0, startup))
    if not wait_until(process, lambda: bool(TRAINING.search(output.read_text())), 0.01):
        return False
    if kind == "stepping":
        return wait_seconds(process, draw.uniform(0, STEPPING_SECONDS))
    seen: set[str] = set()
    number = draw.integers(1, 4)

    def is_writing() -> bool:
        seen.update(being_written(out))
        return len(seen) >= number

    return wait_until(process, is_writing, 0.0005) and wait_seconds(
        process, draw.uniform(0, SAVING_SECONDS)
    )


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The launcher and all it started; torchrun gives its processes sessions of their own."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def ranks(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """The processes of the job by their rank."""
    found = {}
    for member in family(process)[1:]:
        try:
            rank = member.environ().get("RANK")
        except psutil.Error:
            continue
        if rank is not None:
            found.setdefault(rank, member)
    return found


def is_alive(member: psutil.Process) -> bool:
    """Whether it still does anything; one that nobody has waited for does not."""
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_end(members: list[psutil.Process], seconds: float) -> bool:
    """Whether all of them end in this time."""
    end = time.monotonic() + seconds
    while any(is_alive(member) for member in members):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def kill_all(members: list[psutil.Process]) -> None:
    """SIGKILL to all of them, and wait until they are gone."""
    for member in members:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    if not all_end(members, 30):
        sys.exit(f"some of {members} cannot be killed")


def kill_alone(
    process: subprocess.Popen[bytes], target: str, members: list[psutil.Process]
) -> tuple[float, list[str]] | None:
    """SIGKILL to the launcher or one rank of a job: the seconds until all others ended, and faults.

    None if that one had ended already.
    """
    victim = members[0] if target == "launcher" else ranks(process).get(target)
    if victim is None or not is_alive(victim):
        return None
    victim.send_signal(signal.SIGKILL)
    died = time.monotonic()
    ended = all_end(members, LOST_SECONDS)
    seconds = round_to(time.monotonic() - died)
    if not ended:
        return seconds, [f"lost {target}, and did not end within {LOST_SECONDS} s"]
    if process.wait() == 0:
        return seconds, [f"lost {target}, and ended as if all were well"]
    return seconds, []


def start(options: argparse.Namespace, index: int, round: int, kill: bool, startup: float) -> Start:
    """Start the command once, kill it when its instant comes, and look at what is left."""
    out, output = options.work / f"round-{round}", options.work / "output.txt"
    draw = generator(options.seed, "kill", index)
    kind = str(draw.choice(KINDS)) if kill else "none"
    target = "all"
    if kill and options.processes > 1:
        target = str(draw.choice(["all", "launcher", str(draw.integers(options.processes))]))
    before = newest_step(out)
    began = time.monotonic()
    process = spawn(options, out, output)
    seconds_to_end: float | None = None
    faults: list[str] = []
    killed = False
    members: list[psutil.Process] = []
    try:
        if kill:
            there = target == "all" or wait_until(
                process, lambda: len(ranks(process)) == options.processes, 0.05
            )
            if there and wait_for_instant(process, kind, out, output, draw, startup):
                members = family(process)
                if target == "all":
                    kill_all(members)
                    killed = True
                elif lost := kill_alone(process, target, members):
                    killed, (seconds_to_end, faults) = True, lost
        if not killed and process.wait() != 0:
            faults.append(f"ended by itself with exit code {process.returncode}")
    finally:
        kill_all([*members, *family(process)])
        process.wait()
    said = TRAINING.search(output.read_text())
    went_on_from = int((said[1] or "0").replace(",", "")) if said else None
    after = newest_step(out)
    if went_on_from not in (None, before):
        faults.append(f"went on from step {went_on_from}, where {before} was finished")
    if after < before:
        faults.append(f"step {before} was finished, and now only {after} is")
    if "set aside" in output.read_text() or any(out.glob("checkpoints/damaged-*")):
        faults.append("a checkpoint was taken for damaged")
    return Start(
        round,
        kind,
        target,
        before,
        after,
        went_on_from,
        killed,
        bool(being_written(out)),
        round_to(time.monotonic() - began),
        seconds_to_end,
        faults,
    )


def round_to(seconds: float) -> float:
    """To hundredths."""
    return int(seconds * 100) / 100


def untimed(value: Any) -> Any:
    """A JSON value without what tells how long something took."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [untimed(inner) for inner in value]
    return value


def content(path: Path) -> Any:
    """What is compared of a file: its bytes, or, for what holds times, all else in it."""
    if path.name == "metrics.jsonl":
        return [untimed(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "checkpoint.json":
        return untimed(json.loads(path.read_bytes()))
    return path.read_bytes()


def names(folder: Path) -> set[str]:
    """All that is in a folder but the list of its sessions, of which each start makes one."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return found - {"environment.json"}


def differences(out: Path, reference: Path, saved_elsewhere: bool) -> Iterator[str]:
    """What one folder holds and the other does not.

    Args:
        saved_elsewhere: whether it saved at other steps too: it keeps other old checkpoints then.
    """
    here, there = names(out), names(reference)
    odd = here ^ there
    if saved_elsewhere:
        odd = {name for name in odd if not name.startswith("checkpoints/step-")}
    yield from (f"{name} is {'left over' if name in here else 'missing'}" for name in sorted(odd))
    for name in sorted(here & there):
        if (out / name).is_file() and content(out / name) != content(reference / name):
            yield f"{name} differs from that of the uninterrupted run"


def train_uninterrupted(options: argparse.Namespace) -> dict[str, float]:
    """Train once without a kill; the seconds until its first step and in all."""
    out, figures = options.work / "uninterrupted", options.work / "uninterrupted.json"
    if not figures.exists():
        shutil.rmtree(out, ignore_errors=True)
        output = options.work / "output.txt"
        began = time.monotonic()
        process = spawn(options, out, output)
        try:
            wait_until(process, lambda: bool(TRAINING.search(output.read_text())), 0.01)
            startup = time.monotonic() - began
            if process.wait() != 0:
                sys.exit(f"the uninterrupted run failed:\n{output.read_text()}")
        finally:
            kill_all(family(process))
        seconds = {"startup": round_to(startup), "all": round_to(time.monotonic() - began)}
        figures.write_text(json.dumps(seconds))
    found: dict[str, float] = json.loads(figures.read_text())
    return found


def figures(options: argparse.Namespace, starts: list[Start], uninterrupted: Any) -> dict[str, Any]:
    """What is written down."""
    kills = [one for one in starts if one.killed]
    alone = [one for one in kills if one.seconds_to_end is not None]
    lost = [one.seconds_to_end for one in alone if one.seconds_to_end is not None]
    return {
        "processes": options.processes,
        "training": " ".join(command(options, Path("RUN"))[1:]),
        "kills": len(kills),
        "kills_by_instant": dict(Counter(one.kind for one in kills)),
        "kills_with_a_checkpoint_half_written": sum(one.was_writing for one in kills),
        "kills_of_one_alone": dict(Counter(one.target for one in alone)),
        "seconds_until_the_others_ended": {"median": median(lost), "largest": max(lost)}
        if lost
        else None,
        "starts": len(starts),
        "trainings_finished_and_compared": max(one.round for one in starts) + 1,
        "seconds_uninterrupted": uninterrupted["all"],
    }


def main() -> None:
    """Kill, start, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--checkpoint-every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="names the instants")
    parser.add_argument("--work", type=Path, help="(default: runs/kills-PROCESSES)")
    options = parser.parse_args()
    options.work = options.work or Path(f"runs/kills-{options.processes}")
    options.work.mkdir(parents=True, exist_ok=True)
    uninterrupted = train_uninterrupted(options)
    print(f"uninterrupted: {uninterrupted['all']} s, of which {uninterrupted['startup']} to start")

    log = options.work / "starts.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    starts = [Start(**json.loads(line)) for line in lines]
    while True:
        kills = sum(one.killed for one in starts)
        round = starts[-1].round + (not starts[-1].killed) if starts else 0
        if kills >= options.kills and not starts[-1].killed:
            break
        one = start(options, len(starts), round, kills < options.kills, uninterrupted["startup"])
        out = options.work / f"round-{round}"
        if not one.killed and not one.faults:
            # Processes that lose their launcher save and stop.
            saved = any(s.target == "launcher" for s in starts if s.round == round)
            one.faults.extend(differences(out, options.work / "uninterrupted", saved))
            if newest_step(out) != options.steps:
                one.faults.append(f"finished at step {newest_step(out)}")
        print(
            f"kill {kills + one.killed:3} of {options.kills}  round {round}  {one.kind:8} "
            f"{one.target:8}  {one.before:5} → {one.after:5}  {one.seconds:6.2f} s"
            f"{'  half written' * one.was_writing}{'  finished' * (not one.killed)}"
            f"{f'  ended after {one.seconds_to_end} s' if one.seconds_to_end else ''}",
            flush=True,
        )
        if one.faults:
            output = (options.work / "output.txt").read_text()
            sys.exit("\n".join([*one.faults, f"see {out}; its output was:", output]))
        starts.append(one)
        with open(log, "a") as file:
            file.write(json.dumps(asdict(one)) + "\n")
        if not one.killed:
            shutil.rmtree(out)
    name = "kills" if options.processes == 1 else f"kills_{options.processes}_processes"
    print(f"written to {write_result(name, figures(options, starts, uninterrupted))}")


if __name__ == "__main__":
    main()
