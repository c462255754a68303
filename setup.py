"""What pyproject.toml cannot say of the build: the hash kernels, which may be missing, and the fail points,
which are missing from every release.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

FOLDER = "dataplane/digests"


class BuildPy(build_py):
    """What is built has no fail points; a checkout (and an editable installation, which is one) has."""

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        built, copied = super().build_module(module, module_file, package)
        if (package, module) == ("dataplane", "failpoints"):
            text = Path(built).read_text()
            off = text.replace("BUILT_IN: Final[bool] = True", "BUILT_IN: Final[bool] = False")
            if off == text:
                raise RuntimeError(f"{built} does not say whether it is built in")
            Path(built).write_text(off)
        return built, copied


class BuildExt(build_ext):
    """Leaves out the flags that the compiler does not know: Clang refuses some of GCC's."""

    def build_extension(self, ext: Extension) -> None:
        compiler = getattr(self.compiler, "compiler_so", None)
        if compiler is not None:
            ext.extra_compile_args = [flag for flag in ext.extra_compile_args if _takes(compiler, flag)]
        super().build_extension(ext)


def _takes(compiler: list[str], flag: str) -> bool:
    """Whether an empty file can be compiled with that flag; without a compiler, no."""
    command = [*compiler, flag, "-Werror", "-x", "c", "-c", "-", "-o", os.devnull]
    try:
        return subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 0
    except OSError:
        return False


setup(
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
    ext_modules=[
        Extension(
            "dataplane.digests._lanes",
            sources=[
                f"{FOLDER}/{name}.c" for name in ("_lanes", "_states", "_kernels_plain", "_kernels_x86")
            ],
            depends=[
                f"{FOLDER}/{name}.h"
                for name in (
                    "_constants",
                    "_kernels",
                    "_md5",
                    "_md5_scalar",
                    "_md5_sha512",
                    "_md5_sha512_deal",
                    "_md5_sha512_x1",
                    "_scalar",
                    "_sha2",
                    "_states",
                )
            ],
            # Reassociation lengthens the chains of additions: md5 in 16 lanes is 1.4 times as slow with it.
            # The lines are in the order of the chains; rearranged by GCC, sha512 in lanes is 3-6 % slower.
            # Vectors are written out where they pay; streams side by side in general registers stay there.
            extra_compile_args=[
                "-std=c11",
                "-O3",
                "-fno-tree-reassoc",
                "-fno-schedule-insns2",
                "-fno-tree-vectorize",
                "-fno-tree-slp-vectorize",
            ],
            # Without a compiler hashlib does the work; the daemon says at its start which kernels it has.
            optional=True,
        )
    ],
)
