"""TLS of the API: the server's certificate, and who may issue its clients'."""

from __future__ import annotations

import logging
import ssl
import stat
from typing import TYPE_CHECKING

from cryptography import x509

from control.api.auth.files import read_file, state_of
from control.api.errors import TlsFilesError
from drivers.blocking import run_blocking

if TYPE_CHECKING:
    from control.config import ApiSettings

log = logging.getLogger(__name__)


class ServerTls:
    """The context that new connections are taken with. When certificate and key are renewed, later
    connections get the new ones; a pair that cannot be used changes nothing.
    """

    def __init__(
        self, *, cert_file: str, key_file: str, client_ca_file: str | None, needs_client: bool
    ) -> None:
        """Reads the files (blocks). Raises `TlsFilesError`."""
        self._files = (cert_file, key_file)
        self._states = [state_of(path) for path in self._files]
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self.names = _load(self.context, cert_file, key_file)
        if client_ca_file is not None:
            read_file(client_ca_file, TlsFilesError, what="file of authorities", refused_mode=stat.S_IWOTH)
            try:
                self.context.load_verify_locations(cafile=client_ca_file)
            except ssl.SSLError as error:
                raise TlsFilesError(f"{client_ca_file} holds no certificates.") from error
            self.context.verify_mode = ssl.CERT_REQUIRED if needs_client else ssl.CERT_OPTIONAL

    async def refresh(self) -> None:
        """Look whether certificate or key have changed."""
        states = [await run_blocking(state_of, path) for path in self._files]
        if states == self._states:
            return
        self._states = states
        wrong: TlsFilesError | None = None
        try:
            # Tried on another context first: half of a pair would leave the living one without any.
            await run_blocking(_load, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self._files)
            self.names = await run_blocking(_load, self.context, *self._files)
        except TlsFilesError as error:
            wrong = error
        if wrong is not None:
            log.error("The certificate stays as it was: %s", wrong)
        else:
            log.info("The certificate %s was read again", self._files[0])


def server_tls(api: ApiSettings) -> ServerTls | None:
    """None without TLS. Blocks. Raises `TlsFilesError`."""
    if api.tls_cert_file is None or api.tls_key_file is None:
        return None
    has_tokens = api.tokens_file is not None or api.keystone.auth_url is not None
    return ServerTls(
        cert_file=api.tls_cert_file,
        key_file=api.tls_key_file,
        client_ca_file=api.tls_client_ca_file,
        needs_client=not has_tokens,
    )


def _load(context: ssl.SSLContext, cert_file: str, key_file: str) -> tuple[str, ...]:
    """Give a context the certificate; returns the names of hosts in it. Blocks. Raises `TlsFilesError`."""
    read_file(key_file, TlsFilesError, what="key", refused_mode=stat.S_IRWXO)
    pem = read_file(cert_file, TlsFilesError, what="certificate", refused_mode=stat.S_IWOTH)

    def no_password() -> str:
        raise TlsFilesError(f"The key {key_file} needs a password.", hint="Store it without one, mode 0600.")

    try:
        context.load_cert_chain(cert_file, key_file, password=no_password)
        certificate = x509.load_pem_x509_certificate(pem)
    except (ssl.SSLError, ValueError) as error:
        raise TlsFilesError(
            f"{cert_file} and {key_file} are no certificate and its key.",
            hint="Both in PEM, the chain after it.",
        ) from error
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(alternatives.get_values_for_type(x509.DNSName))
