"""What `clvr reindex` was asked for."""

from dataclasses import dataclass

from index.retire import KEEP
from infra.errors import BadSetting
from jobs.embed import SHARD_ROWS
from jobs.precision import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class NightRequest:
    """Which archive, by which model, and within which bounds; the settings say where to."""

    archive: str
    model: str
    """URI of the checkpoint."""
    night: str | None = None
    """Name of the night; without one it follows from the date and from what is asked."""
    full: bool = False
    """Embed the whole archive, and let the model be another one than the live generation's."""
    beside: bool = False
    """Build a new generation of all runs even for a small increment."""
    key_pattern: str | None = None
    manifest: str | None = None
    labels: str | None = None
    lookback_days: int | None = None
    precision: Asked = "fp32"
    """Of a full night; an increment takes that of the run it continues."""
    actors: int | None = None
    rows_per_shard: int = SHARD_ROWS
    max_quarantine_rate: float = 0.01
    max_vanished_rate: float = 0.1
    index_type: str = "auto"
    golden: str | None = None
    keep: int = KEEP
    price_per_node_hour: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_quarantine_rate", "max_vanished_rate"):
            rate = getattr(self, name)
            if not 0 <= rate <= 1:
                raise BadSetting(f"--{name.replace('_', '-')} is {rate}, not a share between 0 and 1")
        if self.keep < 1:
            raise BadSetting(f"--keep is {self.keep}", remedy="Keep at least one generation.")
        if self.lookback_days is not None and (self.lookback_days < 0 or self.manifest or self.full):
            raise BadSetting(
                f"--lookback-days {self.lookback_days} needs a listing of what is new",
                remedy="Leave out --manifest and --full, and give a number of days from 0 on.",
            )
