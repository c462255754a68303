"""The demo tells the truth, and fails when something does not hold."""

from __future__ import annotations

import http.server
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from control.demo import story
from control.sandbox import Sandbox
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "small.img"
    path.parent.mkdir()
    path.write_bytes(os.urandom(3 * MIB) + bytes(2 * MIB) + b"end")
    return path


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Say nothing."""


@pytest.fixture
def url(image: Path) -> Iterator[str]:
    """The image on a web server of this machine."""
    handler = partial(_Quiet, directory=str(image.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{image.name}"
        server.shutdown()
        thread.join()


def test_a_file_goes_through_the_main_job(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--image", str(image), "--directory", str(tmp_path / "demo")]
    assert story.main(arguments) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "hard link" in said
    assert "Everything held." in said
    assert " NO " not in said
    assert story.main(arguments) == 0, "a second demo begins by clearing what the first one left"


def test_a_url_goes_through_the_main_job(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert story.main(["--image", url, "--directory", str(tmp_path / "demo")]) == 0, capsys.readouterr().out


def test_what_does_not_hold_is_a_failure(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that nobody asked for appears in a store while the demo runs."""
    wait = Sandbox.follow

    def follow(sandbox: Sandbox, job_id: str) -> Iterator[dict[str, Any]]:
        (sandbox.directory / "stores" / "slow" / "stray").touch()
        return wait(sandbox, job_id)

    monkeypatch.setattr(Sandbox, "follow", follow)
    assert story.main(["--image", str(image), "--directory", str(tmp_path / "demo")]) == 1
    said = capsys.readouterr().out
    assert "did not hold" in said
    assert "slow/stray" in said
    assert "is ready on" in said, "the end of the daemon's log is shown"


@pytest.mark.parametrize("wrong", ["missing.img", "images"])
def test_an_image_that_is_no_file_is_refused(
    tmp_path: Path, image: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert story.main(["--image", str(tmp_path / wrong), "--directory", str(tmp_path / "demo")]) == 1
    assert "is no regular file: IMAGE is the path of an image" in capsys.readouterr().out


def test_somebody_elses_directory_is_not_emptied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "precious").touch()
    assert story.main(["--directory", str(tmp_path / "demo")]) == 1
    assert (tmp_path / "demo" / "precious").exists()
    assert "no earlier demo made it" in capsys.readouterr().out
