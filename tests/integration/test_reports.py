"""Every HTML report in Chromium: axe-core finds no fault, and nothing is wider than a phone."""

import runpy
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from infra.store import open_store
from jobs.cases.commands import export_case
from jobs.pages.evaluation_page import build_evaluation_page
from jobs.pages.models_page import Cell, ModelRow, ModelsPage, build_models_page
from jobs.pages.training_page import build_training_page
from jobs.reindex.page import build_reindex_page
from jobs.reindex.state import previous_summaries
from jobs.reindex.summary import summarise

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1] / "jobs"


def of(module: str) -> Any:
    """Return what a test module defines: it knows how to make a page of its kind."""
    return runpy.run_path(str(TESTS / module))


def evaluation(folder: Path) -> str:
    made = of("pages/test_evaluation_page.py")
    lists = [made["section"](name) for name in ("small", "medium")]
    return build_evaluation_page(replace(made["sample"](), lists=lists))


def training(folder: Path) -> str:
    predicted, true = [0, 1, 2, 0, 1, 1], [0, 1, 2, 1, 1, 0]
    names = {0: "Audi A3 Sportback", 1: "BMW", 2: "Citroën"}
    return build_training_page(of("pages/test_training_page.py")["page"](predicted, true, names=names))


def search(folder: Path) -> str:
    made = of("pages/test_search_page.py")
    matches = [made["make_match"](rank, f"c{rank % 3}", 1000 * rank) for rank in range(1, 7)]
    positions = {"c0": (52.5, 13.4), "c1": (52.6, 13.5), "c2": (52.4, 13.2)}
    return str(made["page"](*matches, positions=positions, facts={"generation": "g" * 40}))


def night(folder: Path) -> str:
    made, store = of("reindex/test_state.py"), open_store(str(folder))
    before = made["recorded_run"](store, "one")
    before.write_summary(summarise(before, None, price=None, nodes=2), "")
    before.finish()
    run = made["recorded_run"](store, "two")
    (earlier,) = previous_summaries(run, 1)
    summary = summarise(run, earlier, price=3.0, nodes=2)
    summary["crops"] |= {"new": 10_402_224, "embedded": 9_999_999_999, "quarantined": 742}
    return build_reindex_page(summary, [earlier, earlier])


def table_1(folder: Path) -> str:
    made = of("reproduce/test_results.py")
    return str(made["page_of"](made["LARGE"]))


def models(folder: Path) -> str:
    rows = [
        ModelRow(
            name=f"run-{number} +whitening",
            model=number,
            bytes=1024 << number,
            crops_per_second=30.0 * (number + 1),
            dollars=0.5 / (number + 1),
            cells=[Cell((0.4 - 0.1 * number, 0.02), (0.3, 0.01), "-0.100")] * 2,
            on_frontier=True,
        )
        for number in range(3)
    ]
    protocols = {"vehicleid-paper": "one image is the gallery", "cross-camera": "other cameras"}
    return build_models_page(ModelsPage(rows=rows, protocols=protocols, crops=120, facts={"runs": "a, b, c"}))


def case(folder: Path) -> str:
    desk = of("cases/test_export.py")["Desk"](folder)
    export_case("26/117", folder / "case.zip", desk.settings)
    with zipfile.ZipFile(folder / "case.zip") as export:
        return export.read("case.html").decode()


@pytest.mark.parametrize("make", [evaluation, training, search, night, table_1, models, case])
def test_a_report_can_be_read_by_everybody(page: Page, make: Callable[[Path], str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(make(tmp_path), encoding="utf-8")
    page.set_viewport_size({"width": 360, "height": 800})
    findings = []
    # The theme changes colors and nothing else.
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(path.as_uri())
        options = {"resultTypes": ["violations"], **rules}
        for violation in Axe().run(page, options=options).response["violations"]:
            targets = [node["target"] for node in violation["nodes"][:3]]
            findings.append((scheme, violation["id"], violation["impact"], targets))
    assert [finding for finding in findings if finding[2] != "minor"] == []
    for width in (360, 390, 1400):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
