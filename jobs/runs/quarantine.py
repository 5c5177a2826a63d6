"""`clvr quarantine`: the crops that a run could not embed, with their causes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import TypedDict

from index.runs.accounting import count_causes
from infra.errors import BadSetting
from infra.settings import Settings
from jobs.runtime.format import count, text_table
from jobs.runtime.resolve import find_run


class QuarantinedCrop(TypedDict):
    """A crop without an embedding. crop_id: a string, because JavaScript rounds integers of its size."""

    crop_id: str
    uri: str
    stage: str
    cause: str
    detail: str | None


class Quarantine(TypedDict):
    """The quarantine of a run: all of it by stage/cause, and the first of the selected crops."""

    run_id: str
    causes: dict[str, int]
    selected: int
    crops: list[QuarantinedCrop]


@dataclass(frozen=True, slots=True)
class QuarantineReport:
    """The quarantine of a run: counts by 'stage/cause', and the first crops of the chosen causes."""

    run_id: str
    causes: dict[str, int]
    """Of the whole quarantine."""
    selected: int
    """Crops of the chosen causes."""
    crops: tuple[dict[str, Any], ...]
    """crop_id, uri, stage, cause and detail of the first of them."""

    def to_text(self) -> str:
        """Return the causes, then a table of crops."""
        if not self.causes:
            return f"run {self.run_id} quarantined no crop"
        causes = ", ".join(f"{cause} {number:,}" for cause, number in self.causes.items())
        rows = [
            (f"{crop['stage']}/{crop['cause']}", crop["uri"], crop["detail"] or "") for crop in self.crops
        ]
        lines = [f"run {self.run_id}: {causes}", text_table(("cause", "crop", "detail"), rows)]
        if self.selected > len(self.crops):
            lines.append(f"{count(self.selected - len(self.crops))} more: --limit {self.selected}")
        return "\n".join(lines)

    def to_json(self) -> Quarantine:
        """Return the report."""
        return {
            "run_id": self.run_id,
            "causes": self.causes,
            "selected": self.selected,
            "crops": [
                {
                    "crop_id": str(crop["crop_id"]),
                    "uri": crop["uri"],
                    "stage": crop["stage"],
                    "cause": crop["cause"],
                    "detail": crop["detail"],
                }
                for crop in self.crops
            ],
        }


def quarantine_report(
    run_id: str, settings: Settings, *, causes: Sequence[str] = (), limit: int = 20
) -> QuarantineReport:
    """Return the quarantine of a run; of an unfinished run, that of the parts written so far.

    causes: `cause` or `stage/cause`; none is all. Raises BadInput for an unknown run, BadSetting for a cause
    that this quarantine does not have, CorruptObject.
    """
    run = find_run(run_id, settings, finished=False)
    table = run.quarantine()
    counts = dict(sorted(count_causes(table).items(), key=lambda item: (-item[1], item[0])))
    known = {*counts, *(name.partition("/")[2] for name in counts)}
    if unknown := sorted(set(causes) - known):
        raise BadSetting(
            f"run {run.run_id} quarantined no crop by the cause {', '.join(unknown)}",
            remedy=f"its causes: {', '.join(counts) or 'none'}",
        )
    if causes:
        full = pc.binary_join_element_wise(table["stage"], table["cause"], "/")
        values = pa.array(list(causes), pa.string())
        table = table.filter(pc.or_(pc.is_in(full, values), pc.is_in(table["cause"], values)))
    return QuarantineReport(run.run_id, counts, table.num_rows, tuple(table.slice(0, limit).to_pylist()))
