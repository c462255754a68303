"""The one part of the build that pyproject.toml cannot say: the hash kernels, which may be missing."""

from __future__ import annotations

from setuptools import Extension, setup

FOLDER = "dataplane/digests"

setup(
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
    ]
)
