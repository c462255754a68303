"""The API over TCP: who gets in by token, TLS and certificate, and what nobody may do to it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from control.api import connections
from control.api.auth.tokens import NewToken, new_token
from control.api.errors import StartRefusedError
from control.config.settings import CertificateCaller
from control.daemon import serve
from tests.fakes.steady_time import now_s
from tests.integration.in_process import Daemon, Place, Reply, running, short_directory
from tests.integration.with_keystone import settings_for
from tests.services.processes import free_ports
from tests.services.tls import make_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.services.keystone import Keystone

IMAGE = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


class Door:
    """The daemon as it is met at its TCP port."""

    def __init__(self, daemon: Daemon, port: int, http: aiohttp.ClientSession, scheme: str) -> None:
        self.daemon = daemon
        self.port = port
        self._http = http
        self._scheme = scheme

    async def call(
        self, method: str, path: str, token: str | None = None, body: object = None, **headers: str
    ) -> Reply:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["X-Auth-Token"] = token
        url = f"{self._scheme}://127.0.0.1:{self.port}{path}"
        data = None if body is None else json.dumps(body)
        async with self._http.request(method, url, headers=sent, data=data) as response:
            return Reply(response.status, response.headers, await response.read())


@asynccontextmanager
async def open_door(
    root: Path,
    *,
    tls: ssl.SSLContext | None = None,
    tokens: tuple[NewToken, ...] = (),
    policy: str | None = None,
    **api: Any,
) -> AsyncIterator[Door]:
    """A daemon that listens on loopback."""
    (port,) = free_ports(1)
    settings: dict[str, Any] = {"listen": (f"127.0.0.1:{port}",), **api}
    if tokens:
        file = root / "tokens"
        file.touch(mode=0o600)
        file.write_text("".join(f"{one.line}\n" for one in tokens))
        settings["tokens_file"] = str(file)
    if policy is not None:
        (root / "policy.yaml").write_text(policy)
        settings["policy_file"] = str(root / "policy.yaml")
    connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
    async with (
        running(Place(root, api=settings)) as daemon,
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http,
    ):
        yield Door(daemon, port, http, "http" if tls is None else "https")


def a_token(name: str, *roles: str, project: str | None = None) -> NewToken:
    return new_token(name=name, roles=roles, project=project, expires_at=None)


async def test_by_tcp_only_a_good_token_lets_in(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "glissade.audit")
    admin = a_token("boss", "admin")
    async with open_door(root, tokens=(admin,)) as door:
        assert (await door.call("GET", "/v1/jobs", admin.token)).status == 200
        assert (await door.call("GET", "/v1/jobs", Authorization=f"Bearer {admin.token}")).status == 200
        assert (await door.daemon.call("GET", "/v1/jobs")).status == 200
        other = a_token("boss", "admin").token
        for headers in (
            {},
            {"X_Auth_Token": other},
            {"X_Auth_Token": "gAAAAABnot-one-of-ours"},
            {"X_Auth_Token": ""},
            {"Authorization": f"Basic {admin.token}"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {admin.token}", "X_Auth_Token": admin.token},
        ):
            for path in ("/v1/jobs", "/v2/images", f"/v2/images/{IMAGE}", "/metrics", "/v1/nowhere"):
                reply = await door.call("GET", path, **headers)
                assert reply.status == 401, (headers, path)
                assert reply.headers["WWW-Authenticate"] == 'Bearer realm="glissade"'
        assert other not in caplog.text
    lines = [record.getMessage() for record in caplog.records if record.name == "glissade.audit"]
    assert any(line.startswith("refused ") and '"path":"/v1/jobs"' in line for line in lines)


async def test_whoever_connects_may_ask_whether_it_lives_and_for_its_versions(root: Path) -> None:
    async with open_door(root, tokens=(a_token("boss", "admin"),)) as door:
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/versions", 200), ("/", 300)):
            assert (await door.call("GET", path)).status == status


async def test_v1_by_tcp_is_for_services_and_administrators(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "glissade.audit")
    admin, service = a_token("boss", "admin", project="p1"), a_token("nova", "service")
    member, reader = a_token("anna", "member", project="p1"), a_token("rob", "reader", project="p1")
    submitting = {"kind": "verify", "image_id": IMAGE}
    deleting = {"kind": "delete", "image_id": IMAGE}
    batch = {"jobs": [{"name": "a", "job": submitting}, {"name": "b", "job": deleting}]}
    faster = {"node": "off"}
    asked: list[tuple[str, str, object, dict[str, int]]] = [
        ("GET", "/v1/jobs", None, {"admin": 200, "service": 200, "member": 403, "reader": 403}),
        ("GET", "/metrics", None, {"admin": 200, "service": 200, "member": 403, "reader": 403}),
        ("POST", "/v1/jobs", submitting, {"admin": 404, "service": 404, "member": 403, "reader": 403}),
        ("POST", "/v1/jobs", deleting, {"admin": 404, "service": 403, "member": 403, "reader": 403}),
        ("POST", "/v1/batches", batch, {"admin": 404, "service": 403, "member": 403, "reader": 403}),
        (
            "POST",
            f"/v1/jobs/{IMAGE}/cancel",
            None,
            {"admin": 404, "service": 404, "member": 403, "reader": 403},
        ),
        ("PATCH", "/v1/limits", faster, {"admin": 200, "service": 403, "member": 403, "reader": 403}),
        ("POST", "/v1/stores/one/check", None, {"admin": 200, "service": 403, "member": 403, "reader": 403}),
    ]
    who = {"admin": admin, "service": service, "member": member, "reader": reader}
    async with open_door(root, tokens=tuple(who.values())) as door:
        for method, path, body, expected in asked:
            found = {
                name: (await door.call(method, path, one.token, body)).status for name, one in who.items()
            }
            assert found == expected, (method, path)


async def test_where_images_lie_is_shown_to_services_and_administrators_only(root: Path) -> None:
    service, member = a_token("nova", "service"), a_token("anna", "member", project="p1")
    policy = '"glissade:read": "role:member or role:service"\n'
    async with open_door(root, tokens=(service, member), policy=policy) as door:
        image = await door.daemon.import_image(b"abc")
        path = f"/v1/images/{image['id']}"
        (shown,) = (await door.call("GET", path, service.token)).json["locations"]
        (hidden,) = (await door.call("GET", path, member.token)).json["locations"]
        assert shown["url"].startswith("file:///")
        assert (hidden["url"], hidden["store"]) == ("...", "one")
        listed = (await door.call("GET", "/v1/images", member.token)).json["images"]
        assert [place["url"] for place in listed[0]["locations"]] == ["..."]


async def test_a_policy_file_says_who_is_an_administrator(root: Path) -> None:
    cloud, admin = a_token("cloud", "cloud_admin"), a_token("boss", "admin")
    policy = '"context_is_admin": "role:cloud_admin"\n"glissade:read": "rule:context_is_admin"\n'
    async with open_door(root, tokens=(cloud, admin), policy=policy) as door:
        assert (await door.call("GET", "/v1/jobs", cloud.token)).status == 200
        assert (await door.call("GET", "/v1/jobs", admin.token)).status == 403
        assert (await door.daemon.call("GET", "/v1/jobs")).status == 200


async def test_a_token_that_is_taken_out_of_the_file_is_refused_soon(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.daemon._LOOK_AT_FILES_EVERY_S", 0.05)
    first, second = a_token("one", "admin"), a_token("two", "admin")
    async with open_door(root, tokens=(first,)) as door:
        assert (await door.call("GET", "/v1/jobs", first.token)).status == 200
        assert (await door.call("GET", "/v1/jobs", second.token)).status == 401
        (root / "tokens").write_text(second.line + "\n")
        async with asyncio.timeout(10):
            while (await door.call("GET", "/v1/jobs", first.token)).status == 200:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.02)
        assert (await door.call("GET", "/v1/jobs", second.token)).status == 200


async def test_a_name_that_is_not_ours_is_not_answered(root: Path) -> None:
    admin = a_token("boss", "admin")
    async with open_door(root, tokens=(admin,), hosts=("images.example.com",)) as door:
        for host, status in (
            ("images.example.com", 200),
            ("IMAGES.example.com:9292", 200),
            ("localhost", 200),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
        ):
            reply = await door.call("GET", "/v1/jobs", admin.token, Host=host)
            assert reply.status == status, host
            assert (await door.call("GET", "/", Host=host)).status == (300 if status == 200 else 421)
        assert (await door.daemon.call("GET", "/v1/jobs")).status == 200  # Its client says Host: glissade.


async def test_a_callers_request_id_is_taken(root: Path) -> None:
    admin = a_token("boss", "admin")
    async with open_door(root, tokens=(admin,)) as door:

        async def answered(given: str) -> Reply:
            return await door.call("GET", "/v2/images", admin.token, X_Openstack_Request_ID=given)

        mine = "req-2a4b1b4e-0000-4000-8000-000000000001"
        assert (await answered(mine)).headers["X-Openstack-Request-Id"] == mine
        assert (await answered("abc")).headers["X-Openstack-Request-Id"] == "req-abc"
        longest = "req-" + "x" * 60
        assert (await answered(longest)).headers["X-Openstack-Request-Id"] == longest
        for odd in ("a b", "req- <b>"):
            assert odd not in (await answered(odd)).headers["X-Openstack-Request-Id"]
        for long in (longest + "x", "x" * 61):
            reply = await answered(long)
            assert reply.status == 431
            assert long not in reply.headers["X-Openstack-Request-Id"]


async def test_tls_and_certificates(root: Path, authority: Path) -> None:
    make_client(authority, "nova", subject="nova", alternative="URI:spiffe://example/nova")
    make_client(authority, "common", subject="glance")
    make_client(authority, "imitator", subject="glance", alternative="DNS:somebody.example")
    make_client(authority, "stranger", subject="glance", issuer="other")
    files: dict[str, Any] = {
        "tls_cert_file": str(authority / "server.pem"),
        "tls_key_file": str(authority / "server.key"),
        "tls_client_ca_file": str(authority / "ca.pem"),
        "certificates": (
            CertificateCaller(subject="URI:spiffe://example/nova", roles=("service",)),
            CertificateCaller(subject="CN:glance", roles=("admin",), project="p1"),
        ),
    }
    admin = a_token("boss", "admin")

    def client(name: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(authority / "ca.pem"))
        if name is not None:
            context.load_cert_chain(authority / f"{name}.pem", authority / f"{name}.key")
        return context

    async def statuses(name: str | None, **more: Any) -> tuple[int, int]:
        async with open_door(root, tls=client(name), **files, **more) as door:
            looking = await door.call("GET", "/v1/jobs")
            changing = await door.call("PATCH", "/v1/limits", body={"node": "off"})
            return looking.status, changing.status

    assert await statuses("nova") == (200, 403)
    assert await statuses("common") == (200, 200)
    assert await statuses("imitator") == (401, 401)
    for name in (None, "stranger"):
        # TLS 1.3 tells a client after its handshake that its certificate was refused.
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await statuses(name)

    # Beside tokens, a certificate may be there; a token that is there has to be good.
    async with open_door(root, tls=client(None), tokens=(admin,), **files) as door:
        assert (await door.call("GET", "/v1/jobs")).status == 401
        assert (await door.call("GET", "/v1/jobs", admin.token)).status == 200
    async with open_door(root, tls=client("nova"), tokens=(admin,), **files) as door:
        assert (await door.call("GET", "/v1/jobs")).status == 200
        assert (await door.call("PATCH", "/v1/limits", body={"node": "off"})).status == 403
        assert (await door.call("PATCH", "/v1/limits", admin.token, {"node": "off"})).status == 200
        assert (await door.call("GET", "/v1/jobs", "gls_wrong")).status == 401


@pytest.mark.parametrize(
    "api",
    [
        {"listen": ("127.0.0.1:9",)},
        {"listen": ("0.0.0.0:9",), "tokens_file": "/tokens"},
        {"listen": ("127.0.0.1:9",), "tokens_file": "/there/is/no/such/file"},
        {"policy_file": "/there/is/no/such/file"},
    ],
)
async def test_the_daemon_does_not_start_where_anybody_could_come_in(root: Path, api: dict[str, Any]) -> None:
    with pytest.raises(StartRefusedError):
        await serve(Place(root, api=api).settings())
    assert not (root / "api.sock").exists()


# What a client may do to the daemon.


async def test_a_header_that_does_not_come_ends_its_connection_and_holds_up_nobody(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.Connections, "__init__", _with_header_timeout(0.5))
    admin = a_token("boss", "admin")
    async with open_door(root, tokens=(admin,)) as door:
        dripping = asyncio.create_task(_drip(door.port))
        silent_reader, silent_writer = await asyncio.open_connection("127.0.0.1", door.port)
        slowest = 0.0
        async with asyncio.timeout(20):
            while not dripping.done():
                begun = now_s()
                assert (await door.call("GET", "/v1/jobs", admin.token)).status == 200
                slowest = max(slowest, now_s() - begun)
        assert await dripping
        assert (await silent_reader.read()).startswith(b"HTTP/1.1 408 ")
        silent_writer.close()
        assert slowest < 2


async def _drip(port: int) -> bool:
    """One byte of a header at a time, for ever; whether the connection was ended from the other side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n")
    answer = asyncio.create_task(reader.read())
    for _ in range(500):
        if answer.done():
            break
        writer.write(b"X")
        await asyncio.sleep(0.02)
    ended = answer.done()
    writer.close()
    with suppress(ConnectionResetError):  # Bytes that nobody reads any more are answered so.
        assert (await answer).startswith(b"HTTP/1.1 408 ")
    return ended


def _with_header_timeout(seconds: float) -> Any:
    original = connections.Connections.__init__

    def init(self: connections.Connections, *, most: int, **_: float) -> None:
        original(self, most=most, header_timeout_s=seconds, answer_stall_timeout_s=seconds)

    return init


async def test_the_second_header_on_a_connection_has_its_clock_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.Connections, "__init__", _with_header_timeout(0.5))
    async with open_door(root, tokens=(a_token("boss", "admin"),)) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.7)  # Longer than a header may take: between requests there is time.
        writer.write(b"GET /healthz HTTP/1.1\r\nHo")
        async with asyncio.timeout(5):
            rest = await reader.read()
        assert b"HTTP/1.1 408 " in rest
        writer.close()


async def test_a_client_that_takes_nothing_of_its_answer_is_let_go(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections.Connections, "__init__", _with_header_timeout(0.5))
    admin = a_token("boss", "admin")
    async with open_door(root, tokens=(admin,)) as door:
        image = await door.daemon.import_image(bytes(range(256)) * 4 * 16384)
        with socket.create_connection(("127.0.0.1", door.port)) as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.setblocking(False)
            head = f"GET /v1/images/{image['id']}/data HTTP/1.1\r\nHost: localhost\r\n"
            request = f"{head}X-Auth-Token: {admin.token}\r\n\r\n".encode()
            await asyncio.get_running_loop().sock_sendall(stuck, request)
            async with asyncio.timeout(20):
                while _is_connected(stuck):  # noqa: ASYNC110 - seen from outside
                    await asyncio.sleep(0.05)
        assert (await door.call("GET", "/v1/jobs", admin.token)).status == 200
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def _is_connected(sock: socket.socket) -> bool:
    """As the kernel sees it: reading would take what is on its way."""
    established = 1
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == established


async def test_there_are_so_many_connections_and_the_operator_still_gets_in(root: Path) -> None:
    admin = a_token("boss", "admin")
    async with open_door(root, tokens=(admin,), max_connections=3) as door:
        held = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(3)]
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        assert (await door.daemon.call("GET", "/v1/jobs")).status == 200
        for _, one in held:
            one.close()
        await asyncio.sleep(0.1)
        assert (await door.call("GET", "/v1/jobs", admin.token)).status == 200


async def test_one_caller_who_asks_too_often_does_not_hold_up_another(root: Path) -> None:
    greedy, other = a_token("greedy", "service"), a_token("other", "service")
    async with open_door(root, tokens=(greedy, other), caller_requests_per_s=1) as door:
        found = [(await door.call("GET", "/v1/jobs", greedy.token)) for _ in range(30)]
        refused = [reply for reply in found if reply.status == 429]
        assert refused
        assert refused[0].json["code"] == "too_many_requests"
        assert int(refused[0].headers["Retry-After"]) >= 1
        assert (await door.call("GET", "/v1/jobs", other.token)).status == 200


async def test_bodies_that_are_too_much_are_refused_before_they_are_read(root: Path) -> None:
    admin = a_token("boss", "admin")
    async with open_door(root, tokens=(admin,)) as door:
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Auth-Token: {admin.token}\r\n"
            "Content-Type: application/json\r\nContent-Length: 104857600\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(head.encode() + b'{"kind": "')
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413 ")
        writer.close()
        for text in ("[" * 100_000, '{"a":1,"a":2}', '{"a": NaN}', '{"a":' * 40 + "1" + "}" * 40):
            reply = await door.daemon.call("POST", "/v1/jobs", raw=text.encode())
            assert reply.status == 400


async def test_deleting_is_recorded_before_it_happens(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "glissade.audit")
    admin = a_token("boss", "admin", project="p1")
    async with open_door(root, tokens=(admin,)) as door:
        reply = await door.call("DELETE", f"/v2/images/{IMAGE}", admin.token)
        assert reply.status == 404
        request_id = reply.headers["X-Openstack-Request-Id"]
    lines = [record.getMessage() for record in caplog.records if record.name == "glissade.audit"]
    (line,) = [line for line in lines if line.startswith("asked-to-delete ")]
    facts = json.loads(line.split(" ", 1)[1])
    assert facts == {
        "path": f"/v2/images/{IMAGE}",
        "principal": "token=boss",
        "project": "p1",
        "source": "127.0.0.1",
        "request": request_id,
    }


# With Keystone.


@pytest.mark.service("keystone")
async def test_keystones_tokens_let_in_and_tell_projects_apart(root: Path, keystone: Keystone) -> None:
    settings = settings_for(keystone)
    ours = a_token("boss", "admin")
    async with open_door(root, keystone=settings, tokens=(ours,)) as door:
        refused = await door.call("GET", "/v2/images")
        assert refused.status == 401
        challenge = f'Keystone uri="{keystone.auth_url}", Bearer realm="glissade"'
        assert ", ".join(refused.headers.getall("WWW-Authenticate")) == challenge
        assert "uri=" in (await door.call("GET", "/v2/images", "expired")).headers["WWW-Authenticate"]

        demo, images = keystone.token(keystone.demo), keystone.token(keystone.images)
        admin, mover = keystone.token(keystone.admin), keystone.token(keystone.mover)
        made = await door.call("POST", "/v2/images", demo, {"name": "private", "visibility": "private"})
        assert made.status == 201, made.body
        path = f"/v2/images/{made.json['id']}"
        assert made.json["owner"] == keystone.project_id(keystone.demo)
        seen = {
            name: (await door.call("GET", path, token)).status
            for name, token in {"demo": demo, "images": images, "admin": admin, "mover": mover}.items()
        }
        assert seen == {"demo": 200, "images": 404, "admin": 200, "mover": 404}
        assert (await door.call("DELETE", path, images)).status == 404
        assert (await door.call("GET", "/v1/jobs", demo)).status == 403
        assert (await door.call("GET", "/v1/jobs", mover)).status == 200
        assert (await door.call("GET", "/v1/jobs", ours.token)).status == 200

        keystone.kill()
        try:
            assert (await door.call("GET", path, demo)).status == 200  # Known for up to a minute.
            unknown = await door.call("GET", path, "gAAAAABnever-seen")
            assert unknown.status == 503
            assert int(unknown.headers["Retry-After"]) >= 1
            assert (await door.call("GET", "/v1/jobs", ours.token)).status == 200
        finally:
            await asyncio.to_thread(keystone.start)
        assert (await door.call("GET", path, "gAAAAABnever-seen")).status == 401
        assert (await door.call("DELETE", path, demo)).status == 204
