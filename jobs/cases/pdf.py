"""The PDF of a case, for people who print: facts, images with their hashes, journey, notes and searches."""

import io
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from fpdf import FPDF
from fpdf.enums import XPos, YPos

from index.documents import package_version
from jobs.cases.documents import VERDICTS, JudgementEntry
from jobs.cases.evidence import Evidence, EvidenceImage
from jobs.runtime.format import capture_time, duration

_FONT_FOLDERS = (
    Path("/usr/share/fonts/truetype/dejavu"),
    Path("/usr/share/fonts/dejavu-sans-fonts"),
    Path("/usr/share/fonts/TTF"),
    Path("/Library/Fonts"),
)
_FILES = {"": "DejaVuSans.ttf", "B": "DejaVuSans-Bold.ttf"}
logging.getLogger("fpdf").setLevel(logging.ERROR)  # it warns of each character that the font lacks
_MARGIN, _IMAGE = 16.0, 42.0  # mm
_SOFT = 110


class CasePdf(FPDF):  # type: ignore[misc]
    """An A4 document with page numbers. Its font is DejaVu Sans where the system has it.

    Without it the document has the characters of Latin-1 only; the others become "?".
    """

    def __init__(self, footer: str) -> None:
        super().__init__(format="A4")
        self._footer = footer
        self.set_margins(_MARGIN, _MARGIN)
        self.set_auto_page_break(auto=True, margin=18)
        folder = next((path for path in _FONT_FOLDERS if (path / _FILES[""]).exists()), None)
        self.has_unicode = folder is not None
        self.family = "DejaVu" if folder else "Helvetica"
        if folder:
            for style, name in _FILES.items():
                self.add_font("DejaVu", style, str(folder / name))
        self.add_page()

    def footer(self) -> None:
        """Write the number of the page."""
        self.set_y(-12)
        self.write_line(f"{self._footer} · page {self.page_no()} of {{nb}}", size=7, soft=True)

    def write_line(self, text: str, *, size: float = 9, bold: bool = False, soft: bool = False) -> None:
        """Write a paragraph."""
        self.set_font(self.family, "B" if bold else "", size)
        self.set_text_color(_SOFT if soft else 20)
        self.multi_cell(0, size * 0.5, self.clean(text), new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L")

    def heading(self, text: str) -> None:
        """Write the title of a section."""
        if self.get_y() + _IMAGE + 12 > self.h - 20:  # a title stays with what it heads
            self.add_page()
        self.ln(4)
        self.write_line(text, size=13, bold=True)
        self.ln(1)

    def clean(self, text: str) -> str:
        """Return what the font can show."""
        text = "".join(
            character if character.isprintable() or character == "\n" else " " for character in text
        )
        return text if self.has_unicode else text.encode("latin-1", "replace").decode("latin-1")


def build_pdf(evidence: Evidence) -> bytes:
    """Return the PDF of a case."""
    document = evidence.document
    case = document.case
    pdf = CasePdf(f"Case {case.number} · exported {evidence.at[:19]} UTC by {evidence.by}")
    pdf.set_title(pdf.clean(f"Case {case.number}"))
    pdf.set_producer("CLVR Archive")
    pdf.set_creation_date(datetime.fromisoformat(evidence.at))
    pdf.write_line(f"Case {case.number}", size=20, bold=True)
    if case.title:
        pdf.write_line(case.title, size=13)
    pdf.ln(2)
    for line in (
        f"Made {case.created_at[:19]} UTC by {case.created_by}; {case.state}.",
        f"{case.confirmed} confirmed, {case.unsure} unsure, {case.rejected} rejected crops; "
        f"{case.probes} probes, {case.searches} searches.",
        f"Models: {', '.join(evidence.models) or 'none'}",
        f"Generations: {', '.join(evidence.generations) or 'none'}",
        f"Release {package_version()}. The images as they are in the archive lie beside this page; "
        "manifest.json has the SHA-256 of every file, and `clvr case verify` checks them.",
        "A match is a similarity computed by a model. A likelihood is the share of calibration pairs at this "
        "distance that show the same vehicle; it is no proof of identity.",
    ):
        pdf.write_line(line, soft=True)
    if document.probes:
        pdf.heading("Probes")
        for probe in document.probes:
            facts = [
                probe.spec[:48] + ("…" if len(probe.spec) > 48 else ""),
                f"{probe.at[:19]} UTC by {probe.by}",
            ]
            _image_block(pdf, evidence.images.get(probe.spec), facts)
    for verdict in VERDICTS:
        entries = document.judged(verdict)
        if entries:
            pdf.heading(f"{verdict.capitalize()} ({len(entries)})")
        for entry in sorted(entries, key=lambda one: one.captured_at):
            _image_block(pdf, evidence.images.get(entry.crop), _facts(entry))
    if evidence.journey.stops:
        _journey(pdf, evidence)
    if document.notes:
        pdf.heading("Notes")
        for note in document.notes:
            pdf.write_line(f"{note.at[:19]} UTC · {note.by}", size=8, soft=True)
            pdf.write_line(note.text)
            pdf.ln(1.5)
    if document.searches:
        pdf.heading("Searches")
        for search in document.searches:
            threshold = f", threshold {search.threshold:.3f}" if search.threshold is not None else ""
            pdf.write_line(
                f"{search.at[:19]} UTC · {search.by} · {search.action} · {search.state}"
                f"{f', {search.verdict}' if search.verdict else ''}, {search.answers} shown{threshold}"
            )
            pdf.write_line(
                f"{', '.join(search.probes)} · {search.parameters or 'default rules'} · "
                f"{search.generation} · model {search.fingerprint}",
                size=7,
                soft=True,
            )
            pdf.ln(1)
    return bytes(pdf.output())


def _facts(entry: JudgementEntry) -> list[str]:
    likelihood = "" if entry.likelihood is None else f", likelihood {entry.likelihood:.0%}"
    distance = (
        "" if entry.distance is None else f"distance {entry.distance:.4f}{likelihood}, rank {entry.rank}"
    )
    return [
        f"camera {entry.camera_id or 'unknown'} · {capture_time(entry.captured_at) or 'time unknown'} UTC",
        distance,
        f"{entry.verdict} {entry.at[:19]} UTC by {entry.by}",
        entry.note,
        f"{entry.crop} · track {entry.track_id or 'none'}",
        entry.uri,
        f"model {entry.fingerprint} · {entry.generation}",
    ]


def _image_block(pdf: CasePdf, image: EvidenceImage | None, facts: Sequence[str]) -> None:
    """Write an image with facts beside it, and its hash."""
    if pdf.get_y() + _IMAGE > pdf.h - 20:
        pdf.add_page()
    top = pdf.get_y()
    if image and image.jpeg:
        pdf.image(io.BytesIO(image.jpeg), _MARGIN, top, _IMAGE, _IMAGE * 0.75, keep_aspect_ratio=True)
    pdf.set_left_margin(_MARGIN + _IMAGE + 5)
    pdf.set_xy(_MARGIN + _IMAGE + 5, top)
    for place, fact in enumerate(filter(None, facts)):
        pdf.write_line(fact, size=9 if place == 0 else 7.5, bold=place == 0, soft=place > 0)
    if image and image.sha256:
        pdf.write_line(f"SHA-256 {image.sha256} ({image.name})", size=6.5, soft=True)
    if image and image.missing:
        pdf.write_line(f"not shown: {image.missing}", size=7.5)
    pdf.set_left_margin(_MARGIN)
    pdf.set_xy(_MARGIN, max(pdf.get_y(), top + _IMAGE * 0.75) + 3)


def _journey(pdf: CasePdf, evidence: Evidence) -> None:
    pdf.heading("Journey of the confirmed")
    for place, stop in enumerate(evidence.journey.stops):
        if place:
            leg = evidence.journey.legs[place - 1]
            km = "" if leg.km is None else f"{leg.km:.1f} km, "
            speed = "" if leg.kmh is None else f", at least {leg.kmh:.0f} km/h"
            bad = (
                ": IMPOSSIBLE, one of the two is another vehicle, or a clock is wrong"
                if leg.possible is False
                else ""
            )
            pdf.write_line(
                f"      {km}{duration(leg.seconds)}{speed}{bad}", size=8, soft=leg.possible is not False
            )
        pdf.write_line(f"{place + 1}.  {capture_time(stop.first)} UTC · camera {stop.camera_id or 'unknown'}")
