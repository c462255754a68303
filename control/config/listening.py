"""Whether the API may listen as it is told to: never where anybody could use it, or listen in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from control.config.units import parse_tcp_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from control.config.settings import ApiSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningProblem:
    """What is wrong with the keys of `[api]`, at which of them."""

    key: tuple[str, ...]
    message: str
    hint: str = ""
    is_warning: bool = False


def listening_problems(api: ApiSettings) -> Iterator[ListeningProblem]:
    """What keeps the daemon from starting, and what is probably not meant."""
    yield from _about_tls(api)
    yield from _about_keystone(api)
    if not api.listen:
        return
    if api.tokens_file is None and api.keystone.auth_url is None and not api.certificates:
        yield ListeningProblem(
            key=("listen",),
            message="would let anybody in: no authentication is configured",
            hint="set tokens_file, [api.keystone] or certificates, or use the unix socket alone",
        )
    addresses = [parse_tcp_address(text) for text in api.listen]
    exposed = [text for text, one in zip(api.listen, addresses, strict=True) if not one.is_loopback]
    if exposed and api.tls_cert_file is None and not api.behind_tls_proxy:
        yield ListeningProblem(
            key=("listen",),
            message=f"would send tokens over the network in the clear on {', '.join(exposed)}",
            hint="set tls_cert_file and tls_key_file; or listen on 127.0.0.1; or, if only a proxy that speaks"
            " TLS can reach this address, behind_tls_proxy = true",
        )


def _about_tls(api: ApiSettings) -> Iterator[ListeningProblem]:
    if (api.tls_cert_file is None) != (api.tls_key_file is None):
        missing = "tls_key_file" if api.tls_key_file is None else "tls_cert_file"
        yield ListeningProblem(key=(missing,), message="is missing: a certificate and its key go together")
    if api.certificates and api.tls_client_ca_file is None:
        yield ListeningProblem(
            key=("tls_client_ca_file",), message="is missing: it says who may issue clients' certificates"
        )
    if api.tls_client_ca_file is not None and api.tls_cert_file is None:
        yield ListeningProblem(
            key=("tls_client_ca_file",), message="needs TLS", hint="set tls_cert_file and tls_key_file"
        )
    if api.tls_client_ca_file is not None and not api.certificates:
        yield ListeningProblem(
            key=("tls_client_ca_file",),
            message="is of no use without certificates",
            hint='write certificates = [{ subject = "CN:name", roles = ["service"] }]',
        )
    subjects = [one.subject for one in api.certificates]
    for index, subject in enumerate(subjects):
        if subject in subjects[:index]:
            yield ListeningProblem(
                key=("certificates", str(index), "subject"), message=f"{subject!r} is there twice"
            )


def _about_keystone(api: ApiSettings) -> Iterator[ListeningProblem]:
    keystone = api.keystone
    if keystone.auth_url is None:
        if keystone.user is not None or keystone.application_credential_id is not None:
            yield ListeningProblem(key=("keystone", "auth_url"), message="is missing")
        return
    has_user = keystone.user is not None and keystone.password is not None
    has_application = (
        keystone.application_credential_id is not None and keystone.application_credential_secret is not None
    )
    if has_user == has_application:
        yield ListeningProblem(
            key=("keystone",),
            message="needs either user and password or an application credential, to ask about tokens with",
        )
    parts = urlsplit(keystone.auth_url)
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        yield ListeningProblem(
            key=("keystone", "auth_url"),
            message="sends tokens and our own password over the network in the clear",
            hint="use https",
            is_warning=True,
        )
