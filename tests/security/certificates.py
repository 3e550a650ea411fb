"""A certificate authority for one test, and what it signs."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


def uri(name):
    return x509.UniformResourceIdentifier(name)


def dns(name):
    return x509.DNSName(name)


@dataclass(frozen=True)
class Signed:
    """PEM, and files that hold it."""

    certificate: bytes
    key: bytes

    def written(self, folder, name):
        """The paths of certificate and key; what was there is replaced as a rotation does it."""
        paths = []
        for end, data in (("crt", self.certificate), ("key", self.key)):
            path, fresh = Path(folder) / f"{name}.{end}", Path(folder) / f"{name}.{end}.new"
            fresh.write_bytes(data)
            fresh.replace(path)
            paths.append(str(path))
        return paths


@dataclass
class Authority:
    name: str = "ca"
    key: object = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self):
        self.certificate = self._certificate(self.name, self.key.public_key(), (), ca=True)

    def sign(self, *names):
        """A certificate with these subject alternative names."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Signed(_pem(self._certificate("leaf", key.public_key(), names)), _pem(key))

    @property
    def pem(self):
        return _pem(self.certificate)

    def _certificate(self, subject, public_key, names, *, ca=False):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(_name(self.name), _name(subject), public_key, x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(what):
    if isinstance(what, x509.Certificate):
        return what.public_bytes(serialization.Encoding.PEM)
    return what.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
