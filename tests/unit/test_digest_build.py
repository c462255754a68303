"""The build of the hash kernels with compilers that do not know all flags."""

from __future__ import annotations

import importlib.machinery
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STRICT = """#!/bin/sh
for argument; do
    [ "$argument" = -fno-tree-reassoc ] && exit 1
done
exec {compiler} "$@" -O0
"""


def test_flags_that_the_compiler_refuses_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clang refuses one of them; the extension is optional, so without this it would be missing silently."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    strict = tmp_path / "strict"
    strict.write_text(STRICT.format(compiler=compiler))
    strict.chmod(0o755)
    monkeypatch.setenv("CC", str(strict))
    monkeypatch.setenv("LDSHARED", f"{compiler} -shared")
    places = ("--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    build = ("-W", "ignore", "setup.py", "-q", "build_ext", *places)
    done = subprocess.run((sys.executable, *build), cwd=ROOT, check=True, capture_output=True, text=True)
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    assert (tmp_path / "lib" / "dataplane" / "digests" / f"_lanes{suffix}").is_file(), done.stderr
