"""The export of a case: one ZIP file with pages, tables, images as they are, and a signed manifest.

case.html, case.pdf                self-contained pages
case.json                          all of it
judgements, searches, shown        each as .csv and .parquet
images/                            the bytes of the archive and of uploads
manifest.json, manifest.sig        see `signing`
"""

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from index.documents import package_version
from jobs.cases.evidence import Evidence
from jobs.cases.pdf import build_pdf
from jobs.cases.signing import sign_files
from jobs.pages.case_page import build_case_page

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the manifest says when it was made
_SPREADSHEET_SIGNS = "=+-@\t\r"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A written export."""

    path: str
    case_number: str
    files: int
    bytes: int
    key: str | None

    def to_text(self) -> str:
        """Return the result as lines."""
        signed = f"signed by key {self.key}" if self.key else "not signed: set signing_key"
        return (
            f"case {self.case_number}: {self.files:,} files, {self.bytes:,} bytes in {self.path}, {signed}\n"
            f"next: clvr case verify {self.path}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self)


def build_export(evidence: Evidence, key: Ed25519PrivateKey | None) -> bytes:
    """Return the ZIP file of a case."""
    tables: dict[str, list[dict[str, Any]]] = {
        "judgements": [
            asdict(entry)
            | {"sha256": evidence.images[entry.crop].sha256 if entry.crop in evidence.images else ""}
            for entry in evidence.history
        ],
        "searches": [
            asdict(entry)
            | {"probes": json.dumps(entry.probes), "parameters": json.dumps(entry.parameters, sort_keys=True)}
            for entry in evidence.document.searches
        ],
        "shown": [asdict(entry) for entry in evidence.shown],
    }
    files: dict[str, bytes] = {
        "case.html": build_case_page(evidence).encode(),
        "case.pdf": build_pdf(evidence),
        "case.json": _json(evidence),
    }
    for name, rows in tables.items():
        files[f"{name}.csv"] = _csv(rows)
        files[f"{name}.parquet"] = _parquet(rows)
    files |= {image.name: image.data for image in evidence.images.values() if image.data}
    case = evidence.document.case
    facts = {
        "case_number": case.number,
        "title": case.title,
        "exported_at": evidence.at,
        "exported_by": evidence.by,
        "release": package_version(),
        "models": evidence.models,
        "generations": evidence.generations,
        "missing": {image.spec: image.missing for image in evidence.images.values() if image.missing},
    }
    return _zip(files | sign_files(files, facts, key))


def write_export(path: Path, data: bytes) -> None:
    """Write an export: readers see the old file or the whole new one."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def file_name(number: str) -> str:
    """Return the name of the export of a case, without what file systems and headers refuse."""
    safe = "".join(character if character.isalnum() or character in "._-" else "-" for character in number)
    return f"case-{safe.encode('ascii', 'replace').decode().replace('?', '-')}.zip"


def _json(evidence: Evidence) -> bytes:
    document = asdict(evidence.document) | {
        "history": [asdict(entry) for entry in evidence.history],
        "shown": [asdict(entry) for entry in evidence.shown],
        "journey": asdict(evidence.journey) | {"impossible": evidence.journey.impossible},
        "images": [
            {"spec": image.spec, "name": image.name, "sha256": image.sha256, "missing": image.missing}
            for image in evidence.images.values()
        ],
        "exported_at": evidence.at,
        "exported_by": evidence.by,
        "release": package_version(),
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    """Return text that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value[:1] in _SPREADSHEET_SIGNS and value[:1]:
        return f"'{value}"
    return value


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), buffer)
    return buffer.getvalue()


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _ZIP_TIME)
            # Images are compressed already.
            stored = name.startswith("images/") or name.endswith(".parquet")
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()
