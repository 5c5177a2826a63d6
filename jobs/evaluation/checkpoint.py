"""A checkpoint and pictures instead of a run: embedded once, and found again the next time."""

from clvr_model.checkpoint import load_checkpoint
from index.runs import list_runs
from infra.settings import Settings
from infra.store import open_store
from jobs.embed import EmbedRequest, embed
from jobs.progress import console


def run_of(run: str, archive: str | None, settings: Settings, max_quarantine_rate: float = 0.01) -> str:
    """The run id itself, or with an archive the run of that archive by the checkpoint `run`.

    A finished run of the same archive and fingerprint is taken as it is: no picture is embedded twice.
    Raises what `jobs.embed.embed` raises.
    """
    if archive is None:
        return run
    fingerprint = load_checkpoint(run).fingerprint
    uri = open_store(archive).uri
    for old in reversed(list(list_runs(open_store(settings.runs)))):
        if old.finished and old.fingerprint == fingerprint and old.info.archive == uri:
            console.print(f"run {old.run_id} has these pictures by this checkpoint already")
            return old.run_id
    return embed(
        EmbedRequest(archive=archive, model=run, max_quarantine_rate=max_quarantine_rate), settings
    ).run_id
