"""A film strip of one case, from upload to verified export, in Chromium: two widths, two themes.

make film                     makes a small archive in film/site, then the pictures and film/index.html
make film FILM="--site DIR"   uses the archive in DIR, as this command made it before
make film FILM="--times"      measures the time from a drop to the first answer instead
"""

import argparse
import html
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

CLVR = [sys.executable, "-m", "jobs"]
PATTERN = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"
REPEATS = 12
SIZES = {"desk": (1400, 900), "phone": (390, 844)}


def clvr(*arguments: str, site: Path, **more: str) -> str:
    """Run a command on the archive of the film; return what it prints."""
    environment = os.environ | {
        "CLVR_RUNS": str(site / "data"),
        "CLVR_MILVUS": str(site / "milvus.db"),
        "CLVR_CASES": str(site / "cases.db"),
        "CLVR_SIGNING_KEY": str(site / "key.pem"),
        **more,
    }
    done = subprocess.run([*CLVR, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"clvr {' '.join(arguments)}\n{done.stderr}")
    return done.stdout


def make_site(site: Path) -> None:
    """Make an archive, a live and calibrated generation, positions of cameras and a signing key."""
    site.mkdir(parents=True, exist_ok=True)
    archive, labels, model = (str(site / name) for name in ("archive", "labels", "model"))
    table = f"{labels}/labels.parquet"
    clvr(
        "generate",
        archive,
        "--labels",
        labels,
        "--models",
        "6",
        "--vehicles",
        "6",
        "--sightings",
        "6",
        site=site,
    )
    add_companion(site)
    clvr("model", "import", "efficientnet_lite0", "--to", model, site=site)
    clvr("embed", archive, "--checkpoint", model, "--labels", table, "--key-pattern", PATTERN, site=site)
    clvr("load", "latest", site=site)
    clvr("promote", "latest", site=site)
    clvr("calibrate", "latest", "--labels", table, "--false-alarm-rate", "0.1", site=site)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (site / "key.pem").write_bytes(private)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (site / "public.pem").write_bytes(public)


def probe_of(site: Path) -> Path:
    """The image that the case is about."""
    return sorted((site / "archive").rglob("*.jpg"))[3]


def add_companion(site: Path) -> None:
    """Let a vehicle of another model follow that of the probe, 20 s behind it at each of its sightings."""
    rows = pq.read_table(site / "labels" / "labels.parquet").to_pylist()
    key = probe_of(site).relative_to(site / "archive").as_posix()
    leader = next(row for row in rows if row["key"] == key)
    follower = next(row for row in rows if row["model_id"] != leader["model_id"])
    for row in rows:
        if row["vehicle_id"] == leader["vehicle_id"]:
            name = f"{row['captured_at'] + 20_000}_behind{row['track_id'][:6]}.jpg"
            shutil.copy(site / "archive" / follower["key"], (site / "archive" / row["key"]).parent / name)


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Run `clvr serve` and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "CLVR_RUNS": str(site / "data"),
        "CLVR_MILVUS": str(site / "milvus.db"),
        "CLVR_CASES": str(site / "cases.db"),
        "CLVR_SIGNING_KEY": str(site / "key.pem"),
        "CLVR_VIDEO_URL": "https://video.example/{camera_id}?t={iso}",
    }
    cameras = str(site / "labels" / "cameras.csv")
    command = [*CLVR, "serve", "--port", str(port), "--camera-positions", cameras]
    server = subprocess.Popen(command, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=2):  # noqa: S310
                break
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("clvr serve did not start")
            time.sleep(0.3)
        yield url
    finally:
        server.terminate()
        server.wait(30)


class Film:
    """The pictures of one case in one size and theme."""

    def __init__(self, page: Page, folder: Path, prefix: str) -> None:
        self.page, self.folder, self.prefix = page, folder, prefix
        self.frames: list[tuple[str, str]] = []

    def shoot(self, title: str, *, whole: bool = False) -> None:
        """Take a picture of what is to be seen now."""
        if whole:
            self.page.evaluate("scrollTo(0, 0)")
        self.page.wait_for_timeout(500)
        name = f"{self.prefix}-{len(self.frames) + 1:02d}.png"
        self.page.screenshot(path=self.folder / name, full_page=whole)
        self.frames.append((title, name))

    def play(self, url: str, probe: Path, site: Path) -> float:
        """Work a case from upload to verified export; return the seconds from drop to first answer."""
        page, number = self.page, f"26-{self.prefix}"
        page.goto(url)
        page.wait_for_selector("#app:not([hidden])")
        self.shoot("The desk")
        page.select_option("#case", "new")
        page.fill("#new-case [name=number]", number)
        page.fill("#new-case [name=title]", "Hit and run, Main Street")
        self.shoot("A new case")
        page.click("#new-case .main")
        page.wait_for_selector("#new-case", state="hidden")
        started = time.perf_counter()
        page.set_input_files("#file", probe)
        page.wait_for_selector(".hit")
        seconds = time.perf_counter() - started
        self.shoot("A photo is dropped: the nearest crops")
        page.click(".probe-tools button")
        self.shoot("A box on the photo")
        page.click("#box-close")
        for place, verdict in enumerate(("confirmed", "confirmed", "confirmed", "rejected", "unsure")):
            page.locator(".hit").nth(place).locator(f".judge.{verdict}").click()
            page.wait_for_selector(f".hit:nth-child({place + 1})[data-verdict={verdict}]")
        page.evaluate("scrollTo(0, 0)")
        self.shoot("Judged")
        page.locator(".hit .look").nth(1).click()
        self.shoot("The original beside the probe")
        for _ in range(3):
            page.keyboard.press("+")
        self.shoot("Both zoom together")
        page.keyboard.press("Escape")
        page.click("#timeline-tab")
        self.shoot("By time")
        page.click("#map-tab")
        page.wait_for_selector(".map .mark")
        self.shoot("By place")
        page.click("#case-tab")
        page.fill(".note-form textarea", "Roof rails and a yellow plate, as the witness said.")
        page.click(".note-form button")
        page.wait_for_selector(".note-item")
        page.locator(".case form.row input").fill("0.3")
        page.locator(".case form.row select").select_option("900")
        page.click("text=Find companions")
        page.wait_for_selector(".companion")
        self.shoot("The case: journey, companions, notes, searches", whole=True)
        page.click("text=Search with the confirmed")
        page.wait_for_selector(".hit")
        self.shoot("Again, with the confirmed and away from the rejected")
        page.click("#case-tab")
        page.wait_for_selector("text=Export")
        with page.expect_download() as download:
            page.click("text=Export")
        path = self.folder / f"{self.prefix}.zip"
        download.value.save_as(path)
        verified = clvr("case", "verify", str(path), "--public-key", str(site / "public.pem"), site=site)
        page.goto("about:blank")  # without the content policy of the desk
        page.set_content(
            f"<pre>$ clvr case verify case.zip --public-key public.pem\n{html.escape(verified)}</pre>"
        )
        page.add_style_tag(
            content="pre{font:16px/1.6 monospace;padding:20px;white-space:pre-wrap;overflow-wrap:anywhere}"
        )
        self.shoot("The export is verified")
        return seconds


def play_all(browser: Browser, url: str, folder: Path, site: Path) -> None:
    """Play the case in every size and theme, and write the page of the film."""
    probe = probe_of(site)
    rows = []
    for size, (width, height) in SIZES.items():
        for theme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="light" if theme == "light" else "dark",
            )
            film = Film(context.new_page(), folder, f"{size}-{theme}")
            film.page.on("pageerror", lambda error: sys.exit(f"an error in the page: {error}"))
            seconds = film.play(url, probe, site)
            print(
                f"{size}, {theme}: {len(film.frames)} pictures, first answer {seconds:.2f} s after the drop"
            )
            context.close()
            frames = "".join(
                f'<figure><img src="{name}" alt="{html.escape(title)}" loading="lazy"><figcaption>{place}. '
                f"{html.escape(title)}</figcaption></figure>"
                for place, (title, name) in enumerate(film.frames, start=1)
            )
            rows.append(f"<h2>{width} px, {theme}</h2><div>{frames}</div>")
    style = (
        "body{font:15px sans-serif;margin:24px}div{display:flex;gap:16px;overflow-x:auto}"
        "img{height:480px;border:1px solid #999}"
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Film</title><style>{style}</style>'
    page = head + "".join(rows)
    (folder / "index.html").write_text(page, encoding="utf-8")


def make_photo(crop: Path, path: Path) -> None:
    """Make a photo of 12 megapixels, as of a phone, in which a vehicle is a tenth of its width."""
    noise = np.random.default_rng(0).integers(60, 190, (750, 1000, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC)
    with Image.open(crop) as vehicle:
        photo.paste(vehicle.convert("RGB").resize((400, 300)), (1800, 1350))
    photo.save(path, "JPEG", quality=90)


def time_answers(browser: Browser, url: str, folder: Path, site: Path) -> None:
    """Measure from a drop, or a box that was drawn, to the first match on the screen, and print it."""
    page = browser.new_page(viewport={"width": 1400, "height": 900}, bypass_csp=True)  # to wait for images
    images = sorted((site / "archive").rglob("*.jpg"))[: REPEATS + 1]
    first = "document.querySelector('.hit img')?.complete && document.querySelector('.hit img').naturalWidth"
    seconds: dict[str, list[float]] = {"crop": [], "photo": [], "box on the photo": []}

    def until_shown(what: str, started: float) -> None:
        page.wait_for_function(first)
        seconds[what].append(time.perf_counter() - started)

    for number, image in enumerate(images):
        photo = folder / f"photo-{number}.jpg"
        make_photo(image, photo)
        for what, path in (("crop", image), ("photo", photo)):
            page.goto(url)
            page.wait_for_selector("#app:not([hidden])")
            started = time.perf_counter()
            page.set_input_files("#file", path)
            until_shown(what, started)
        page.click(".probe-tools button")
        page.locator("#box-image").evaluate("image => image.decode()")
        area = page.locator("#box-area").bounding_box()
        assert area
        page.mouse.move(area["x"] + 0.45 * area["width"], area["y"] + 0.45 * area["height"])
        page.mouse.down()
        page.mouse.move(area["x"] + 0.55 * area["width"], area["y"] + 0.55 * area["height"])
        page.mouse.up()
        started = time.perf_counter()
        page.click("#box-search")
        page.wait_for_url("**@*")
        until_shown("box on the photo", started)
        photo.unlink()
    for what, all_of_them in seconds.items():
        warm = sorted(all_of_them[1:])  # the first one compiles the network
        print(f"{what}: p50 {statistics.median(warm):.2f} s, longest {warm[-1]:.2f} s, {len(warm)} times")
    page.close()


def main() -> None:
    """Make the film, or measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("film"))
    parser.add_argument("--site", type=Path, help="an archive that this command made")
    parser.add_argument("--times", action="store_true", help="measure and take no pictures")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("no chromium: apt-get install chromium")
    site = (options.site or options.output / "site").absolute()
    if not (site / "public.pem").exists():
        make_site(site)
    (site / "cases.db").unlink(missing_ok=True)
    options.output.mkdir(exist_ok=True)
    with served(site) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        (time_answers if options.times else play_all)(browser, url, options.output, site)
        browser.close()
    if not options.times:
        print(f"the film: {options.output / 'index.html'}")


if __name__ == "__main__":
    main()
