"""The signed manifest of an export: SHA-256 of every file, signed by an Ed25519 key, and its verification.

manifest.json    what the export is, and every other file with its bytes and SHA-256
manifest.sig     the signature of manifest.json, and the public key that checks it; only if there is a key
"""

import base64
import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from infra.errors import BadInput, BadSetting, CorruptObject

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
FORMAT, VERSION = "clvr-case", 1
MAX_FILES = 100_000
MAX_MANIFEST = 64 << 20
_CHUNK = 1 << 20

Signed = Literal["valid", "unsigned"]


def read_signing_key(path: Path | None) -> Ed25519PrivateKey | None:
    """Read the key of the setting `signing_key`; None without one. Raises BadSetting."""
    if path is None:
        return None
    remedy = "openssl genpkey -algorithm ed25519 -out key.pem"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise BadSetting(f"the signing key {path} cannot be read: {error.strerror}", remedy=remedy) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadSetting(f"{path} is no unencrypted private key in PEM", remedy=remedy) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadSetting(f"{path} is no Ed25519 key", remedy=remedy)
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key in PEM. Raises BadInput."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadInput(
            f"{path} is no public key in PEM", remedy="openssl pkey -in key.pem -pubout"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"{path} is no Ed25519 key")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key, as people compare it."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def sign_files(
    files: Mapping[str, bytes], facts: Mapping[str, Any], key: Ed25519PrivateKey | None
) -> dict[str, bytes]:
    """Return manifest and signature of files. facts: what the manifest says beside the files."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **facts,
        "key": key_id(key.public_key()) if key else None,
        "files": [
            {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(files.items())
        ],
    }
    encoded = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode()
    signed = {MANIFEST: encoded}
    if key:
        public = key.public_key()
        document = {
            "algorithm": "Ed25519",
            "key": key_id(public),
            "public_key": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
            "signature": base64.b64encode(key.sign(encoded)).decode(),
        }
        signed[SIGNATURE] = json.dumps(document, indent=1, sort_keys=True).encode()
    return signed


@dataclass(frozen=True, slots=True)
class Verification:
    """A verified export: all files are as they were signed.

    signed: `unsigned` if it has no signature. key: SHA-256 of the public key. trusted: whether that key is
    the one that the caller gave; without that, whoever altered the export may have signed it again.
    """

    case_number: str
    exported_at: str
    exported_by: str
    files: int
    signed: Signed
    key: str | None
    trusted: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return the outcome as lines."""
        lines = [
            f"case {self.case_number}, exported {self.exported_at[:19]} UTC by {self.exported_by}",
            f"  files      {self.files:,}, each with the SHA-256 of the manifest",
        ]
        if self.signed == "unsigned":
            lines.append("  signature  none: this shows accidents, not forgery")
        else:
            trust = "your key" if self.trusted else "compare it with the operator's, or give --public-key"
            lines.append(f"  signature  valid, by key {self.key} ({trust})")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return asdict(self)


def verify_export(path: Path, public_key: Ed25519PublicKey | None = None) -> Verification:
    """Check every file of an export, and its signature.

    public_key: the one that must have signed it. Raises BadInput for what is no export, CorruptObject for a
    file that was altered, added or removed, and for a signature that is wrong, missing or by another key.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _verify(archive, path, public_key)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise CorruptObject(
            f"{path} is damaged, or no export of a case: {error}", remedy="Ask for the export again."
        ) from error


def _verify(archive: zipfile.ZipFile, path: Path, public_key: Ed25519PublicKey | None) -> Verification:
    names = [info.filename for info in archive.infolist()]
    if MANIFEST not in names:
        raise BadInput(
            f"{path} is no export of a case", remedy="Give the file that `clvr case export` wrote."
        )
    if len(names) > MAX_FILES or archive.getinfo(MANIFEST).file_size > MAX_MANIFEST:
        raise _altered(path, "it has too many files")
    encoded = archive.read(MANIFEST)
    key = _check_signature(archive, names, encoded, path, public_key)
    manifest = json.loads(encoded)
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise BadInput(f"{path} is of another version", remedy="Verify it by the release that wrote it.")
    try:
        expected = {
            str(entry["name"]): (int(entry["bytes"]), str(entry["sha256"])) for entry in manifest["files"]
        }
        facts = {name: value for name, value in manifest.items() if name != "files"}
        number, at, by = (str(facts[name]) for name in ("case_number", "exported_at", "exported_by"))
    except (KeyError, TypeError) as error:
        raise _altered(path, "its manifest lacks a field") from error
    if len(set(names)) != len(names):
        raise _altered(path, "it has two files of one name")
    for name in sorted({*names} - {MANIFEST, SIGNATURE} ^ {*expected}):
        raise _altered(path, f"{name} was {'removed' if name in expected else 'added'}")
    for name, (size, sha256) in sorted(expected.items()):
        if archive.getinfo(name).file_size != size or _sha256(archive, name, size) != sha256:
            raise _altered(path, f"{name} was changed")
    return Verification(
        case_number=number,
        exported_at=at,
        exported_by=by,
        files=len(expected),
        signed="valid" if key else "unsigned",
        key=key_id(key) if key else None,
        trusted=key is not None and public_key is not None,
        facts=facts,
    )


def _check_signature(
    archive: zipfile.ZipFile,
    names: list[str],
    encoded: bytes,
    path: Path,
    public_key: Ed25519PublicKey | None,
) -> Ed25519PublicKey | None:
    if SIGNATURE not in names:
        if public_key is not None:
            raise _altered(path, "it has no signature")
        if json.loads(encoded).get("key"):
            raise _altered(path, f"{SIGNATURE} was removed")
        return None
    try:
        document = json.loads(archive.read(SIGNATURE))
        key = load_pem_public_key(str(document["public_key"]).encode())
        signature = base64.b64decode(document["signature"], validate=True)
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm) as error:
        raise _altered(path, f"{SIGNATURE} cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _altered(path, "its key is no Ed25519 key")
    if public_key is not None and key_id(public_key) != key_id(key):
        raise _altered(path, f"it is signed by key {key_id(key)[:16]}, not by yours")
    try:
        key.verify(signature, encoded)
    except InvalidSignature as error:
        raise _altered(path, "its signature does not fit its manifest") from error
    return key


def _sha256(archive: zipfile.ZipFile, name: str, size: int) -> str:
    digest, left = hashlib.sha256(), size
    with archive.open(name) as file:
        while left >= 0 and (chunk := file.read(_CHUNK)):
            digest.update(chunk)
            left -= len(chunk)  # a file that unpacks to more than it says is not read to its end
    return digest.hexdigest()


def _altered(path: Path, how: str) -> CorruptObject:
    return CorruptObject(f"{path} is not as it was exported: {how}", remedy="Ask for the export again.")
