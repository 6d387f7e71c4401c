"""A certificate authority for tests: a root, and certificates that it has issued for signing."""

import datetime
import typing as tp
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_USES = ('digital_signature', 'content_commitment', 'key_encipherment', 'data_encipherment', 'key_agreement',
         'key_cert_sign', 'crl_sign', 'encipher_only', 'decipher_only')


class Authority:
    """Writes PEM files into a folder: `root.pem`, and per signer `NAME.pem` (chain) and `NAME.key`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.key: tp.Any = ec.generate_private_key(ec.SECP256R1())
        self.root = folder / 'root.pem'
        self.certificate = self._certificate('Test Root', self.key, authority=True)
        self.root.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def signer(self, name: str = 'Studio', kind: str = 'ec', own_issuer: bool = False, days: int = 365
               ) -> tp.Tuple[Path, Path]:
        """Certificate chain and key of somebody who signs; `own_issuer` for one whom no authority knows."""
        key: tp.Any = ed25519.Ed25519PrivateKey.generate() if kind == 'ed25519' else ec.generate_private_key(
            ec.SECP256R1())
        certificate = self._certificate(name, key, own_issuer=own_issuer, days=days)
        chain, path = self.folder / f'{name}.pem', self.folder / f'{name}.key'
        chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + self.root.read_bytes())
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                           serialization.NoEncryption()))
        return chain, path

    def _certificate(self, name: str, key: tp.Any, authority: bool = False, own_issuer: bool = False,
                     days: int = 365) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        alone = authority or own_issuer
        issuer, signer = (name, key) if alone else ('Test Root', self.key)
        uses = {'digital_signature', *(('key_cert_sign', 'crl_sign') if authority else ())}
        builder = x509.CertificateBuilder().subject_name(_named(name)).issuer_name(_named(issuer)).public_key(
            key.public_key()).serial_number(x509.random_serial_number()).not_valid_before(
            now - datetime.timedelta(days=400)).not_valid_after(now + datetime.timedelta(days=days))
        extensions: tp.List[tp.Tuple[tp.Any, bool]] = [
            (x509.BasicConstraints(ca=authority, path_length=None), True),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
            (x509.KeyUsage(**{use: use in uses for use in _USES}), True)]
        if not authority:
            extensions.append((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name),
                      x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'Test Studios')])
