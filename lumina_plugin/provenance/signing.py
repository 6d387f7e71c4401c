"""C2PA manifests: the record as an assertion that is signed together with the file, and what a reader finds of it.

Needs c2pa-python (`pip install 'lumina_plugin[c2pa]'`). Certificate and key are the user's own; nothing is sent
anywhere: no time stamp is asked for, and no certificate is looked up.
"""

import dataclasses
import io
import json
import struct
import typing as tp
from pathlib import Path

from ..atomic import write_atomic
from ..errors import LuminaError
from ..report import words
from .record import Attribution

LABEL = 'org.lumina-plugin.attribution'
MIMES = {'.wav': 'audio/wav', '.flac': 'audio/flac', '.mp3': 'audio/mpeg'}
_CREATED = {'label': 'c2pa.actions', 'data': {'actions': [{
    'action': 'c2pa.created',
    'digitalSourceType': 'http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia'}]}}
_SILENCE = (b'RIFF' + struct.pack('<I', 36 + 320) + b'WAVEfmt ' + struct.pack('<IHHIIHH', 16, 1, 1, 16000, 32000, 2, 16)
            + b'data' + struct.pack('<I', 320) + bytes(320))  # 10 ms as a WAV file
_UNTRUSTED = 'signingCredential.untrusted'


def installed() -> bool:
    """Whether c2pa-python is there."""
    try:
        import c2pa  # noqa: F401
    except ImportError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Signing:
    """Whoever vouches for attributions.

    Args:
        certificate (path): PEM with the signing certificate, and those up to (not necessarily with) a root after it.
            C2PA wants one that an authority has issued for signing (extended key usage e-mail protection or document
            signing); one that is its own issuer signs, too, but nobody can trust it.
        key (path): PEM with its private key, without a passphrase: EC (P-256, P-384, P-521), Ed25519 or RSA.
    """
    certificate: tp.Union[str, Path]
    key: tp.Union[str, Path]

    def check(self) -> None:
        """Sign a moment of silence in memory, so that what cannot sign is told before anything is generated.

        Raises:
            LuminaError: c2pa-python is missing, or certificate and key cannot sign.
        """
        self._signed(_SILENCE, '.wav', {'claim_generator_info': [{'name': 'lumina_plugin'}], 'assertions': [_CREATED]})

    def sign(self, path: tp.Union[str, Path], attribution: Attribution) -> Path:
        """Embed a signed manifest into a generated audio file, in place and atomically. Tags are to be written before.

        Raises:
            LuminaError: c2pa-python is missing, the file is no WAV, FLAC or MP3, or was no model's work, or certificate
                and key cannot sign.
        """
        path = Path(path)
        if path.suffix.lower() not in MIMES:
            raise LuminaError(f"{path} cannot hold a C2PA manifest; write {', '.join(MIMES)}.")
        if attribution.kind == 'file':
            raise LuminaError(f"{path} is a recording that was attributed, not made, here: a manifest would say that a "
                              "model made it; keep the record beside it.")
        return write_atomic(path, self._signed(path.read_bytes(), path.suffix.lower(), _manifest(attribution)))

    def _signed(self, data: bytes, suffix: str, manifest: tp.Dict[str, tp.Any]) -> bytes:
        """An audio file's bytes with a manifest in them."""
        expect_installed()
        import c2pa
        certificate, key = _read(self.certificate), _read(self.key)
        out = io.BytesIO()
        try:
            info = c2pa.C2paSignerInfo(_algorithm(key, self.key), certificate, key, None)
            with c2pa.Signer.from_info(info) as signer:
                c2pa.Builder(manifest).sign(signer, MIMES[suffix], io.BytesIO(data), out)
        except c2pa.C2paError as error:
            raise LuminaError(f"Certificate {self.certificate} and key {self.key} cannot sign ({_first(error)}); give "
                              "PEM files that belong together, of a certificate that is for signing and in "
                              "force.") from error
        return out.getvalue()


def expect_installed() -> None:
    """Raise LuminaError where c2pa-python is missing."""
    if not installed():
        raise LuminaError("C2PA manifests need c2pa-python, which is not installed: pip install 'lumina_plugin[c2pa]'.")


def _manifest(attribution: Attribution) -> tp.Dict[str, tp.Any]:
    return {'claim_generator_info': [{'name': 'lumina_plugin', 'version': attribution.lumina_version}],
            'title': attribution.title,
            'assertions': [_CREATED, {'label': LABEL, 'data': json.loads(attribution.text())}]}


def _algorithm(key: bytes, path: tp.Union[str, Path]) -> bytes:
    """C2PA's name for what a private key signs with."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    try:
        loaded = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise LuminaError(f"{path} is no private key that can be used ({error}); give one as PEM, without a "
                          "passphrase.") from None
    if isinstance(loaded, ed25519.Ed25519PrivateKey):
        return b'ed25519'
    if isinstance(loaded, rsa.RSAPrivateKey):
        return b'ps256'
    size = loaded.curve.key_size if isinstance(loaded, ec.EllipticCurvePrivateKey) else 0
    if size not in (256, 384, 521):
        raise LuminaError(f"{path} is a key of a kind that C2PA does not take; use EC P-256, Ed25519 or RSA.")
    return {256: b'es256', 384: b'es384', 521: b'es512'}[size]


def _read(path: tp.Union[str, Path]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise LuminaError(f"{path} cannot be read ({error.strerror}); name a PEM file.") from None


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip('.')


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a file's C2PA manifest says, and whether it holds.

    Attributes:
        attribution: the record in it; None where it has none, or none that can be read.
        signer: name on the certificate, and who issued it. trusted: it leads to a root that the reader trusts.
        problems: why it does not hold; none where file and signature are as they were when it was signed.
    """
    attribution: tp.Optional[Attribution]
    signer: str
    trusted: bool
    problems: tp.List[str]


def may_hold_manifest(path: Path) -> bool:
    """Whether the file's bytes look as if a manifest were in them; needs no c2pa-python."""
    return path.suffix.lower() in MIMES and b'c2pa.claim' in path.read_bytes()


def read_manifest(path: tp.Union[str, Path], trust: tp.Optional[tp.Union[str, Path]] = None
                  ) -> tp.Optional[Manifest]:
    """The active manifest of an audio file; None where it has none. Nothing is fetched from anywhere.

    Args:
        trust (path, optional): PEM with root certificates that are trusted; none are unless given.
    Raises:
        LuminaError: c2pa-python is missing, or `trust` cannot be read.
    """
    path = Path(path)
    expect_installed()
    import c2pa
    settings: tp.Dict[str, tp.Any] = {'verify': {'remote_manifest_fetch': False, 'ocsp_fetch': False,
                                                 'verify_trust': True}}
    if trust is not None:
        settings['trust'] = {'trust_anchors': _read(trust).decode('utf-8', 'replace')}
    try:
        with open(path, 'rb') as file:
            reader = c2pa.Reader(MIMES[path.suffix.lower()], file, context=c2pa.Context.from_dict(settings))
            active, state = reader.get_active_manifest() or {}, reader.get_validation_state()
            results = (reader.get_validation_results() or {}).get('activeManifest', {})
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        return Manifest(None, '', False, [_first(error)])
    problems = [str(part.get('code')) for part in results.get('failure', []) if part.get('code') != _UNTRUSTED]
    return _found(path, active, state == 'Trusted', problems)


def _found(path: Path, active: tp.Mapping[str, tp.Any], trusted: bool, problems: tp.List[str]) -> Manifest:
    about = active.get('signature_info') or {}
    name, issuer = about.get('common_name') or 'an unnamed signer', about.get('issuer')
    signer = words.clean(f'{name} ({issuer})' if issuer and issuer != name else str(name))
    data = next((part.get('data') for part in active.get('assertions', []) if part.get('label') == LABEL), None)
    if data is None:
        return Manifest(None, signer, trusted, problems)
    try:
        return Manifest(Attribution.parse(json.dumps(data), f'the manifest of {path}'), signer, trusted, problems)
    except LuminaError as error:
        return Manifest(None, signer, trusted, [*problems, str(error)])
