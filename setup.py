"""What pyproject.toml cannot say of the build: the hash kernels, which may be missing, and the fail points,
which are missing from every release.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
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


setup(
    cmdclass={"build_py": BuildPy},
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
                    "_scalar",
                    "_sha2",
                    "_states",
                )
            ],
            # Reassociation lengthens the chains of additions: md5 in 16 lanes is 1.4 times as slow with it.
            # Vectors are written out where they pay; streams side by side in general registers stay there.
            extra_compile_args=[
                "-std=c11",
                "-O3",
                "-fno-tree-reassoc",
                "-fno-tree-vectorize",
                "-fno-tree-slp-vectorize",
            ],
            # Without a compiler hashlib does the work; the daemon says at its start which kernels it has.
            optional=True,
        )
    ],
)
