"""Files and environment in, settings or the whole list of mistakes out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from control.config import ConfigError, Settings, load_settings
from control.config.problems import did_you_mean
from control.config.units import format_mode, format_size, parse_mode, parse_size
from drivers.filesystem.config import Directory, FileConfig
from drivers.http.config import HttpConfig
from drivers.options import RetryOptions, StoreOptions
from drivers.registry import STORE_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

CANARY = "hunter2-canary"
IMPORT_KEYS = (
    "allow_hosts, allow_http, allow_private_addresses, ca_file, default_os_hash_algo, deny_addresses, "
    "directories, max_size, ports"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """A directory with a configuration in it."""

    directory: Path

    @property
    def main(self) -> Path:
        return self.directory / "glissade.toml"

    def write(self, text: str, name: str = "glissade.toml") -> Path:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        return path

    def load(
        self,
        text: str | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        outside_service: bool = False,
    ) -> Settings:
        if text is not None:
            self.write(text)
        return load_settings(self.main, environ=environ or {}, outside_service=outside_service)

    def mistakes(self, text: str | None = None, environ: Mapping[str, str] | None = None) -> list[str]:
        """Every mistake as it is shown, file names without their directory."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, environ)
        return [str(problem).replace(f"{self.directory}/", "") for problem in caught.value.problems]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def file_store(directory: str = "/srv/a", **more: str) -> str:
    lines = [f"{key} = {value}" for key, value in more.items()]
    return "\n".join(['type = "file"', f'directories = ["{directory}"]', *lines])


def config_of(settings: Settings, store: str) -> FileConfig:
    config = settings.stores[store].config
    assert isinstance(config, FileConfig)
    return config


class TestValues:
    def test_an_empty_file_is_the_defaults_and_a_warning(self, place: Place) -> None:
        settings = place.load("")
        assert settings.node.chunk_bytes == 4 * 1024**2
        assert settings.node.buffer_budget_bytes == 128 * 1024**2
        assert settings.node.rate_limit is None
        assert settings.api.socket_mode == 0o660
        assert settings.api.allow_groups == ("glissade",)
        assert settings.catalog.url == "sqlite:////var/lib/glissade/catalog.db"
        assert settings.imports.directories == ()
        assert settings.stores == {}
        assert [str(warning).partition(": ")[2] for warning in settings.warnings] == [
            "no stores are configured: nothing can be imported; add [stores.<id>] with its type"
        ]

    def test_human_units(self, place: Place) -> None:
        settings = place.load(
            f"""
            [node]
            chunk = "512 KiB"
            buffer_budget = 8388608
            rate_limit = "1.5G"
            drain_timeout_s = 5
            [api]
            socket_mode = "600"
            [stores.fast]
            {file_store(file_mode='"0640"', rate_limit='"off"')}
            """
        )
        assert settings.node.chunk_bytes == 512 * 1024
        assert settings.node.buffer_budget_bytes == 8 * 1024**2
        assert settings.node.rate_limit == 1536 * 1024**2
        assert settings.node.drain_timeout_s == 5.0
        assert settings.api.socket_mode == 0o600
        assert config_of(settings, "fast").file_mode == 0o640
        assert settings.stores["fast"].options.rate_limit is None

    def test_a_table_with_one_required_key_may_be_that_key(self, place: Place) -> None:
        settings = place.load(
            """
            [stores.fast]
            type = "file"
            directories = ["/srv/a", { path = "/srv/b", priority = 3 }]
            """
        )
        assert config_of(settings, "fast").directories == (
            Directory(path="/srv/a"),
            Directory(path="/srv/b", priority=3),
        )

    def test_the_catalogue_may_be_a_path_or_follow_the_state_directory(self, place: Place) -> None:
        assert place.load('[catalog]\nurl = "/x/y.db"').catalog.url == "sqlite:////x/y.db"
        assert place.load('[catalog]\nurl = "sqlite:////x/y.db"').catalog.path == "/x/y.db"
        assert place.load('[node]\nstate_directory = "/x"').catalog.path == "/x/catalog.db"

    def test_the_default_store(self, place: Place) -> None:
        text = f"[stores.a]\n{file_store('/srv/a')}\n[stores.b]\n{file_store('/srv/b', default='true')}"
        settings = place.load(text)
        assert settings.default_store is settings.stores["b"]
        assert not settings.stores["a"].is_default

    def test_import_rules_become_the_http_source_s(self, place: Place) -> None:
        settings = place.load('[import]\nallow_private_addresses = ["10.1.0.0/16"]\nports = [80, 443, 8443]')
        assert settings.imports.http_config() == HttpConfig(
            schemes=("https",), ports=(443, 8443), allow_cidrs=("10.1.0.0/16",)
        )
        settings = place.load("[import]\nallow_http = true")
        assert settings.imports.http_config().schemes == ("https", "http")
        assert 80 in settings.imports.http_config().ports

    def test_nothing_can_be_changed_afterwards(self, place: Place) -> None:
        settings = place.load(f"[stores.a]\n{file_store()}")
        with pytest.raises(dataclasses.FrozenInstanceError):
            settings.node.max_transfers = 3  # type: ignore[misc]  # what mypy says is what is tested
        with pytest.raises(TypeError):
            settings.stores["b"] = settings.stores["a"]  # type: ignore[index]  # the same


class TestDefaults:
    def test_every_option_is_inherited_and_can_be_overridden(self, place: Place) -> None:
        settings = place.load(
            f"""
            [stores.defaults]
            description = "ours"
            weight = 7
            read_only = true
            allow_delete = false
            concurrency = 3
            rate_limit = "10M"
            connect_timeout_s = 1
            stall_timeout_s = 2
            probe_interval_s = 3
            retry = {{ attempts = 9, first_wait_s = 0.5 }}
            [stores.plain]
            {file_store("/srv/a")}
            [stores.own]
            {file_store("/srv/b", rate_limit='"off"', read_only="false")}
            retry.attempts = 2
            """
        )
        inherited = StoreOptions(
            description="ours",
            weight=7,
            read_only=True,
            allow_delete=False,
            concurrency=3,
            rate_limit=10 * 1024**2,
            connect_timeout_s=1.0,
            stall_timeout_s=2.0,
            probe_interval_s=3.0,
            retry=RetryOptions(attempts=9, first_wait_s=0.5),
        )
        assert settings.store_defaults == inherited
        assert settings.stores["plain"].options == inherited
        assert settings.stores["own"].options == dataclasses.replace(
            inherited, rate_limit=None, read_only=False, retry=RetryOptions(attempts=2, first_wait_s=0.5)
        )

    def test_a_mistake_there_is_reported_there_and_once(self, place: Place) -> None:
        stores = f"[stores.a]\n{file_store('/a')}\n[stores.b]\n{file_store('/b')}"
        text = f"[stores.defaults]\nconcurrency = 0\n{stores}"
        assert place.mistakes(text) == [
            "glissade.toml: stores.defaults.concurrency: must be between 1 and 1024, not 0"
        ]


class TestSources:
    def test_conf_d_is_merged_in_name_order_and_the_last_wins(self, place: Place) -> None:
        place.write(f"[node]\nmax_transfers = 1\nhash_threads = 1\n[stores.a]\n{file_store('/srv/a')}")
        place.write("[node]\nmax_transfers = 20\nchunk = '2M'", "conf.d/20-more.toml")
        place.write("[node]\nmax_transfers = 10\nchunk = '1M'\n[stores.a]\nweight = 4", "conf.d/10-site.toml")
        place.write("[node]\nmax_transfers = 99", "conf.d/30-off.toml.bak")
        place.write("[node]\nmax_transfers = 99", "conf.d/.hidden.toml")
        settings = place.load()
        assert settings.node.max_transfers == 20
        assert settings.node.chunk_bytes == 2 * 1024**2
        assert settings.node.hash_threads == 1
        assert settings.stores["a"].options.weight == 4
        assert [Path(name).name for name in settings.files] == [
            "glissade.toml",
            "10-site.toml",
            "20-more.toml",
        ]

    def test_each_value_knows_where_it_came_from(self, place: Place) -> None:
        place.write(f"[stores.defaults]\nweight = 4\nretry.attempts = 2\n[stores.a]\n{file_store()}")
        extra = place.write("[api]\nmax_body = '2M'\n[stores.defaults]\nconcurrency = 2", "conf.d/10.toml")
        settings = place.load(
            environ={"GLISSADE__NODE__MAX_TRANSFERS": "4", "GLISSADE__STORES__A__DESCRIPTION": "x"}
        )
        assert settings.origin("stores.a.directories") == str(place.main)
        assert settings.origin("api.max_body") == str(extra)
        assert settings.origin("node.max_transfers") == "environment GLISSADE__NODE__MAX_TRANSFERS"
        assert settings.origin("stores.a.weight") == f"[stores.defaults] in {place.main}"
        assert settings.origin("stores.a.retry.attempts") == f"[stores.defaults] in {place.main}"
        assert settings.origin("stores.a.concurrency") == f"[stores.defaults] in {extra}"
        assert settings.origin("stores.a.retry.first_wait_s") == "default"
        assert settings.origin("node.chunk") == "default"
        with pytest.raises(KeyError):
            settings.origin("node.chunks")

    def test_the_environment_wins_and_is_toml_or_text(self, place: Place) -> None:
        stores = f"[stores.my-store]\n{file_store()}\n[stores.b]\n{file_store('/srv/b')}"
        text = f"[node]\nmax_transfers = 2\n{stores}"
        environ = {
            "GLISSADE__NODE__MAX_TRANSFERS": "4",
            "GLISSADE__NODE__CHUNK": "2M",
            "GLISSADE__NODE__LOG_LEVEL": "debug",
            "GLISSADE__API__SOCKET_MODE": "600",
            "GLISSADE__API__ALLOW_USERS": '["nova"]',
            "GLISSADE__IMPORT__ALLOW_HTTP": "true",
            "GLISSADE__STORES__MY_STORE__DESCRIPTION": "2024",
            "GLISSADE__STORES__DEFAULTS__RATE_LIMIT": "10M",
            "GLISSADE__STORES__B__RETRY__ATTEMPTS": "7",
            "GLISSADE__STORES__C": '{ type = "memory" }',
            "GLISSADE_SOCKET": "/elsewhere",
            "GLISSADE_CONFIG": "/elsewhere",
        }
        settings = place.load(text, environ)
        assert settings.node.max_transfers == 4
        assert settings.node.chunk_bytes == 2 * 1024**2
        assert settings.node.log_level == "debug"
        assert settings.api.socket_mode == 0o600
        assert settings.api.allow_users == ("nova",)
        assert settings.imports.allow_http
        assert settings.stores["my-store"].options.description == "2024"
        assert settings.stores["my-store"].options.rate_limit == 10 * 1024**2
        assert settings.stores["b"].options.retry.attempts == 7
        assert settings.stores["c"].type == "memory"

    def test_a_value_cannot_smuggle_in_another_key(self, place: Place) -> None:
        mistakes = place.mistakes("", {"GLISSADE__NODE__MAX_TRANSFERS": "4\n[api]\nsocket = '/tmp/s'"})
        assert len(mistakes) == 1
        assert (
            "environment GLISSADE__NODE__MAX_TRANSFERS: node.max_transfers: must be a whole number"
            in mistakes[0]
        )

    def test_the_path_may_come_from_the_environment(self, place: Place) -> None:
        path = place.write("[node]\nmax_transfers = 3", "other.toml")
        assert load_settings(environ={"GLISSADE_CONFIG": str(path)}).node.max_transfers == 3

    def test_a_file_that_is_not_there(self, place: Place) -> None:
        assert place.mistakes() == [
            "glissade.toml: no such file; create it, or name another one with --config or GLISSADE_CONFIG"
        ]

    def test_a_directory_is_no_file(self, place: Place) -> None:
        place.main.mkdir()
        assert place.mistakes() == [
            (
                "glissade.toml: cannot be read: Is a directory; "
                "it must be a file that the service's user can read"
            )
        ]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_an_unreadable_file(self, place: Place) -> None:
        place.write("").chmod(0)
        assert "cannot be read: Permission denied" in place.mistakes()[0]

    @pytest.mark.parametrize(
        ("content", "where", "words"),
        [
            (b"[node]\nchunk = \n", "glissade.toml:2:9: not valid TOML", "Invalid value"),
            (b"a = 1\na = 2\n", "glissade.toml:2:6: not valid TOML", "Cannot overwrite a value"),
            (b"[node]\nx = [1,", "glissade.toml:2: not valid TOML", "at the end of the file"),
            (b"[node]\nx = '\xff'", "glissade.toml:2: is not UTF-8 text", "save the file as UTF-8"),
            (b"x = " + b"[" * 100_000, "glissade.toml: is nested too deeply", ""),
        ],
    )
    def test_syntax_errors_have_a_line(self, place: Place, content: bytes, where: str, words: str) -> None:
        place.main.write_bytes(content)
        mistakes = place.mistakes()
        assert len(mistakes) == 1
        assert mistakes[0].startswith(where)
        assert words in mistakes[0]

    def test_what_an_unreadable_file_may_hold_is_not_called_missing(self, place: Place) -> None:
        place.write('[stores.a]\ntype = "file"\nchunks = 1')
        place.write("[stores.a\n", "conf.d/10.toml")
        mistakes = place.mistakes()
        assert len(mistakes) == 2
        assert mistakes[0].startswith("conf.d/10.toml:1:")
        assert mistakes[1].startswith("glissade.toml: stores.a.chunks: unknown key")

    def test_a_file_that_others_can_write_is_a_warning(self, place: Place) -> None:
        place.write("").chmod(0o666)
        assert any("can be written by group or others" in str(item) for item in place.load().warnings)


# Each: what is written, and exactly what is said about it.
KNOWN_TYPES = ", ".join(f'"{name}"' for name in sorted(STORE_TYPES))
MISTAKES = {
    "unknown section": ("[nod]\nx = 1", 'nod: unknown section; did you mean "node"?'),
    "unknown key": (
        "[node]\nmax_transfer = 1",
        'node.max_transfer: unknown key; did you mean "max_transfers"?',
    ),
    "key at the top": (
        "max_transfers = 1",
        "max_transfers: unknown section; known here: api, catalog, images, import, jobs, node, stores",
    ),
    "key in capitals": ("[node]\nChunk = '1M'", 'node.Chunk: unknown key; did you mean "chunk"?'),
    "key that needs quotes": ('[import]\n"a b" = 1', 'import."a b": unknown key; known here: ' + IMPORT_KEYS),
    "section is no table": ("node = 1", "node: must be a table, not 1; write [node]"),
    "number as text": ('[node]\nmax_transfers = "4"', 'node.max_transfers: must be a whole number, not "4"'),
    "fraction": ("[node]\nmax_transfers = 4.5", "node.max_transfers: must be a whole number, not 4.5"),
    "truth as number": ("[import]\nallow_http = 1", "import.allow_http: must be true or false, not 1"),
    "number as truth": (
        "[node]\nmax_transfers = true",
        "node.max_transfers: must be a whole number, not true",
    ),
    "not finite": ("[node]\ndrain_timeout_s = inf", "node.drain_timeout_s: must be a finite number, not inf"),
    "out of range": ("[node]\nmax_transfers = 0", "node.max_transfers: must be between 1 and 1024, not 0"),
    "date": (
        "[node]\nmax_transfers = 2024-01-01",
        "node.max_transfers: must be a whole number, not 2024-01-01",
    ),
    "choice": (
        '[node]\nlog_level = "warn"',
        (
            "node.log_level: must be one of 'debug', 'info', 'warning' or 'error', not \"warn\"; "
            'did you mean "warning"?'
        ),
    ),
    "list as text": (
        '[api]\nallow_users = "nova"',
        'api.allow_users: must be a list, not "nova"; write ["nova"]',
    ),
    "wrong item": ('[api]\nallow_users = ["a", 3]', "api.allow_users[1]: must be text in quotes, not 3"),
    "size": (
        '[node]\nchunk = "big"',
        "node.chunk: 'big' is no size: write bytes as 4096, 512K, 64M or 1.5G",
    ),
    "size as table": (
        "[node]\nchunk = {}",
        'node.chunk: must be a size like "64M" or a number of bytes, not a table',
    ),
    "chunk too large": ('[node]\nchunk = "32M"', "node.chunk: must be between 256K and 16M, not 32M"),
    "chunk not in pages": ("[node]\nchunk = 300001", "node.chunk: must be a multiple of 4096, not 300001"),
    "budget too small": (
        '[node]\nchunk = "16M"\nbuffer_budget = "32M"',
        (
            "node.buffer_budget: must hold at least 4 chunks of node.chunk; "
            "raise node.buffer_budget or lower node.chunk"
        ),
    ),
    "too many chunks": (
        '[node]\nchunk = "256K"\nbuffer_budget = "64G"',
        (
            "node.buffer_budget: must hold at most 32768 chunks of node.chunk; "
            "raise node.chunk or lower node.buffer_budget"
        ),
    ),
    "rate": (
        '[node]\nrate_limit = "fast"',
        "node.rate_limit: 'fast' is no rate: write bytes per second as 800K, 10M, 1.5G, or off for no limit",
    ),
    "rate as truth": (
        "[node]\nrate_limit = false",
        'node.rate_limit: must be a rate like "10M" or "off", not false',
    ),
    "mode as number": (
        "[api]\nsocket_mode = 660",
        'api.socket_mode: must be a file mode as text, not 660; write "0640" in quotes',
    ),
    "mode": (
        '[api]\nsocket_mode = "0990"',
        "api.socket_mode: '0990' is no file mode: write three octal digits as text, like \"0640\"",
    ),
    "socket closed to us": (
        '[api]\nsocket_mode = "0060"',
        'api.socket_mode: must let the service\'s own user read and write; write "0660"',
    ),
    "relative path": ('[api]\nsocket = "api.sock"', "api.socket: must be an absolute path, not 'api.sock'"),
    "path with dots": (
        '[node]\nstate_directory = "/var/../etc"',
        "node.state_directory: must be a plain absolute path; write '/etc'",
    ),
    "path with nul": ('[import]\nca_file = "/a\\u0000"', "import.ca_file: must not contain a NUL character"),
    "relative in a list": (
        '[import]\ndirectories = ["/a", "b"]',
        "import.directories[1]: must be an absolute path, not 'b'",
    ),
    "host bits": (
        '[import]\nallow_private_addresses = ["10.0.0.1/8"]',
        "import.allow_private_addresses[0]: '10.0.0.1/8' has host bits set; write \"10.0.0.0/8\"",
    ),
    "no network": (
        '[import]\ndeny_addresses = ["local"]',
        'import.deny_addresses[0]: \'local\' is no network: write "10.20.0.0/16" or "fd00:1::/32"',
    ),
    "port": ("[import]\nports = [0]", "import.ports[0]: must be between 1 and 65535, not 0"),
    "catalogue elsewhere": (
        f'[catalog]\nurl = "postgresql://u:{CANARY}@db/glissade"',
        (
            "catalog.url: must not hold a password; "
            'write password = { file = "/etc/glissade/catalog-password" }'
        ),
    ),
    "catalogue of another kind": (
        f'[catalog]\nurl = "mysql://u:{CANARY}@db/glissade"',
        (
            "catalog.url: must name an SQLite or PostgreSQL database; "
            'write "sqlite:////var/lib/glissade/catalog.db" (four slashes) or just the path, '
            "or postgresql+asyncpg://user@host/database"
        ),
    ),
    "catalogue without a database": (
        '[catalog]\nurl = "postgresql://u@db"',
        (
            "catalog.url: must name a host and a database, and may list hosts as ?host=; "
            "write postgresql+asyncpg://user@host/database"
        ),
    ),
    "relative catalogue": (
        '[catalog]\nurl = "sqlite:///catalog.db"',
        (
            "catalog.url: must name an absolute path to a file; "
            'write "sqlite:////var/lib/glissade/catalog.db" (four slashes) or just the path'
        ),
    ),
    "store without type": (
        "[stores.a]\nweight = 1",
        f"stores.a.type: is missing; write type = one of {KNOWN_TYPES}",
    ),
    "unknown type": (
        '[stores.a]\ntype = "fil"',
        'stores.a.type: "fil" is no store type; did you mean "file"?',
    ),
    "far type": (
        '[stores.a]\ntype = "zzz"',
        f'stores.a.type: "zzz" is no store type; known here: {", ".join(sorted(STORE_TYPES))}',
    ),
    "type is no text": (
        "[stores.a]\ntype = 1",
        f"stores.a.type: must be one of {KNOWN_TYPES}, not 1",
    ),
    "missing key": (
        '[stores.a]\ntype = "file"',
        "stores.a.directories: is missing; it has no default; write directories = [...]",
    ),
    "store is no table": ("[stores]\na = 1", "stores.a: must be a table, not 1; write [stores.a]"),
    "default misplaced": (
        "[stores]\nconcurrency = 1",
        "stores.concurrency: must be a table, not 1; write it in [stores.defaults] to set it for all stores",
    ),
    "nested unknown key": (
        '[stores.a]\ntype = "file"\ndirectories = [{ path = "/a", prio = 1 }]',
        'stores.a.directories[0].prio: unknown key; did you mean "priority"?',
    ),
    "nested missing key": (
        '[stores.a]\ntype = "file"\ndirectories = [{ priority = 1 }]',
        'stores.a.directories[0].path: is missing; it has no default; write path = "..."',
    ),
    "nested wrong value": (
        '[stores.a]\ntype = "file"\n[[stores.a.directories]]\npath = "/a"\npriority = "1"',
        'stores.a.directories[0].priority: must be a whole number, not "1"',
    ),
    "unknown key in retry": (
        '[stores.a]\ntype = "memory"\nretry.atempts = 1',
        'stores.a.retry.atempts: unknown key; did you mean "attempts"?',
    ),
    "retry is no table": (
        '[stores.a]\ntype = "memory"\nretry = 3',
        "stores.a.retry: must be a table, not 3; write [stores.a.retry]",
    ),
    "retry waits": (
        '[stores.a]\ntype = "memory"\nretry = { first_wait_s = 5, longest_wait_s = 1 }',
        "stores.a.retry.longest_wait_s: must not be less than first_wait_s",
    ),
    "option out of range": (
        '[stores.a]\ntype = "memory"\nconcurrency = 0',
        "stores.a.concurrency: must be between 1 and 1024, not 0",
    ),
    "key of another type": (
        '[stores.a]\ntype = "memory"\nmetadata_file = "/m"',
        (
            "stores.a.metadata_file: unknown key; "
            "it belongs to stores of type file, and this one is of type memory"
        ),
    ),
    "type's key as default": (
        "[stores.defaults]\nmetadata_file = '/m'",
        (
            "stores.defaults.metadata_file: cannot be a default: it belongs to stores of type file; "
            "write it in [stores.<id>]"
        ),
    ),
    "type as default": (
        '[stores.defaults]\ntype = "file"',
        "stores.defaults.type: cannot be a default: each store has its own; write it in [stores.<id>]",
    ),
    "unknown default": (
        "[stores.defaults]\nwieght = 1",
        'stores.defaults.wieght: unknown key; did you mean "weight"?',
    ),
    "the dataclass's own check": (
        '[stores.a]\ntype = "file"\ndirectories = []',
        "stores.a.directories: at least one is needed",
    ),
    "store id": (
        '[stores."My Store"]\ntype = "memory"',
        (
            'stores."My Store": is no store id; '
            "use up to 63 of a-z, 0-9, _ and -, beginning with a letter or digit"
        ),
    ),
    "reserved id": (
        '[stores.os_glance_staging_store]\ntype = "memory"',
        (
            "stores.os_glance_staging_store: store ids beginning with os_glance_ belong to Glance; "
            "choose another id"
        ),
    ),
    "two defaults": (
        '[stores.a]\ntype = "memory"\ndefault = true\n[stores.b]\ntype = "memory"\ndefault = true',
        "stores.b.default: only one store can be the default, and stores.a is; remove one of the two",
    ),
    "read-only default": (
        '[stores.a]\ntype = "http"\ndefault = true',
        "stores.a.default: a read-only store cannot be the default; mark a store that takes images",
    ),
    "default is no truth": (
        '[stores.a]\ntype = "memory"\ndefault = "yes"',
        'stores.a.default: must be true or false, not "yes"',
    ),
    "no staging area": (
        '[images]\nstaging_store = "a"',
        "images.staging_store: there is no store a; name one of [stores.<id>] that is for this alone",
    ),
    "defaults as a staging area": (
        '[images]\nstaging_store = "defaults"\n[stores.defaults]\nweight = 1',
        (
            "images.staging_store: there is no store defaults; "
            "name one of [stores.<id>] that is for this alone"
        ),
    ),
    "read-only staging area": (
        '[images]\nstaging_store = "a"\n[stores.a]\ntype = "http"',
        (
            "images.staging_store: the store a is read-only or lets nothing be deleted; "
            "name one into which bytes can be put for a while"
        ),
    ),
    "staging area that keeps everything": (
        '[images]\nstaging_store = "a"\n[stores.a]\ntype = "memory"\nallow_delete = false',
        (
            "images.staging_store: the store a is read-only or lets nothing be deleted; "
            "name one into which bytes can be put for a while"
        ),
    ),
    "default store as a staging area": (
        '[images]\nstaging_store = "a"\n[stores.a]\ntype = "memory"\ndefault = true',
        "images.staging_store: the store a is also one for images; name a store that is there for this alone",
    ),
    "upload store as a staging area": (
        '[images]\nstaging_store = "a"\nupload_stores = ["a"]\n[stores.a]\ntype = "memory"',
        "images.staging_store: the store a is also one for images; name a store that is there for this alone",
    ),
    "shared directory": (
        f"[stores.a]\n{file_store('/srv/x')}\n[stores.b]\n{file_store('/srv/x')}",
        (
            "stores.b.directories[0]: /srv/x is also stores.a.directories[0]; "
            "give each store directories of its own"
        ),
    ),
    "our own directory": (
        f"[stores.a]\n{file_store('/var/lib/glissade')}",
        (
            "stores.a.directories[0]: /var/lib/glissade is also node.state_directory; "
            "give each store directories of its own"
        ),
    ),
}


class TestMistakes:
    @pytest.mark.parametrize(("text", "said"), MISTAKES.values(), ids=MISTAKES)
    def test_each_names_file_key_what_is_wrong_and_what_would_be_right(
        self, place: Place, text: str, said: str
    ) -> None:
        assert place.mistakes(text) == [f"glissade.toml: {said}"]

    def test_all_are_reported_at_once_each_with_its_own_file(self, place: Place) -> None:
        place.write('[node]\nchunk = "1"\nhash_thread = 1\n[stores.a]\ntype = "file"\ndirectories = ["/a"]')
        place.write("[stores.a]\nweigth = 1\n[api]\nmax_body = true", "conf.d/10.toml")
        assert place.mistakes(
            environ={"GLISSADE__NODE__LOG_FORMAT": "xml", "GLISSADE__STORES__A__RATE_LIMIT": "x"}
        ) == [
            'glissade.toml: node.hash_thread: unknown key; did you mean "hash_threads"?',
            "glissade.toml: node.chunk: must be between 256K and 16M, not 1",
            "glissade.toml: node.chunk: must be a multiple of 4096, not 1",
            (
                "environment GLISSADE__NODE__LOG_FORMAT: node.log_format: "
                "must be one of 'text' or 'json', not \"xml\""
            ),
            'conf.d/10.toml: api.max_body: must be a size like "64M" or a number of bytes, not true',
            'conf.d/10.toml: stores.a.weigth: unknown key; did you mean "weight"?',
            (
                "environment GLISSADE__STORES__A__RATE_LIMIT: stores.a.rate_limit: 'x' is no rate: "
                "write bytes per second as 800K, 10M, 1.5G, or off for no limit"
            ),
        ]

    def test_a_directory_under_two_names_is_still_one(self, place: Place) -> None:
        real = place.directory / "images"
        real.mkdir()
        (place.directory / "link").symlink_to(real)
        first, second = file_store(str(real)), file_store(f"{place.directory}/link")
        mistakes = place.mistakes(f"[stores.a]\n{first}\n[stores.b]\n{second}")
        assert len(mistakes) == 1
        assert "stores.b.directories[0]: link (it is images) is also stores.a.directories[0]" in mistakes[0]

    def test_a_socket_path_that_the_kernel_would_refuse(self, place: Place) -> None:
        mistakes = place.mistakes(f'[api]\nsocket = "/{"x" * 107}"')
        assert "api.socket: is longer than the 107 bytes" in mistakes[0]
        place.load(f'[api]\nsocket = "/{"x" * 106}"')

    @pytest.mark.parametrize("name", ["GLISSADE__NODE", "GLISSADE__", "GLISSADE__NODE____X"])
    def test_environment_names_that_name_nothing(self, place: Place, name: str) -> None:
        assert place.mistakes("", {name: "1"}) == [
            (
                f"environment {name}: does not name a setting; "
                "write GLISSADE__SECTION__KEY, for example GLISSADE__NODE__MAX_TRANSFERS"
            )
        ]

    def test_an_unknown_key_in_the_environment(self, place: Place) -> None:
        assert place.mistakes("", {"GLISSADE__NODE__CHUNKS": "1M"}) == [
            'environment GLISSADE__NODE__CHUNKS: node.chunks: unknown key; did you mean "chunk"?'
        ]

    def test_the_error_counts_and_lists(self, place: Place) -> None:
        with pytest.raises(
            ConfigError, match=r"^2 mistakes in the configuration:\n  .*node\.a.*\n  .*node\.b"
        ):
            place.load("[node]\na = 1\nb = 1")

    def test_the_root_directory_is_a_warning(self, place: Place) -> None:
        settings = place.load('[import]\ndirectories = ["/"]')
        assert any("import.directories: lets every file" in str(item) for item in settings.warnings)


class TestSecrets:
    STORE = (
        '[stores.web]\ntype = "http"\nauthorization_origin = "https://images.example.com"\nauthorization = '
    )

    def secret_file(self, place: Place, content: str = f"{CANARY}\n", mode: int = 0o600) -> Path:
        path = place.write(content, "secret")
        path.chmod(mode)
        return path

    def revealed(self, settings: Settings) -> tuple[str, str]:
        config = settings.stores["web"].config
        assert isinstance(config, HttpConfig)
        assert config.authorization is not None
        return config.authorization.reveal(), config.authorization.source

    def test_from_a_file(self, place: Place) -> None:
        path = self.secret_file(place)
        settings = place.load(f'{self.STORE}{{ file = "{path}" }}')
        assert self.revealed(settings) == (CANARY, f"file {path}")

    def test_from_the_environment(self, place: Place) -> None:
        settings = place.load(f'{self.STORE}{{ env = "TOKEN" }}', {"TOKEN": CANARY})
        assert self.revealed(settings) == (CANARY, "environment TOKEN")

    def test_from_a_systemd_credential(self, place: Place) -> None:
        # With an ACL, systemd's files show group bits.
        place.write(CANARY, "token").chmod(0o440)
        environ = {"CREDENTIALS_DIRECTORY": str(place.directory)}
        settings = place.load(f'{self.STORE}{{ credential = "token" }}', environ)
        assert self.revealed(settings) == (CANARY, "credential token")

    def test_a_later_reference_replaces_the_earlier_one_as_a_whole(self, place: Place) -> None:
        place.write(f'{self.STORE}{{ file = "/nowhere" }}')
        place.write('[stores.web]\nauthorization = { env = "TOKEN" }', "conf.d/10.toml")
        assert self.revealed(place.load(environ={"TOKEN": CANARY}))[0] == CANARY

    @pytest.mark.parametrize(
        ("reference", "said"),
        [
            (f'"{CANARY}"', "a secret is never written into the configuration; refer to it: { file = "),
            ("1234", "a secret is never written into the configuration; refer to it: { file = "),
            ("{}", "a secret reference has exactly one of file, env, credential; refer to it: "),
            ('{ file = "/a", env = "B" }', "a secret reference has exactly one of file, env, credential; "),
            (f'{{ value = "{CANARY}" }}', "a secret reference has exactly one of file, env, credential; "),
            ("{ env = 3 }", "the secret's env must be named by a non-empty text; "),
            ('{ env = "NONE" }', "the environment variable NONE is not set; "),
            ('{ env = "EMPTY" }', "the environment variable EMPTY is empty; "),
            ('{ file = "secret" }', "the secret file 'secret' must be an absolute path"),
            (
                '{ file = "/nowhere/x" }',
                "the secret file /nowhere/x cannot be read: No such file or directory; ",
            ),
            ('{ file = "/dev/null" }', "the secret file /dev/null is no regular file"),
            ('{ credential = "x" }', "the credential x needs systemd: $CREDENTIALS_DIRECTORY is not set; "),
            ('{ credential = "../x" }', "'../x' is no name of a systemd credential; "),
        ],
    )
    def test_what_is_no_secret(self, place: Place, reference: str, said: str) -> None:
        mistakes = place.mistakes(f"{self.STORE}{reference}", {"EMPTY": ""})
        assert len(mistakes) == 1
        assert mistakes[0].startswith(f"glissade.toml: stores.web.authorization: {said}")
        assert CANARY not in mistakes[0]

    @pytest.mark.parametrize(
        ("content", "mode", "said"),
        [
            (CANARY, 0o640, "is open to group or others (mode 0640); chmod 600 "),
            (CANARY, 0o604, "is open to group or others (mode 0604); chmod 600 "),
            ("\n", 0o600, "is empty"),
            ("x" * 65537, 0o600, "is larger than 64 KiB"),
        ],
    )
    def test_what_is_no_secret_file(self, place: Place, content: str, mode: int, said: str) -> None:
        path = self.secret_file(place, content, mode)
        mistakes = place.mistakes(f'{self.STORE}{{ file = "{path}" }}')
        assert len(mistakes) == 1
        assert said in mistakes[0]
        assert CANARY not in mistakes[0]

    def test_a_fifo_does_not_hang(self, place: Place) -> None:
        os.mkfifo(place.directory / "pipe", 0o600)
        mistakes = place.mistakes(f'{self.STORE}{{ file = "{place.directory}/pipe" }}')
        assert "is no regular file" in mistakes[0]

    def test_outside_the_service_its_environment_is_not_required(self, place: Place) -> None:
        settings = place.load(f'{self.STORE}{{ credential = "x" }}', outside_service=True)
        assert any("it was not checked here" in str(item) for item in settings.warnings)
        settings = place.load(f'{self.STORE}{{ env = "X" }}', outside_service=True)
        assert any("it was not checked here" in str(item) for item in settings.warnings)

    def test_a_secret_is_never_printed(self, place: Place) -> None:
        settings = place.load(f'{self.STORE}{{ file = "{self.secret_file(place)}" }}')
        assert CANARY not in repr(settings)
        assert "authorization=***" in repr(settings)
        assert CANARY not in f"{settings.stores['web'].config}"

    def test_a_literal_in_the_environment_is_refused_without_being_repeated(self, place: Place) -> None:
        mistakes = place.mistakes(
            f'{self.STORE}{{ env = "X" }}', {"X": "y", "GLISSADE__STORES__WEB__AUTHORIZATION": CANARY}
        )
        assert "never written into the configuration" in mistakes[0]
        assert CANARY not in mistakes[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("1K", 1024), ("1.5 MiB", 1536 * 1024), ("2g", 2 * 1024**3), ("1TB", 1024**4)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "-1", "1X", "K", "1 2", "1e3", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_modes() -> None:
    assert parse_mode("0640") == parse_mode("640") == 0o640
    assert format_mode(0o40) == "0040"
    for text in ("", "64", "8", "0o640", "10640", "-640"):
        with pytest.raises(ValueError, match="is no file mode"):
            parse_mode(text)


def test_did_you_mean() -> None:
    assert did_you_mean("chnk", ["chunk", "node"]) == 'did you mean "chunk"?'
    assert did_you_mean("zzz", ["b", "a"]) == "known here: a, b"
    assert did_you_mean("zzz", [str(number) for number in range(20)]) == ""
