"""Processes that die, disks that are full and folders that are read-only, while files are made.

Each fault happens in a forked child: at a line of the code that writes files, or at a random time.
"""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from artefacts import ARTEFACTS, Artefact, fit_autoencoder, fit_nmf, frozen
from outcome import REFUSED, SURVIVED, UNCLEAR, WRONG, Outcomes

# Whose lines a process is killed at.
WRITERS = (
    "files.py",
    "building.py",
    "saving.py",
    "checkpoint.py",
    "explanation_files.py",
    "store.py",
)
NOBODY = 65534
PAGE, LARGE = 4096, 4096

# What a user runs; for fits, reading is running to the end.
RUNS = (
    *(a for a in ARTEFACTS if not a.optional),
    Artefact("autoencoder checkpoint", fit_autoencoder, fit_autoencoder, optional=True),
    Artefact("NMF checkpoint", fit_nmf, fit_nmf, optional=True),
)


def in_child(action: Callable[[], object]) -> tuple[int, str, int]:
    """Fork and run `action`; return how the child ended, its error, and its process id."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            action()
        except BaseException as error:
            clear = isinstance(error, (OSError, ValueError))
            os.write(writer, f"{type(error).__name__}: {error}"[:4000].encode(errors="replace"))
            status = 3 if clear else 4
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        message = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), message, pid


def at_line(write: Callable[[Path], object], place: Path, stop: int) -> int:
    """Run `write` and kill the process at the `stop`-th line of the writers; return the lines."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        code = frame.f_code.co_filename
        if "conceptlens" not in code or not code.endswith(WRITERS):
            return None
        if event == "line":
            seen += 1
            if seen == stop:
                tear(place, stop)
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    threading.settrace(trace)
    try:
        write(place)
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return seen


def tear(place: Path, seed: int) -> None:
    """Cut files that were not renamed yet: what a dying machine may leave of them."""
    for file in place.rglob("*.tmp"):
        os.truncate(file, random.Random(seed).randrange(file.stat().st_size + 1))


def inject(run: Artefact, folder: Path, outcomes: Outcomes, n: int, seed: int) -> None:
    """n kills at lines, a quarter as many at random times, and as many of a full disk."""
    folder.mkdir(parents=True)
    chance = random.Random(seed)
    whole, place = folder / "whole", folder / "place"
    whole.mkdir()
    lines = at_line(run.write, whole, 0)
    right = {frozen(run.read(whole))}
    if run.optional:  # going on from any checkpoint is right, though NMF then rounds otherwise
        stopped = next(a for a in ARTEFACTS if a.name == run.name)
        stopped.write(folder / "stopped")
        (folder / "empty").mkdir()
        right |= {frozen(run.read(folder / start)) for start in ("stopped", "empty")}
    content = contents(whole)
    largest = max(map(len, content.values()))
    start = time.perf_counter()
    in_child(lambda: run.write(folder / "timed"))
    seconds = time.perf_counter() - start

    def fresh(over: bool) -> None:
        shutil.rmtree(place, ignore_errors=True)
        if over and run.name != "store":
            shutil.copytree(whole, place)
        else:
            place.mkdir()

    def after(kind: str, place: Path = place) -> None:
        outcomes.read(kind, run, place, right)
        outcomes.next_run(kind, run, place, right, lambda: None)
        if run.name == "store" and contents(place) != content:
            outcomes.note(kind, run, WRONG, "other bytes than the store built in one go")

    for i, stop in enumerate(sorted(chance.sample(range(1, lines + 1), min(n, lines)))):
        fresh(over=i % 2 == 1)
        status, message, _ = in_child(lambda s=stop: at_line(run.write, place, s))
        if status == -signal.SIGKILL:
            after("killed at a line")
        elif run.name == "store" or i % 2 == 0:
            raise RuntimeError(f"not killed at line {stop} of {lines}: {status} {message}")
    for _ in range(n // 4):
        fresh(over=False)
        wait = chance.uniform(0, seconds)
        pid = os.fork()
        if pid == 0:
            run.write(place)
            os._exit(0)
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        after("killed at a random time")
    for i in range(n // 4):
        fresh(over=i % 2 == 1)
        limit = chance.randrange(largest)
        refused("disk full while writing", run, place, lambda m=limit: full_disk(run, place, m),
                outcomes)  # fmt: skip
        after("disk full while writing")
    for i in range(n // 4):
        fresh(over=i % 2 == 1)
        stop = chance.randrange(1, 5)
        refused("disk full at the flush", run, place, lambda s=stop: no_flush(run, place, s),
                outcomes)  # fmt: skip
        after("disk full at the flush")
    disk = folder / "disk"
    disk.mkdir()
    pages = sum(-(-len(data) // PAGE) for data in content.values())
    for _ in range(n // 4 if mounted(disk, pages) else 0):
        mounted(disk, chance.randrange(1, pages + 2))
        action = partial(run.write, disk / "place")
        refused("disk of a few pages", run, disk / "place", action, outcomes)
        mounted(disk, LARGE, "remount,")  # somebody makes room
        (disk / "place").mkdir(exist_ok=True)
        after("disk of a few pages", disk / "place")
    unmount(disk)
    read_only(run, whole, outcomes, right)


def mounted(disk: Path, pages: int, how: str = "") -> bool:
    """Mount a file system in memory of so many pages, a fresh one unless it is mounted anew."""
    if not how:
        unmount(disk)
    size = f"{how}size={pages * PAGE}"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
    return os.getuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def unmount(disk: Path) -> None:
    if disk.is_mount():
        subprocess.run(["umount", disk], check=True)


def refused(
    kind: str, run: Artefact, place: Path, action: Callable[[], object], outcomes: Outcomes
) -> None:
    """Expect an error that names the file, or that all could be written."""
    status, message, _ = in_child(action)
    if status == 3 and str(place) in message:
        return
    if status != 0:
        outcomes.note(kind, run, UNCLEAR, (status, message))


def full_disk(run: Artefact, place: Path, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run.write(place)


def no_flush(run: Artefact, place: Path, stop: int) -> None:
    flush, calls = os.fsync, iter(range(1, 10**6))

    def fsync(handle: int) -> None:
        if next(calls) == stop:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    with mock.patch("os.fsync", fsync):
        run.write(place)


def read_only(run: Artefact, whole: Path, outcomes: Outcomes, right: set[object]) -> None:
    """Reading is as ever where nothing can be written; writing anew is refused."""
    kind = "read-only folder"
    for folder, files in [(whole, 0o444), (whole.parent, None)]:
        folder.chmod(0o555)
        for file in whole.rglob("*") if files else ():
            file.chmod(0o555 if file.is_dir() else files)

    def as_nobody(action: Callable[[Path], object], place: Path) -> tuple[int, str]:
        def act() -> None:
            if os.getuid() == 0:
                os.setuid(NOBODY)
            found = action(place)
            if action is run.read and frozen(found) not in right:
                raise RuntimeError("another answer")

        return in_child(act)[:2]

    if not run.optional:
        status, message = as_nobody(run.read, whole)
        outcomes.note(kind, run, SURVIVED if status == 0 else UNCLEAR, message)
    if run.name == "store":
        status, message = as_nobody(run.write, whole)
        outcomes.note(kind, run, SURVIVED if status == 0 else UNCLEAR, message)
    target = whole.parent / "new"
    status, message = as_nobody(run.write, target)
    clear = status == 3 and str(target) in message
    outcomes.note(kind, run, REFUSED if clear else UNCLEAR, (status, message))
    whole.parent.chmod(0o755)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }
