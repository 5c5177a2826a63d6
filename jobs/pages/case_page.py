"""The page of a case in an export: images with their facts and hashes, journey, notes and searches."""

import json
from typing import Any

from index.documents import package_version
from jobs.pages.html import render
from jobs.runtime.format import timestamp


def build_case_page(evidence: Any) -> str:
    """Return the page. evidence: `jobs.cases.evidence.Evidence`. Every value in it is escaped."""
    return render(
        "case_page.html.j2",
        styles=("page.css.j2", "search_page.css.j2", "case_page.css.j2"),
        filters={"timestamp": timestamp, "rules": _rules},
        evidence=evidence,
        document=evidence.document,
        case=evidence.document.case,
        images=evidence.images,
        release=package_version(),
        unknown_time=-1,
    )


def _rules(parameters: Any) -> str:
    return json.dumps(parameters, sort_keys=True) if parameters else "default rules"
