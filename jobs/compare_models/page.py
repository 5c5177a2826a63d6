"""The page of a comparison of models, assembled from its rows."""

import shlex
from pathlib import Path

from jobs.compare_models.results import CompareModelsRequest, ModelComparison, change_text, guard_rule
from jobs.pages.html import write_page as write_html
from jobs.pages.models_page import Cell, ModelRow, ModelsPage, build_models_page


def write_page(path: Path, comparison: ModelComparison, request: CompareModelsRequest) -> None:
    """Write the page. It shows no crop. Raises BadSetting if it cannot be written."""
    runs = list(dict.fromkeys(row.run for row in comparison.rows))
    rows = [
        ModelRow(
            name=row.name,
            model=runs.index(row.run),
            bytes=row.bytes,
            crops_per_second=row.crops_per_second,
            dollars=row.dollars,
            cells=[
                Cell(
                    rank_1=row.accuracies[result.name].rank_1,
                    mean_precision=row.accuracies[result.name].mean_precision,
                    change=change_text(row.accuracies[result.name].rank_1_change),
                )
                for result in comparison.protocols
            ],
            reference=row.reference,
            is_compressed=bool(row.format),
            guard=row.guard,
            on_frontier=comparison.is_on_frontier(row),
        )
        for row in comparison.rows
    ]
    page = ModelsPage(
        rows=rows,
        protocols={result.name: result.summary() for result in comparison.protocols},
        crops=comparison.crops,
        rule=guard_rule(comparison.max_loss) if any(row.format for row in comparison.rows) else "",
        facts={"runs": ", ".join(runs), **comparison.facts},
        command=_command(request, runs),
    )
    write_html(path, build_models_page(page))


def _command(request: CompareModelsRequest, runs: list[str]) -> str:
    options: list[tuple[str, str]] = [
        *([("--labels", request.labels)] if request.labels else []),
        *([("--split", request.split)] if request.split else []),
        *(("--protocol", name) for name in request.protocols),
        *(("--transform", name) for name in request.transforms),
        *(("--compress", name) for name in request.formats),
        ("--html", str(request.html)),
    ]
    return shlex.join(["clvr", "compare-models", *runs, *(part for pair in options for part in pair)])
