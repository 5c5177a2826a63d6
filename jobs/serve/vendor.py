"""Fetch the libraries of the page from npm, as they are pinned: python -m jobs.serve.vendor

They are committed in `static/vendor` with their licences, because the page loads nothing from elsewhere.
"""

import base64
import hashlib
import io
import tarfile
from pathlib import Path

import httpx2

FOLDER = Path(__file__).parent / "static" / "vendor"
REGISTRY = "https://registry.npmjs.org/leaflet/-/leaflet-1.9.4.tgz"
INTEGRITY = "nxS1ynzJOmOlHp+iL3FyWqK89GtNL8U8rvlMOsQdTTssxZwCXh8N2NB3GDQOL+YR3XnWyZAxwQixURb+FA74PA=="
"""SHA-512 of the package, as npm states it."""

FILES = {
    "package/dist/leaflet.js": "leaflet.js",
    "package/dist/leaflet.css": "leaflet.css",
    "package/LICENSE": "leaflet.LICENSE.txt",
}
SHA256 = {
    "leaflet.js": "db49d009c841f5ca34a888c96511ae936fd9f5533e90d8b2c4d57596f4e5641a",
    "leaflet.css": "a7837102824184820dfa198d1ebcd109ff6d0ff9a2672a074b9a1b4d147d04c6",
    "leaflet.LICENSE.txt": "53e8dc25862014e4324741ca18fbe3611e11d42ef69f59f86ea8c5389647d4cb",
}
"""Of the files that are committed."""


def main() -> None:
    """Download, compare with the pinned digest, and write the files."""
    data = httpx2.get(REGISTRY, timeout=60).raise_for_status().content
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != INTEGRITY:
        raise SystemExit(f"{REGISTRY} is not the package that is pinned")
    FOLDER.mkdir(exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as package:
        for member, name in FILES.items():
            file = package.extractfile(member)
            if file is None:
                raise SystemExit(f"{REGISTRY} has no {member}")
            (FOLDER / name).write_bytes(file.read())


if __name__ == "__main__":
    main()
