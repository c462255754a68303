"""README's five minutes work as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BIN = Path(sys.executable).parent


def tour() -> str:
    """The commands of the section, without prompts."""
    section = README.read_text().partition("## Five minutes")[2].partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return "".join(re.sub(r"^\$ ", "", block, flags=re.MULTILINE) for block in blocks)


@pytest.mark.skipif(
    not (BIN / "glissade").exists(), reason="the command is not installed; `make setup` does that"
)
@pytest.mark.timeout(400)
def test_the_tour_of_the_readme_works() -> None:
    commands = tour()
    assert commands.count("glissade ") > 10
    # Short, because a socket's path may have 107 characters only; the tour's own name may be in use.
    with tempfile.TemporaryDirectory(prefix="tour-") as directory:
        ready = "for i in {1..1000}; do [ -S /tmp/tour/api.sock ] && break; sleep 0.1; done"
        script = commands.replace("serve &\n", f"serve &\n{ready}\n").replace(
            "truncate -s 1G", "truncate -s 64M"
        )
        stop = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"  # Also when a command in the middle fails.
        done = subprocess.run(
            [
                "bash",
                "-euo",
                "pipefail",
                "-m",
                "-c",
                f"{stop}\n{script}wait %1\n".replace("/tmp/tour", directory),
            ],
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "hard link" in said
        places = {path.parent.name for path in Path(directory).glob("*/????????-????-*")}
        assert places == {"fast"}, "the move was the last thing that changed places"
        saved = Path(directory) / "saved.img"
        assert saved.read_bytes() == (Path(directory) / "inbox" / "disk.img").read_bytes()
