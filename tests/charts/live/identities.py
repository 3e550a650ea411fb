"""Certificates of a mesh: one CA, and a SPIFFE identity for each workload."""

import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    def __init__(self, folder):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "the mesh")])
        usage = x509.KeyUsage(False, False, False, False, False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)  # fmt: skip
        self._certificate = (
            self._builder(name, name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, principal):
        """The files of a certificate and its key for `cluster.local/ns/<namespace>/sa/<account>`."""
        stem = principal.replace("/", "_")
        files = self._folder / f"{stem}.crt.pem", self._folder / f"{stem}.key.pem"
        if not files[0].exists():
            key = ec.generate_private_key(ec.SECP256R1())
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{principal}")])
            certificate = (
                self._builder(x509.Name([]), self._certificate.subject, key)
                .add_extension(names, critical=True)
                .sign(self._key, hashes.SHA256())
            )
            files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            files[1].write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        return files

    def client(self, principal):
        """What a caller with that identity connects with."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.check_hostname = False  # a SPIFFE identity is no host
        context.load_cert_chain(*map(str, self.issue(principal)))
        return context

    @staticmethod
    def _builder(subject, issuer, key):
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )
