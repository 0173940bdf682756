"""Who this relay is: its Ed25519 seed, its TLS key and its certificate.  The only door to `cryptography`.

Rules: made once, kept in two files with checksums and mode 0600; a damaged file is healed from the other, both
damaged is an error for a person, for agents know the relay by these keys alone.  The certificate is self-made and
pinned by its SHA-256, so its names and its end (in 100 years) do not matter.
"""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contbak.core.codec import Record
from contbak.core.crypto import SECRET_LEN, public_of
from contbak.core.errors import FormatError, NotInitialised
from relay import records

_NAMES = ("identity", "identity.copy")


class _Stored(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    seed: bytes
    key: str
    certificate: str


@dataclass(frozen=True, slots=True)
class Identity:
    """seed: 32 bytes; key and certificate: PEM."""

    seed: bytes
    key: str
    certificate: str

    @property
    def public(self) -> bytes:
        """The Ed25519 key by which agents know this relay."""
        return public_of(self.seed)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate in DER."""
        lines = self.certificate.strip().splitlines()
        return hashlib.sha256(base64.b64decode("".join(lines[1:-1]))).digest()


def create(top: Path, now: datetime) -> Identity:
    """Makes the identity of the relay at `top`, which has none."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "contbak relay")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=365))  # a peer's clock may be behind
        .not_valid_after(now + timedelta(days=36_500))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    stored = _Stored(
        1, os.urandom(SECRET_LEN), key_pem.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()
    )
    for file in reversed(_NAMES):  # once the first is there, both are
        records.write(top / file, stored)
    return Identity(stored.seed, stored.key, stored.certificate)


def load(top: Path) -> Identity:
    """The identity of the relay at `top`; heals one damaged file.  Raises NotInitialised, FormatError."""
    found: _Stored | None = None
    bad: list[Path] = []
    for path in (top / file for file in _NAMES):
        try:
            stored = records.read(path, _Stored)
        except FormatError as error:
            records.set_aside(path, top, str(error))
            stored = None
        if stored is None:
            bad.append(path)
        elif found is None:
            found = stored
    if found is None:
        if len(bad) == len(_NAMES) and not (top / records.LOST).exists():
            raise NotInitialised(f"there is no relay at {top}; make one with 'contbak-relay init'")
        raise FormatError(f"both files with this relay's keys are damaged or gone; put {top / _NAMES[0]} back")
    for path in bad:
        records.write(path, found)
    return Identity(found.seed, found.key, found.certificate)


def exists(top: Path) -> bool:
    return any((top / file).exists() for file in _NAMES)


def tls_context(identity: Identity, top: Path) -> ssl.SSLContext:
    """TLS 1.3 as this relay.  The keys pass through a file of this user alone, as OpenSSL reads nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    path = top / f".tls-{os.getpid()}.pem"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(identity.key + identity.certificate)
        context.load_cert_chain(path)
    finally:
        path.unlink()
    return context
