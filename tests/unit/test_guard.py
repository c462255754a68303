"""The address guard: what a user's URL may look like and where it may lead."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.errors import AddressRefusedError, GlissadeError, SourceRefusedError, UnavailableError
from drivers.http.config import HttpConfig
from drivers.http.guard import AddressGuard, embedded_addresses, machine_addresses
from drivers.http.url import HttpUrl, parse_http_url, redact
from tests.fakes.resolver import FakeResolver

if TYPE_CHECKING:
    from drivers.http.url import Address

PUBLIC = "93.184.215.14"
PUBLIC_V6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


def guard(
    resolver: FakeResolver | None = None,
    *,
    config: HttpConfig | None = None,
    own: frozenset[Address] = frozenset(),
) -> AddressGuard:
    return AddressGuard(
        "web", config or HttpConfig(), resolver=resolver or FakeResolver({}), own_addresses=lambda: own
    )


async def vetted(url: str, *answers: str, config: HttpConfig | None = None) -> tuple[Address, ...]:
    """Where the guard lets the URL lead when its host resolves to these answers."""
    guarded = guard(FakeResolver({"images.example.com": [answers]}), config=config)
    return await guarded.vet(guarded.parse(url), timeout_s=60)


MALFORMED = [
    # Other spellings of an address, which C libraries take for one.
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://0177.0.0.1/",
    "https://017700000001/",
    "https://127.0.0.01/",
    "https://256.0.0.1/",
    "https://1.2.3.4.5/",
    "https://127.0.0.1./",
    "https://127.0.0.0x1/",
    "https://foo.0x7f/",
    "https://foo.1/",
    "https://①②⑦.0.0.1/",
    "https://127。0。0。1/",
    "https://１２７.0.0.1/",  # noqa: RUF001 - the point
    "https://%31%32%37.0.0.1/",
    "https://127%2e0.0.1/",
    "https://ｅxample.com/",  # noqa: RUF001 - the point
    "https://exa\u00adm\u200bple.com/",
    "https://bücher.example/",
    # IPv6 in odd forms.
    "https://[::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[::1/",
    "https://::1/",
    "https://[::127.0.0.1.5]/",
    "https://[v1.fe80::a]/",
    "https://[]/",
    "https://[::1]x/",
    # Two parsers, two hosts.
    "https://images.example.com@127.0.0.1/",
    "https://user:password@images.example.com/",
    "https://@images.example.com/",
    "https://127.0.0.1\\@images.example.com/",
    "https://images.example.com\\.evil.example/",
    "https:\\\\images.example.com/",
    "https://images.example.com#@127.0.0.1/",
    "https://127.0.0.1#@images.example.com/",
    "https://images.example.com/#fragment",
    "https://images.example.com:443:80/",
    "https://images.example.com:443@127.0.0.1:80/",
    "https://images.example.com /",
    " https://images.example.com/",
    "https://images.example.com/ ",
    "https://images.example.com/a b",
    "https://images.example.com/\r\nHost: evil",
    "https://images.exa\tmple.com/",
    "https://images.example.com\x00.evil.example/",
    "https://images.example.com/\x7f",
    "\x01https://images.example.com/",
    # Ports.
    "https://images.example.com:/",
    "https://images.example.com:0/",
    "https://images.example.com:65536/",
    "https://images.example.com:0443/",
    "https://images.example.com:+443/",
    "https://images.example.com:443a/",
    "https://images.example.com:４４３/",  # noqa: RUF001 - the point
    # Hosts that are none.
    "https:///path",
    "https://",
    "https:/images.example.com/",
    "https:images.example.com",
    "//images.example.com/",
    "images.example.com",
    "",
    "https://.example.com/",
    "https://images..example.com/",
    "https://images.example.com./",
    "https://-images.example.com/",
    "https://images-.example.com/",
    f"https://{'a' * 64}.example.com/",
    f"https://{'a.' * 127}com/",
    "https://images.example.com/" + "a" * 9000,
    # Other schemes.
    "file:///etc/passwd",
    "ftp://images.example.com/",
    "gopher://images.example.com/",
    "javascript:alert(1)",
    "data:text/plain,x",
    "httpss://images.example.com/",
    "jar:https://images.example.com!/",
]

NOT_ALLOWED_BY_DEFAULT = [
    "http://images.example.com/",
    "http://images.example.com:443/",
    "https://images.example.com:80/",
    "https://images.example.com:22/",
    "https://images.example.com:8443/",
]

CLOSED = [
    "0.0.0.0",  # noqa: S104 - not for binding
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "168.63.129.16",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::2",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2606:4700::5efe:10.0.0.1",
    "2606:4700::200:5efe:192.168.0.1",
]


@pytest.mark.parametrize("url", MALFORMED)
def test_a_url_that_parsers_could_read_differently_is_refused(url: str) -> None:
    with pytest.raises(AddressRefusedError):
        parse_http_url(url, store="web")


@pytest.mark.parametrize("url", NOT_ALLOWED_BY_DEFAULT)
def test_only_https_on_its_port_is_allowed_by_default(url: str) -> None:
    parse_http_url(url, store="web")
    with pytest.raises(AddressRefusedError, match="not enabled"):
        guard().parse(url)


def test_schemes_and_ports_can_be_opened() -> None:
    opened = guard(config=HttpConfig(schemes=("https", "http"), ports=(443, 80, 8443)))
    assert opened.parse("http://images.example.com/").port == 80
    assert opened.parse("https://images.example.com:8443/").port == 8443


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://images.example.com", ("https", "images.example.com", 443, "/")),
        ("HTTPS://Images.Example.COM/A?b=C%20", ("https", "images.example.com", 443, "/A?b=C%20")),
        ("http://images.example.com:8080?x", ("http", "images.example.com", 8080, "/?x")),
        ("https://xn--bcher-kva.example/", ("https", "xn--bcher-kva.example", 443, "/")),
        ("https://my_bucket.s3-7.example/a@b:c", ("https", "my_bucket.s3-7.example", 443, "/a@b:c")),
        ("https://8.8.8.8/", ("https", "8.8.8.8", 443, "/")),
        ("https://[2606:4700:0::0001]:443/", ("https", "2606:4700::1", 443, "/")),
        ("https://1.example.com/", ("https", "1.example.com", 443, "/")),
        ("https://localhost/", ("https", "localhost", 443, "/")),
    ],
)
def test_a_plain_url_is_taken_apart(text: str, expected: tuple[str, str, int, str]) -> None:
    url = parse_http_url(text, store="web")
    assert (url.scheme, url.host, url.port, url.target) == expected
    assert parse_http_url(url.full, store="web") == url


@pytest.mark.parametrize("address", CLOSED)
async def test_a_closed_address_is_refused_as_a_literal_and_as_an_answer(address: str) -> None:
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(AddressRefusedError):
        await vetted(f"https://{literal}/")
    with pytest.raises(AddressRefusedError) as refused:
        await vetted("https://images.example.com/", address)
    # What an internal name resolves to is nobody's business.
    assert address not in str(refused.value)


@pytest.mark.parametrize("address", [PUBLIC, PUBLIC_V6, "8.8.8.8", "1.1.1.1", "2001:4860:4860::8888"])
async def test_a_public_address_passes(address: str) -> None:
    assert await vetted("https://images.example.com/", address) == (ipaddress.ip_address(address),)


@pytest.mark.parametrize("bad", ["127.0.0.1", "::1", "fe80::1%lo", "64:ff9b::7f00:1"])
async def test_one_closed_answer_among_good_ones_refuses_all(bad: str) -> None:
    with pytest.raises(AddressRefusedError):
        await vetted("https://images.example.com/", PUBLIC, bad, PUBLIC_V6)


async def test_this_machine_is_refused_even_at_a_public_address() -> None:
    own = frozenset({ipaddress.ip_address(PUBLIC)})
    guarded = guard(own=own)
    with pytest.raises(AddressRefusedError, match="this machine"):
        await guarded.vet(guarded.parse(f"https://{PUBLIC}/"), timeout_s=60)


def test_this_machine_knows_its_own_addresses() -> None:
    own = machine_addresses()
    assert ipaddress.ip_address("127.0.0.1") in own
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((PUBLIC, 9))
        except OSError:
            pytest.skip("this machine has no route outwards whose address could be compared")
        assert ipaddress.ip_address(probe.getsockname()[0]) in own


async def test_an_operator_opens_and_closes_networks() -> None:
    config = HttpConfig(allow_cidrs=("10.1.0.0/16",), deny_cidrs=("10.1.9.0/24", "93.184.0.0/16"))
    assert await vetted("https://images.example.com/", "10.1.2.3", config=config)
    for closed in ("10.2.0.1", "10.1.9.1", PUBLIC):
        with pytest.raises(AddressRefusedError):
            await vetted("https://images.example.com/", closed, config=config)


async def test_an_opened_translation_prefix_does_not_open_what_lies_behind_it() -> None:
    config = HttpConfig(allow_cidrs=("64:ff9b::/96", "2002::/16", "64:ff9b:1::/48"))
    assert await vetted("https://images.example.com/", "64:ff9b::8.8.8.8", config=config)
    for closed in ("64:ff9b::10.0.0.1", "2002:7f00:1::", "64:ff9b:1::10.0.0.1", "64:ff9b:1:a00:0:100::"):
        with pytest.raises(AddressRefusedError):
            await vetted("https://images.example.com/", closed, config=config)


async def test_only_listed_hosts_when_there_is_a_list() -> None:
    config = HttpConfig(allow_hosts=("images.example.com", ".cdn.example"))
    guarded = guard(config=config)
    guarded.parse("https://images.example.com/")
    guarded.parse("https://a.b.cdn.example/")
    for refused in (
        "https://example.com/",
        "https://evilcdn.example/",
        "https://images.example.com.evil.example/",
    ):
        with pytest.raises(AddressRefusedError, match="not enabled"):
            guarded.parse(refused)


async def test_without_the_guard_the_syntax_is_still_checked() -> None:
    guarded = guard(config=HttpConfig(guard=False))
    url = guarded.parse("http://127.0.0.1:8080/")
    assert await guarded.vet(url, timeout_s=60)
    with pytest.raises(AddressRefusedError):
        guarded.parse("http://user@127.0.0.1:8080/")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), SourceRefusedError),
        (socket.gaierror(socket.EAI_AGAIN, "again"), UnavailableError),
        (OSError("no resolver"), UnavailableError),
        (UnicodeError("label too long"), UnavailableError),
    ],
)
async def test_a_failed_lookup_says_whether_to_try_again(
    failure: Exception, expected: type[GlissadeError]
) -> None:
    guarded = guard(FakeResolver({}, failure=failure))
    with pytest.raises(expected):
        await guarded.vet(guarded.parse("https://images.example.com/"), timeout_s=60)


async def test_a_lookup_that_hangs_is_given_up() -> None:
    guarded = guard(FakeResolver({}, delay_s=60))
    with pytest.raises(UnavailableError, match="took more than"):
        await guarded.vet(guarded.parse("https://images.example.com/"), timeout_s=0.01)


async def test_the_systems_resolver_finds_this_machine() -> None:
    guarded = AddressGuard("web", HttpConfig(allow_cidrs=("127.0.0.0/8", "::1/128")))
    try:
        found = await guarded.vet(guarded.parse("https://localhost/"), timeout_s=60)
    finally:
        guarded.close()
    assert found
    assert all(address.is_loopback for address in found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h.example/a?signature=secret", "https://h.example/a"),
        ("https://user:secret@h.example/a", "https://***@h.example/a"),
        ("user:secret@h.example", "***@h.example"),
        ("https://h.example/\x1b[31m", "https://h.example/\\x1b[31m"),
        ("https://h.example/#secret", "https://h.example/"),
        ("https://a@b:secret@h.example/", "https://***@h.example/"),
        ("https://user:secreth.example/a", "https://***/a"),
        ("https://user:se?cret@h.example/a", "https://***"),
        ("https://[2001:db8::1]:8443/a?b", "https://[2001:db8::1]:8443/a"),
        ("s3://key:sec?r/e#t@h.example:8080/bucket/a", "s3://***@h.example:8080/bucket/a"),
        ("s3://key:secret/bucket/a", "s3://***/bucket/a"),
        ("swift+https://a%3Ab:se/cret@h.example/v3/c/a", "swift+https://***@h.example/v3/c/a"),
        ("key:secret://h.example/a", "h.example/a"),
        ("file:///srv/images/a", "file:///srv/images/a"),
        ("/srv/images/a", "/srv/images/a"),
    ],
)
def test_a_url_in_a_message_shows_no_secret(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_parsed_url_prints_without_its_query() -> None:
    url = parse_http_url("https://h.example/a?signature=secret", store="web")
    assert "secret" not in f"{url} {url!r}"
    assert url.full.endswith("?signature=secret")


@given(st.text() | st.builds("https://{}{}".format, st.text(max_size=30), st.text(max_size=30)))
def test_whatever_the_text_it_is_a_url_or_refused(text: str) -> None:
    try:
        url = parse_http_url(text, store="web")
    except AddressRefusedError:
        return
    assert isinstance(url, HttpUrl)
    assert url.full.isascii()
    assert not set(url.full) & set(" \r\n\t\\#")
    assert parse_http_url(url.full, store="web") == url
    # What the C library would make of the host is what we make of it: a literal is a literal in both.
    assert (url.address is not None) == _is_literal(url.host)


@given(st.from_regex(r"[0-9a-fx.]{1,20}", fullmatch=True))
def test_no_number_passes_as_a_name(host: str) -> None:
    try:
        url = parse_http_url(f"https://{host}/", store="web")
    except AddressRefusedError:
        return
    if url.address is None:
        with pytest.raises(OSError):  # noqa: PT011 - inet_aton has no other error and no stable text
            socket.inet_aton(host)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@given(st.ip_addresses(v=4))
def test_an_address_in_any_ipv6_form_is_decoded(address: ipaddress.IPv4Address) -> None:
    bits = int(address)
    forms = [0xFFFF << 32 | bits, 0x64FF9B << 96 | bits, 0x2002 << 112 | bits << 80]
    for form in forms:
        assert address in embedded_addresses(ipaddress.IPv6Address(form))


@given(st.ip_addresses(v=4, network="10.0.0.0/8"))
async def test_no_form_of_a_private_address_passes(address: ipaddress.IPv4Address) -> None:
    bits = int(address)
    for form in (bits, 0xFFFF << 32 | bits, 0x64FF9B << 96 | bits, 0x2002 << 112 | bits << 80):
        with pytest.raises(AddressRefusedError):
            await vetted("https://images.example.com/", str(ipaddress.IPv6Address(form)))


@pytest.mark.parametrize(
    "settings",
    [
        {"schemes": ("ftp",)},
        {"ports": (0,)},
        {"allow_cidrs": ("10.0.0.1/8",)},
        {"deny_cidrs": ("here",)},
        {"max_redirects": 6},
        {"max_size_bytes": -1},
        {"max_wait_s": float("nan")},
        {"authorization_origin": "https://h.example"},
    ],
)
def test_a_guard_does_not_start_with_rules_it_cannot_read(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        HttpConfig(**settings)
