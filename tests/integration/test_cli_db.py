"""`glissade db`: looks at the catalogue and upgrades it, without a daemon."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import pytest

from control.cli.exits import Exit
from control.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from control.catalog.database import DatabaseAddress
    from tests.services.postgres import Postgres


def configured(tmp_path: Path, catalog: str = "") -> list[str]:
    path = tmp_path / "glissade.toml"
    path.write_text(f'[node]\nstate_directory = "{tmp_path}"\n{catalog}')
    return ["--config", str(path)]


def on_postgres(tmp_path: Path, address: DatabaseAddress) -> list[str]:
    assert address.password is not None
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text(address.password.reveal())
    return configured(
        tmp_path, f'[catalog]\nurl = "{address.url}"\npassword = {{ file = "{secret}" }}\ntls = "off"\n'
    )


def run(config: list[str], *words: str) -> int:
    return main([*config, "db", *words])


def test_a_file_is_made_upgraded_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    assert run(config, "current") == Exit.NOT_HELD
    assert "There is no catalogue" in capsys.readouterr().err
    assert not (tmp_path / "catalog.db").exists()
    assert run(config, "upgrade") == Exit.OK
    assert "upgraded from nothing" in capsys.readouterr().err
    assert run(config, "check") == Exit.OK
    assert run(config, "upgrade") == Exit.OK
    assert "had them already" in capsys.readouterr().err


def test_a_check_says_what_differs_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    run(config, "upgrade")
    capsys.readouterr()
    with sqlite3.connect(tmp_path / "catalog.db") as db:
        db.execute("drop index ix_artefacts_store_key")
    db.close()
    assert run(config, "check") == Exit.NOT_HELD
    said = capsys.readouterr()
    assert "differs: add_index ix_artefacts_store_key" in said.out
    assert "changed by somebody else" in said.err
    with sqlite3.connect(tmp_path / "catalog.db") as db:
        db.execute("update alembic_version set version_num = '0001'")
    db.close()
    assert run(config, "check", "-f", "json") == Exit.NOT_HELD
    said = capsys.readouterr()
    assert json.loads(said.out)["current"] == "0001"
    assert "Run: glissade db upgrade" in said.err
    with sqlite3.connect(tmp_path / "catalog.db") as db:
        db.execute("update alembic_version set version_num = '9999'")
    db.close()
    assert run(config, "check") == Exit.NOT_HELD
    assert "later version" in capsys.readouterr().err
    assert run(config, "upgrade") == Exit.NOT_HELD
    assert "newer version of Glissade (schema 9999)" in capsys.readouterr().err


def test_looking_disturbs_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    config = configured(tmp_path)
    run(config, "upgrade")
    with (tmp_path / "catalog.db.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(config, "check") == Exit.OK
        assert run(config, "upgrade") == Exit.NOT_HELD
    assert "Another daemon" in capsys.readouterr().err


@pytest.mark.service("postgres")
def test_a_database_on_postgresql_is_upgraded_and_checked(
    tmp_path: Path, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    config = on_postgres(tmp_path, postgres.address(postgres.new_database()))
    assert run(config, "check") == Exit.NOT_HELD
    assert run(config, "upgrade") == Exit.OK
    assert run(config, "check") == Exit.OK
    said = capsys.readouterr()
    assert postgres.password not in said.out + said.err
    assert "postgresql+asyncpg://glissade@" in said.out


@pytest.mark.service("postgres")
def test_a_database_that_is_away_is_said_to_be(
    tmp_path: Path, shared_catalog: DatabaseAddress, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    config = on_postgres(tmp_path, shared_catalog)
    postgres.stop()
    try:
        assert run(config, "check") == Exit.NOT_HELD
    finally:
        postgres.start()
    assert "cannot be reached" in capsys.readouterr().err
