"""The C of the hash kernels, checked by hashlib: under the address and the undefined-behaviour sanitizer, and
for another processor.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
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
    program = _built([compiler, *SANITIZERS], tmp_path)
    _check_digests(_run([str(program)]))


@pytest.mark.timeout(300)
def test_another_processor_builds_the_plain_kernels_and_gets_the_right_digests(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip("no compiler and emulator of aarch64: gcc-aarch64-linux-gnu, qemu-user-static")
    program = _built([compiler, "-static"], tmp_path)
    _check_digests(_run([emulator, str(program)]))


def _built(compiler: list[str], directory: Path) -> Path:
    """The harness with the kernels, by that compiler."""
    program = directory / "harness"
    sources = (HARNESS, *SOURCES)
    objects = [str(directory / f"{path.stem}.o") for path in sources]
    flags = ["-std=c11", "-O1", "-D_GNU_SOURCE", *WARNINGS, f"-I{FOLDER}"]
    commands = [
        [*compiler, *flags, "-c", str(path), "-o", made] for path, made in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor() as threads:
        for built in threads.map(_run, commands):
            assert built.returncode == 0, built.stderr
    linked = _run([*compiler, *objects, "-o", str(program)])
    assert linked.returncode == 0, linked.stderr
    return program


def _check_digests(done: subprocess.CompletedProcess[str]) -> None:
    """What the harness prints, by hashlib."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 500
    longest = max(int(line.split()[2]) for line in lines)
    pattern = bytes((at * at * 7 + at // 8) & 0xFF for at in range(longest))
    for line in lines:
        algorithm, start, length, digest = line.split()
        data = pattern[: int(length)].translate(bytes((byte + int(start)) & 0xFF for byte in range(256)))
        assert hashlib.new(algorithm, data).hexdigest() == digest, line


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
