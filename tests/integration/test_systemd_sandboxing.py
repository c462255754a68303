"""The daemon does its work with what systemd/glissade.service leaves it: its memory rule, its system
calls."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.ours import OursCall
from bench.stores import file_store
from control.sandbox import Sandbox
from dataplane.store import MIB

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "systemd" / "glissade.service"

DONE_WITHOUT = {"cachestat", "syscall_0x1c3"}
"""Younger than many a systemd, which then refuses it (and strace knows only its number); the driver asks and
takes no for an answer."""

PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1

_LOCKED_DOWN = f"""
import ctypes, os, sys
if ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0) != 0:
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_transfer_needs_no_executable_memory_of_its_own(tmp_path: Path) -> None:
    """MemoryDenyWriteExecute=, by the kernel's own form of it: uvloop, hashing and the memfd pool under
    it."""
    (tmp_path / "store").mkdir()
    (tmp_path / "source.img").write_bytes(os.urandom(3 * MIB))
    call = OursCall(
        images={"image": str(tmp_path / "source.img")},
        stores=[file_store(tmp_path / "store")],
        digests=["md5", "sha512", "xxh3_128"],
    )
    done = subprocess.run(
        [sys.executable, "-c", _LOCKED_DOWN, "-m", "bench.ours", json.dumps(asdict(call))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "image").stat().st_size == 3 * MIB


@pytest.mark.service("strace")
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt package strace)")
@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (apt package systemd)"
)
def test_the_daemon_makes_no_system_call_that_its_unit_forbids(tmp_path: Path) -> None:
    """From start to drained end: import, copy, move, verify, delete."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "disk.img").write_bytes(os.urandom(2 * MIB))
    trace = tmp_path / "trace"
    sandbox = Sandbox(
        directory=tmp_path / "daemon",
        stores={
            name: {"type": "file", "directories": [{"path": str(tmp_path / name)}]}
            for name in ("a", "b", "c")
        },
        sections={"import": {"directories": [str(tmp_path / "source")]}},
        # It takes its time in everything.
        ready_timeout_s=150.0,
        stop_timeout_s=150.0,
        # As a grandchild (-D), so that signals and the exit status are the daemon's own.
        command_prefix=("strace", "-D", "-f", "-qq", "-o", str(trace), "-e", "signal=none"),
    )
    image = str(uuid.uuid4())
    with sandbox:
        for body in (
            {
                "kind": "import",
                "image": {"id": image},
                "source": {"path": str(tmp_path / "source/disk.img")},
                "stores": ["a"],
            },
            {"kind": "copy", "image_id": image, "stores": ["b"]},
            {"kind": "move", "image_id": image, "from_store": "b", "to_store": "c"},
            {"kind": "verify", "image_id": image},
            {"kind": "delete", "image_id": image},
        ):
            job = sandbox.wait(sandbox.submit(body)["id"])
            assert job["state"] == "succeeded", job
    made = set(re.findall(r"^\d+\s+(\w+)\(", trace.read_text(), re.MULTILINE))
    assert {"pwrite64", "linkat", "fsync"} <= made, "the trace holds the daemon's work"
    # Run by root, SQLite gives its journals to the owner of the database; the service is not root.
    only_as_root = {"fchown"} if os.geteuid() == 0 else set()
    assert made - allowed_calls() - only_as_root - DONE_WITHOUT == set()


def allowed_calls() -> set[str]:
    """What SystemCallFilter= of the service lets through; @default is always in it."""
    groups = call_groups()

    def expand(name: str) -> set[str]:
        return set().union(*(expand(each) for each in groups[name])) if name.startswith("@") else {name}

    allowed = expand("@default")
    for line in re.findall(r"^SystemCallFilter=(.*)$", SERVICE.read_text(), re.MULTILINE):
        is_denied = line.startswith("~")
        calls = set().union(*(expand(name) for name in line.removeprefix("~").split()))
        allowed = allowed - calls if is_denied else allowed | calls
    return allowed


def call_groups() -> dict[str, list[str]]:
    """systemd's groups of system calls, as it lists them."""
    listed = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    groups: dict[str, list[str]] = {}
    current: list[str] = []
    for line in listed.splitlines():
        words = re.sub(r"\x1b\[[\d;]*m", "", line).strip()
        if words.startswith("@") and not line.startswith(" "):
            current = groups.setdefault(words, [])
        elif words and not words.startswith("#"):
            current.append(words)
    return groups
