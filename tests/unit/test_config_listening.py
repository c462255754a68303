"""`[api]` for TCP: how it is written, and what the configuration refuses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from control.api.auth.keystone import Keystone
from control.api.errors import StartRefusedError
from control.cli.main import main
from control.config import ConfigError, load_settings
from control.config.render import as_toml
from control.config.settings import CertificateCaller, KeystoneSettings

if TYPE_CHECKING:
    from pathlib import Path

    from control.config import Settings

COMPLETE = """
[api]
listen = ["0.0.0.0:9292", "[::1]:9292", "localhost:9293"]
hosts = ["images.example.com"]
tls_cert_file = "/etc/glissade/server.pem"
tls_key_file = "/etc/glissade/server.key"
tls_client_ca_file = "/etc/glissade/clients.pem"
tokens_file = "/etc/glissade/tokens"
policy_file = "/etc/glance/policy.yaml"

[[api.certificates]]
subject = "URI:spiffe://example.com/nova"

[[api.certificates]]
subject = "CN:boss"
roles = ["admin"]
project = "p1"

[api.keystone]
auth_url = "https://keystone.example.com:5000/v3"
user = "glissade"
password = { env = "KEYSTONE_PASSWORD" }
"""


def loaded(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "glissade.toml"
    file.write_text(text)
    return load_settings(file, environ={"KEYSTONE_PASSWORD": "hunter2"})


def test_everything_is_read_as_it_is_written_and_written_as_it_is_read(tmp_path: Path) -> None:
    settings = loaded(tmp_path, COMPLETE)
    api = settings.api
    assert api.listen == ("0.0.0.0:9292", "[::1]:9292", "localhost:9293")
    assert api.certificates == (
        CertificateCaller(subject="URI:spiffe://example.com/nova", roles=("service",)),
        CertificateCaller(subject="CN:boss", roles=("admin",), project="p1"),
    )
    assert api.keystone.password is not None
    assert api.keystone.password.reveal() == "hunter2"
    text = as_toml(settings)
    assert "hunter2" not in text
    shown = "\n".join(line for line in text.splitlines() if not line.startswith("password = "))
    again = loaded(
        tmp_path, shown.replace("[api.keystone]", '[api.keystone]\npassword = { env = "KEYSTONE_PASSWORD" }')
    )
    assert again.api == api


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ('listen = ["127.0.0.1:9292"]', "api.listen", "would let anybody in"),
        ('listen = ["0.0.0.0:9292"]\ntokens_file = "/t"', "api.listen", "in the clear"),
        ('listen = ["images.example.com:9292"]', "api.listen[0]", "is no address and port"),
        ('listen = ["0.0.0.0"]', "api.listen[0]", "is no address and port"),
        ('listen = ["::1:9292"]', "api.listen[0]", "is no address and port"),
        ('listen = ["127.0.0.1:0"]', "api.listen[0]", "is no address and port"),
        ('listen = ["127.0.0.1:65536"]', "api.listen[0]", "is no address and port"),
        ('listen = "127.0.0.1:9292"', "api.listen", "must be a list"),
        ('tls_cert_file = "/c"', "api.tls_key_file", "is missing"),
        ('certificates = ["nova"]', "api.certificates[0].subject", "must be"),
        ('certificates = [{ subject = "CN:a", scope = "x" }]', "api.certificates[0].scope", "unknown key"),
        ('[api.keystone]\nauth_url = "https://k/v3"', "api.keystone", "needs either"),
        ('[api.keystone]\nauth_url = "https://u:p@k/v3"', "api.keystone.auth_url", "no user, password"),
        ('[api.keystone]\nauth_url = "k:5000"', "api.keystone.auth_url", "must be an URL"),
        ("[api.keystone]\ncache_s = 61", "api.keystone.cache_s", "must be between"),
        ('[api.keystone]\nuser = "glissade"', "api.keystone.auth_url", "is missing"),
        ('[api.keystone]\npasword = "x"', "api.keystone.pasword", "unknown key"),
    ],
)
def test_mistakes_are_refused_with_their_key(tmp_path: Path, text: str, key: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, text if text.startswith("[") else f"[api]\n{text}")
    found = {problem.key: problem.message for problem in refused.value.problems}
    assert why in found.get(key, ""), found


def test_a_keystone_that_is_asked_in_the_clear_is_a_warning(tmp_path: Path) -> None:
    settings = loaded(tmp_path, COMPLETE.replace("https://keystone", "http://keystone"))
    assert [problem.key for problem in settings.warnings if "in the clear" in problem.message] == [
        "api.keystone.auth_url"
    ]
    local = loaded(tmp_path, COMPLETE.replace("https://keystone.example.com", "http://127.0.0.1"))
    assert not any("in the clear" in problem.message for problem in local.warnings)


def test_an_open_door_ends_the_daemon_with_status_6(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "glissade.toml"
    file.write_text('[api]\nlisten = ["127.0.0.1:9292"]\n')
    assert int(main(["--config", str(file), "serve"])) == 6
    assert "would let anybody in" in capsys.readouterr().err


def test_without_keystoneauth_the_start_is_refused_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "keystoneauth1"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "keystoneauth1", None)
    with pytest.raises(StartRefusedError, match=r"glissade\[keystone\]"):
        Keystone(KeystoneSettings(auth_url="https://k/v3"))
