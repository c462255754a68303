"""Clients' certificates: TLS has checked who issued them, this says for whom they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from control.api.auth.caller import Caller

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from control.config.settings import CertificateCaller


class CertificateMap:
    """The callers of the configuration, by the names of their certificates."""

    def __init__(self, certificates: Sequence[CertificateCaller]) -> None:
        self._callers = {
            one.subject: Caller(
                name=f"certificate={one.subject}",
                user_id=one.subject,
                project_id=one.project,
                roles=frozenset(one.roles),
            )
            for one in certificates
        }

    def caller_of(self, certificate: Mapping[str, Any]) -> Caller | None:
        """For whom a certificate stands, as the ssl module shows it; None when it is nobody of ours."""
        return next((self._callers[name] for name in _names(certificate) if name in self._callers), None)


def _names(certificate: Mapping[str, Any]) -> Iterator[str]:
    """Alternative names first. The common name counts only without any, as for servers."""
    alternatives = certificate.get("subjectAltName", ())
    for kind, value in alternatives:
        if kind in ("URI", "DNS"):
            yield f"{kind}:{value}"
    if alternatives:
        return
    for parts in certificate.get("subject", ()):
        for kind, value in parts:
            if kind == "commonName":
                yield f"CN:{value}"
