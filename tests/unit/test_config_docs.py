"""docs/configuration.md describes exactly the keys there are, with their defaults."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from control.config.load import SECTIONS
from control.config.render import default_text
from control.config.settings import (
    ApiSettings,
    CatalogSettings,
    CertificateCaller,
    ImageSettings,
    ImportSettings,
    JobSettings,
    KeystoneSettings,
    NodeSettings,
    QuotaSettings,
)
from control.config.stores import OWN_KEYS
from control.config.typed import fields_of
from drivers.filesystem.config import Directory, FileConfig
from drivers.http.config import HttpConfig
from drivers.memory import MemoryConfig
from drivers.options import RetryOptions, StoreOptions
from drivers.rbd.config import RbdConfig
from drivers.registry import STORE_TYPES
from drivers.s3.config import S3Config
from drivers.swift.config import SwiftConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$")

# The heading of each dataclass, and which of the tables beneath it.
TABLES: dict[type, tuple[str, int]] = {
    NodeSettings: ("## [node]", 0),
    ApiSettings: ("## [api]", 0),
    CertificateCaller: ("### Certificates", 0),
    KeystoneSettings: ("### Keystone", 0),
    CatalogSettings: ("## [catalog]", 0),
    JobSettings: ("## [jobs]", 0),
    ImageSettings: ("## [images]", 0),
    QuotaSettings: ("### Quotas", 0),
    ImportSettings: ("## [import]", 0),
    StoreOptions: ("### Common options", 0),
    RetryOptions: ("### Retry", 0),
    FileConfig: ("### Type `file`", 0),
    Directory: ("### Type `file`", 1),
    HttpConfig: ("### Type `http`", 0),
    MemoryConfig: ("### Type `memory`", 0),
    S3Config: ("### Type `s3`", 0),
    SwiftConfig: ("### Type `swift`", 0),
    RbdConfig: ("### Type `rbd`", 0),
}


def documented(heading: str, number: int) -> dict[str, str]:
    """Key and default of each row of a table."""
    lines = PAGE.read_text().splitlines()
    begin = lines.index(heading) + 1
    tables: list[dict[str, str]] = []
    for line in lines[begin:]:
        if line.startswith("#"):
            break
        if line == "|---|---|---|---|":
            tables.append({})
        elif match := ROW.match(line):
            tables[-1][match[1]] = match[3].strip()
    return tables[number]


@pytest.mark.parametrize("cls", TABLES, ids=lambda cls: cls.__name__)
def test_every_key_is_documented_with_its_default(cls: type) -> None:
    expected = {}
    for spec in fields_of(cls):
        if spec.default is dataclasses.MISSING:
            expected[spec.key] = "required"
        elif spec.table is not None:
            expected[spec.key] = "see below"
        else:
            text = default_text(spec)
            expected[spec.key] = "not set" if text is None else f"`{text}`"
    assert documented(*TABLES[cls]) == expected


def test_every_store_type_and_section_is_documented() -> None:
    assert {kind.config_class() for kind in STORE_TYPES.values()} <= set(TABLES)
    text = PAGE.read_text()
    assert [name for name in SECTIONS if f"\n## [{name}" not in text] == []
    assert tuple(documented("## [stores.ID]", 0)) == OWN_KEYS
