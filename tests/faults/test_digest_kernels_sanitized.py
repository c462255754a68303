"""The C of the hash kernels under the address and the undefined-behaviour sanitizer, checked by hashlib."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "dataplane" / "digests"
HARNESS = Path(__file__).with_name("digest_kernels_harness.c")
SOURCES = [FOLDER / f"{name}.c" for name in ("_states", "_kernels_plain", "_kernels_x86")]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compiler with both sanitizers."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler on this machine")
    program = tmp_path_factory.mktemp("probe") / "probe"
    probe = subprocess.run(
        [found, *SANITIZERS, "-x", "c", "-", "-o", str(program)],
        input="int main(void) { return 0; }",
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0 or subprocess.run([program], check=False).returncode != 0:
        pytest.skip(f"{found} has no working address and undefined-behaviour sanitizers")
    return found


@pytest.mark.timeout(300)
def test_random_streams_touch_no_foreign_byte_and_get_the_right_digests(
    compiler: str, tmp_path: Path
) -> None:
    program = tmp_path / "harness"
    built = subprocess.run(
        [compiler, "-std=c11", "-O1", "-D_GNU_SOURCE", *WARNINGS, *SANITIZERS, f"-I{FOLDER}"]
        + [str(path) for path in (HARNESS, *SOURCES)]
        + ["-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 500
    for line in lines:
        algorithm, start, length, digest = line.split()
        data = bytes((int(start) + at * at * 7 + at // 8) & 0xFF for at in range(int(length)))
        assert hashlib.new(algorithm, data).hexdigest() == digest, line
