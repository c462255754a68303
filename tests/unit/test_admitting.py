"""Hosts, fairness, TLS files, and which listening is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from control.api.auth.guarding import rule_for
from control.api.auth.rules import DEFAULT_RULES
from control.api.errors import StartRefusedError, TlsFilesError, TooManyRequestsError, TooManyStreamsError
from control.api.fairness import CallerLimits, RateLimits
from control.api.hosts import AllowedHosts
from control.api.listen import TcpSocket, refuse_open_doors
from control.api.tls import ServerTls
from control.config import ApiSettings
from control.config.settings import CertificateCaller, KeystoneSettings
from drivers.secret import Secret
from tests.services.tls import make_authority

if TYPE_CHECKING:
    from pathlib import Path

CERTIFICATE = CertificateCaller(subject="CN:nova")
KEYSTONE = KeystoneSettings(auth_url="https://keystone/v3", user="glissade", password=Secret("x"))
TLS = {"tls_cert_file": "/c.pem", "tls_key_file": "/k.pem"}


@pytest.mark.parametrize(
    "header",
    [
        "localhost",
        "localhost:9292",
        "127.0.0.1:9292",
        "[::1]:9292",
        "10.1.2.3",
        "Images.Example.com:443",
        "images.example.com.",
        "a.pool.example.com",
    ],
)
def test_our_names_and_any_address_are_ours(header: str) -> None:
    assert AllowedHosts(["images.example.com", "*.pool.example.com"]).allows(header)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "user@localhost",
        "localhost@evil.example",
        "a.b.pool.example.com",
        "pool.example.com",
        "xpool.example.com",
        "[::1",
        "0x7f000001.evil",
        "evil.example#localhost",
    ],
)
def test_other_names_are_not(header: str) -> None:
    assert not AllowedHosts(["images.example.com", "*.pool.example.com"]).allows(header)


def test_a_caller_has_so_many_requests_in_work_and_no_more() -> None:
    limits = CallerLimits(max_requests=2, requests_per_s=1000, max_streams=1)
    with limits.request_of("a"), limits.request_of("a"):
        with pytest.raises(TooManyRequestsError, match="2 requests"), limits.request_of("a"):
            pass
        with limits.request_of("b"):
            pass
    with limits.request_of("a"):
        pass
    assert limits._requests.in_work == {}


def test_a_failed_request_gives_its_place_back() -> None:
    limits = CallerLimits(max_requests=1, requests_per_s=1000, max_streams=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), limits.request_of("a"):
            raise ZeroDivisionError
    assert limits._requests.in_work == {}


def test_who_asks_too_often_waits_and_the_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("control.api.fairness.time.monotonic", lambda: now)
    limits = CallerLimits(max_requests=5, requests_per_s=10, max_streams=1)

    def asked(name: str) -> bool:
        try:
            with limits.request_of(name):
                return True
        except TooManyRequestsError:
            return False

    assert [asked("a") for _ in range(21)] == [True] * 20 + [False]
    assert asked("b")
    now += 0.35
    assert [asked("a") for _ in range(4)] == [True, True, True, False]
    now += 3600
    assert sum(asked("a") for _ in range(40)) == 20


def test_a_project_has_so_many_streams_whoever_of_it_asks() -> None:
    limits = CallerLimits(max_requests=1, requests_per_s=1000, max_streams=2)
    with limits.stream_of("a", "p1"), limits.stream_of("b", "p1"):
        with pytest.raises(TooManyStreamsError, match="2 streams"), limits.stream_of("c", "p1"):
            pass
        # Others have theirs, and requests are counted for themselves.
        with limits.stream_of("d", "p2"), limits.request_of("a"):
            pass
    assert limits._streams.in_work == {}
    with limits.stream_of("c", "p1"):
        pass


def test_names_are_not_remembered_for_ever() -> None:
    rates = RateLimits(rate_per_s=1, burst=2)
    for number in range(20_000):
        assert rates.take(str(number))
    assert len(rates._buckets) <= 10_000


@pytest.mark.parametrize(
    ("method", "resource", "rule"),
    [
        ("GET", "/v1/jobs", "glissade:read"),
        ("HEAD", "/v1/images/{id}", "glissade:read"),
        ("GET", "/metrics", "glissade:read"),
        ("GET", "/v1/images/{id}/data", "glissade:data"),
        ("POST", "/v1/plans", "glissade:read"),
        ("POST", "/v1/jobs", "glissade:submit"),
        ("POST", "/v1/batches", "glissade:submit"),
        ("POST", "/v1/jobs/{id}/cancel", "glissade:cancel"),
        ("POST", "/v1/gc", "glissade:admin"),
        ("PATCH", "/v1/limits", "glissade:admin"),
        ("POST", "/v1/whatever/comes/next", "glissade:admin"),
        ("GET", "/v2/images", None),
    ],
)
def test_each_path_of_v1_has_its_rule(method: str, resource: str, rule: str | None) -> None:
    assert rule_for(method, resource) == rule
    assert rule is None or rule in DEFAULT_RULES


@pytest.mark.parametrize(
    "api",
    [
        {},
        {"listen": ("127.0.0.1:9292",), "tokens_file": "/t"},
        {"listen": ("[::1]:9292", "127.0.0.2:9292"), "tokens_file": "/t"},
        {"listen": ("127.0.0.1:9292",), "keystone": KEYSTONE},
        {"listen": ("0.0.0.0:9292",), "keystone": KEYSTONE, **TLS},
        {"listen": ("10.0.0.1:9292",), "keystone": KEYSTONE, "behind_tls_proxy": True},
        {"listen": ("0.0.0.0:9292",), "certificates": (CERTIFICATE,), "tls_client_ca_file": "/ca", **TLS},
    ],
)
def test_listening_that_is_safe_starts(api: dict[str, Any]) -> None:
    refuse_open_doors(ApiSettings(**api))


@pytest.mark.parametrize(
    ("api", "why"),
    [
        ({"listen": ("127.0.0.1:9292",)}, "no authentication"),
        ({"listen": ("0.0.0.0:9292",), **TLS}, "no authentication"),
        ({"listen": ("127.0.0.1:9292",), "behind_tls_proxy": True}, "no authentication"),
        ({"listen": ("0.0.0.0:9292",), "tokens_file": "/t"}, "in the clear on 0.0.0.0:9292"),
        ({"listen": ("127.0.0.1:1", "[::]:9292"), "keystone": KEYSTONE}, r"in the clear on \[::\]:9292"),
        ({"tls_cert_file": "/c.pem"}, "tls_key_file is missing"),
        ({"tls_key_file": "/k.pem"}, "tls_cert_file is missing"),
        ({"certificates": (CERTIFICATE,), **TLS}, "tls_client_ca_file is missing"),
        ({"certificates": (CERTIFICATE,), "tls_client_ca_file": "/ca"}, "needs TLS"),
        ({"tls_client_ca_file": "/ca", **TLS}, "of no use without certificates"),
        (
            {"certificates": (CERTIFICATE, CERTIFICATE), "tls_client_ca_file": "/ca", **TLS},
            "there twice",
        ),
        ({"keystone": dataclasses.replace(KEYSTONE, password=None)}, "needs either user and password"),
        (
            {"keystone": dataclasses.replace(KEYSTONE, application_credential_id="a")},
            "",
        ),
        ({"keystone": dataclasses.replace(KEYSTONE, auth_url=None)}, "auth_url is missing"),
    ],
)
def test_listening_that_lets_anybody_in_or_listen_in_is_refused(api: dict[str, Any], why: str) -> None:
    settings = ApiSettings(**api)
    if not why:
        refuse_open_doors(settings)  # Half of an application credential does not spoil user and password.
        return
    with pytest.raises(StartRefusedError, match=why):
        refuse_open_doors(settings)


def test_a_port_that_is_taken_is_refused() -> None:
    probe = TcpSocket("127.0.0.1:39393")
    try:
        with pytest.raises(StartRefusedError, match=r"127\.0\.0\.1:39393 cannot be listened on"):
            TcpSocket("127.0.0.1:39393")
    finally:
        probe.close()


def test_tls_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    make_authority(tmp_path)

    def tls(cert: str = "server.pem", key: str = "server.key", ca: str | None = None) -> ServerTls:
        return ServerTls(
            cert_file=str(tmp_path / cert),
            key_file=str(tmp_path / key),
            client_ca_file=None if ca is None else str(tmp_path / ca),
            needs_client=True,
        )

    tls(ca="ca.pem")
    (tmp_path / "nonsense").write_text("nonsense")
    for wrong in (
        {"cert": "nonsense"},
        {"cert": "nothing"},
        {"key": "ca.key"},
        {"key": "nonsense"},
        {"ca": "nonsense"},
        {"ca": "nothing"},
    ):
        with pytest.raises(TlsFilesError):
            tls(**wrong)
    (tmp_path / "server.key").chmod(0o644)
    with pytest.raises(TlsFilesError, match="chmod 0640"):
        tls()


async def test_a_renewed_certificate_is_taken_and_half_of_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for where in (old, new):
        where.mkdir()
        make_authority(where)
    for name in ("server.pem", "server.key"):
        shutil.copy(old / name, tmp_path / name)
    tls = ServerTls(
        cert_file=str(tmp_path / "server.pem"),
        key_file=str(tmp_path / "server.key"),
        client_ca_file=None,
        needs_client=False,
    )
    server = await asyncio.start_server(lambda _r, writer: writer.close(), "127.0.0.1", 0, ssl=tls.context)
    port = server.sockets[0].getsockname()[1]

    async def is_trusted_by(authority: Path) -> bool:
        context = ssl.create_default_context(cafile=str(authority / "ca.pem"))
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        except ssl.SSLCertVerificationError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async with server:
        await tls.refresh()
        assert [await is_trusted_by(where) for where in (old, new)] == [True, False]
        shutil.copy(new / "server.pem", tmp_path / "server.pem")
        await tls.refresh()
        assert [await is_trusted_by(where) for where in (old, new)] == [True, False]
        assert "stays as it was" in caplog.text
        shutil.copy(new / "server.key", tmp_path / "server.key")
        await tls.refresh()
        assert [await is_trusted_by(where) for where in (old, new)] == [False, True]
