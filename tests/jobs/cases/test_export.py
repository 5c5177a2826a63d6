"""The export of a case: pages, tables and images, and a manifest that shows every change."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from PIL import Image

from index.archive.manifest import crop_id_of
from index.runs.tombstones import TombstoneWatch
from index.search.travel_time import CameraMap
from infra.errors import BadInput, BadSetting, CorruptObject
from infra.settings import Settings
from infra.store import open_store
from jobs.cases.audit import AuditTrail, Outcome, Purpose
from jobs.cases.casebook import Casebook, CropFacts
from jobs.cases.commands import export_case, list_cases, show_case
from jobs.cases.database import CaseDatabase
from jobs.cases.export import file_name
from jobs.cases.signing import read_public_key, read_signing_key, verify_export

CITY = CameraMap({"a": (52.0, 13.0), "b": (53.0, 13.0)})
HOSTILE = '<script>alert(1)</script> =HYPERLINK("x") Škoda 车'


def image(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), (20 * seed, 90, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


class Desk:
    """A case with two confirmed crops, a rejected one that is gone from the archive, and an upload."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = open_store(str(folder / "archive"))
        self.archive.create_bucket()
        self.key = Ed25519PrivateKey.generate()
        (folder / "key.pem").write_bytes(
            self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "public.pem").write_bytes(public)
        runs = open_store(str(folder / "data"))
        runs.create_bucket()
        self.settings = Settings(runs=runs.uri, signing_key=folder / "key.pem")
        self.book = Casebook(CaseDatabase(self.settings.case_database()), TombstoneWatch([runs]))
        case = self.book.create("26/117", HOSTILE, "ada")
        self.uris = []
        trail = AuditTrail(self.book)
        search = trail.begin("search", Purpose(user="ada", case_number="26/117"), ["crop:1"], {"top": 5})
        for number, (camera, verdict) in enumerate(
            (("a", "confirmed"), ("b", "confirmed"), ("a", "rejected"))
        ):
            uri = self.archive.uri_of(f"{number}.jpg")
            self.uris.append(uri)
            if number < 2:
                self.archive.put(f"{number}.jpg", image(number))
            facts = CropFacts(
                crop_id=crop_id_of(uri),
                uri=uri,
                camera_id=camera,
                track_id="",
                captured_at=1_767_600_000_000 + 60_000 * number,
                generation="g",
                fingerprint="f00d",
                search_id=search,
                rank=number + 1,
                distance=0.5,
                likelihood=0.7,
            )
            self.book.judge(case.id, verdict, HOSTILE, "ada", facts)
        outcome = Outcome(
            generation="g", fingerprint="f00d", transform="", shown=[(crop_id_of(self.uris[0]), 0.5, 0.7)]
        )
        trail.finish(search, outcome)
        upload = self.book.add_upload(image(9), 90, 60, "ada")
        self.book.add_probe(case.id, f"upload:{upload.sha256}@0,0,0.5,0.5", "ada")
        self.book.add_note(case.id, HOSTILE, "ada")

    def export(self) -> Path:
        path = self.folder / "case.zip"
        export_case("26/117", path, self.settings, CITY)
        return path


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def rewrite(path: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    altered = path.with_name("altered.zip")
    with zipfile.ZipFile(altered, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return altered


def test_an_export_holds_pages_tables_and_the_images_as_they_are(desk: Desk) -> None:
    with zipfile.ZipFile(desk.export()) as archive:
        names = set(archive.namelist())
        files = {name: archive.read(name) for name in names}
    crop = f"images/crop-{crop_id_of(desk.uris[0])}.jpg"
    assert files[crop] == image(0)
    assert {"case.html", "case.pdf", "case.json", "judgements.csv", "shown.parquet", "manifest.sig"} <= names
    assert any(name.startswith("images/upload-") for name in names)
    page = files["case.html"].decode()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert hashlib.sha256(image(0)).hexdigest() in page
    assert "impossible" in page  # 111 km in a minute
    assert "not shown: " in page  # the image that is gone
    assert files["case.pdf"].startswith(b"%PDF-")
    rows = pq.read_table(io.BytesIO(files["judgements.parquet"])).to_pylist()
    assert [(row["verdict"], row["likelihood"], row["fingerprint"]) for row in rows] == [
        ("confirmed", 0.7, "f00d"),
        ("confirmed", 0.7, "f00d"),
        ("rejected", 0.7, "f00d"),
    ]
    assert rows[0]["sha256"] == hashlib.sha256(image(0)).hexdigest()
    document = json.loads(files["case.json"])
    assert document["journey"]["impossible"] == 1
    assert document["searches"][0]["parameters"] == {"top": 5}
    assert len(document["shown"]) == 1
    searches = desk.book.read(1).searches
    assert [(entry.action, entry.state) for entry in searches] == [("search", "done"), ("export", "done")]


def test_an_unchanged_export_is_verified(desk: Desk) -> None:
    path = desk.export()
    found = verify_export(path)
    assert (found.case_number, found.signed, found.trusted) == ("26/117", "valid", False)
    found = verify_export(path, read_public_key(desk.folder / "public.pem"))
    assert found.trusted
    assert found.files == len(zipfile.ZipFile(path).namelist()) - 2
    assert found.facts["models"] == ["f00d"]


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.update({"case.html": files["case.html"] + b" "}),
        lambda files: files.update({next(name for name in files if "crop" in name): image(5)}),
        lambda files: files.pop("shown.csv"),
        lambda files: files.update({"images/more.jpg": image(1)}),
        lambda files: files.update({"manifest.json": files["manifest.json"].replace(b"f00d", b"f00e")}),
        lambda files: files.update({"manifest.json": files["manifest.json"].replace(b"26/117", b"26/118")}),
        lambda files: files.pop("manifest.sig"),
        lambda files: files.update({"manifest.sig": b"{}"}),
        lambda files: files.update({"manifest.json": b"[]"}),
    ],
)
def test_every_change_is_noticed(desk: Desk, change: Callable[[dict[str, bytes]], object]) -> None:
    altered = rewrite(desk.export(), change)
    if altered.read_bytes() == desk.export().read_bytes():
        pytest.fail("nothing was changed")
    with pytest.raises((CorruptObject, BadInput)):
        verify_export(altered)


def test_an_export_signed_again_by_another_key_is_noticed_by_the_public_key(desk: Desk) -> None:
    public = read_public_key(desk.folder / "public.pem")
    other = desk.folder / "other.pem"
    other.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    path = desk.folder / "forged.zip"
    export_case("26/117", path, desk.settings.model_copy(update={"signing_key": other}))
    assert verify_export(path).signed == "valid"
    with pytest.raises(CorruptObject, match="not by yours"):
        verify_export(path, public)
    unsigned = desk.folder / "unsigned.zip"
    export_case("26/117", unsigned, desk.settings.model_copy(update={"signing_key": None}))
    assert verify_export(unsigned).signed == "unsigned"
    with pytest.raises(CorruptObject, match="no signature"):
        verify_export(unsigned, public)


def test_a_bit_of_an_export_is_noticed_wherever_it_flips(desk: Desk) -> None:
    path = desk.export()
    data, expected = path.read_bytes(), verify_export(path)
    for place in range(0, 8 * len(data), 8 * len(data) // 90 | 1):
        altered = bytearray(data)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        with suppress(CorruptObject, BadInput):
            assert verify_export(path) == expected  # a field of the ZIP file that says nothing


def test_an_erased_crop_is_in_no_export(
    desk: Desk, hide: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.runs.tombstones._MAX_AGE_SECONDS", 0.0)
    hide(open_store(desk.settings.runs), [crop_id_of(desk.uris[0])])
    with zipfile.ZipFile(desk.export()) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if not name.endswith(".pdf"))
        assert str(crop_id_of(desk.uris[0])).encode() not in text
        assert not [name for name in archive.namelist() if str(crop_id_of(desk.uris[0])) in name]


def test_wrong_keys_and_cases_have_a_remedy(desk: Desk) -> None:
    with pytest.raises(BadInput, match=r"no case '27'") as refused:
        show_case("27", desk.settings)
    assert "26/117" in refused.value.remedy
    assert "26/117" in show_case("26/117", desk.settings).to_text()
    assert "26/117" in list_cases(desk.settings).to_text()
    (desk.folder / "no.pem").write_text("nothing")
    with pytest.raises(BadSetting, match="no unencrypted private key"):
        read_signing_key(desk.folder / "no.pem")
    with pytest.raises(BadInput, match="no public key"):
        read_public_key(desk.folder / "key.pem")
    with pytest.raises((CorruptObject, BadInput)):
        verify_export(desk.folder / "key.pem")
    assert file_name("26/117 ü") == "case-26-117--.zip"
