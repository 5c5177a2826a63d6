"""`clvr doctor`: tries every part of a set-up, and says what to do about what does not work."""

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from infra.checks import Check, Finding, broken, ok, run_checks, skipped, warning
from infra.errors import BadSetting, BucketMissing, ClvrError, ObjectChanged, ObjectExists
from infra.settings import PREFIX, Settings, load_settings, settings_file
from infra.store import Store, open_store
from infra.store_settings import StoreSettings
from jobs.doctor.cluster import check_jobs, check_ray
from jobs.doctor.machine import check_clock, check_disk, check_gpu

# What reads CLVR_ variables besides the settings.
_OTHER_VARIABLES = {"CLVR_CONFIG", "CLVR_LOG_FORMAT", "CLVR_STACK"}
_SECRET_FILES = ("RAY_AUTH_TOKEN_PATH", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE")


@dataclass(frozen=True, slots=True)
class Examination:
    """What `clvr doctor` found."""

    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        """Whether nothing that is needed is broken."""
        return not any(finding.state == "broken" for finding in self.findings)

    def __str__(self) -> str:
        """A line a finding, its remedy below it, and the sum."""
        lines = []
        for finding in self.findings:
            state = finding.state.upper() if finding.state == "broken" else finding.state
            lines.append(f"{finding.check:18} {state:8} {finding.says}")
            if finding.remedy and finding.state in ("broken", "warning"):
                lines.append(f"{'':18} {'':8} -> {finding.remedy}")
        counts = {state: sum(one.state == state for one in self.findings) for state in ("broken", "warning")}
        sums = [f"{counts['broken']} broken"] if counts["broken"] else ["nothing is broken"]
        sums += [f"{counts['warning']} to look at"] if counts["warning"] else []
        return "\n".join([*lines, ", ".join(sums)])


@dataclass(frozen=True, slots=True)
class Patient:
    """What to examine: without an archive or a model those are left out."""

    flags: Mapping[str, Any]
    archive: str | None = None
    model: str | None = None
    crops: int = 0
    config: Path | None = None
    seconds: float = 20.0


def examine(patient: Patient) -> Examination:
    """Try everything, side by side. Never raises for what it finds; never shows a secret."""
    try:
        settings = load_settings(patient.flags, file=patient.config)
        file = settings_file(patient.config)
        first = [ok("settings", f"from {file or 'no file'}, the environment and flags")]
    except BadSetting as error:
        # The rest is examined as far as flags and variables go: one broken file shall not hide the others.
        settings = _settings_without_file(patient)
        first = [broken("settings", error.message, error.remedy)]
    first += _unknown_variables()
    try:
        storage = StoreSettings.from_env()
    except BadSetting as error:
        storage = StoreSettings()
        first.append(broken("storage settings", error.message, error.remedy))
    checks = [
        Check("files", partial(check_files, patient.config)),
        Check("runs", partial(check_store, "runs", settings.runs, storage, writes=True)),
        Check("archive", partial(check_archive, patient.archive, storage)),
        Check("clock", partial(check_clock, storage, settings)),
        Check("milvus", partial(check_milvus, settings)),
        Check("milvus bucket", partial(check_bucket, settings, storage)),
        Check("ray", partial(check_ray, settings, patient.seconds), seconds=patient.seconds + 5),
        Check("jobs", partial(check_jobs, settings)),
        Check("gpu", check_gpu, seconds=60),  # importing torch alone takes seconds
        Check("disk", partial(check_disk, settings, patient.crops)),
        Check("model", partial(check_model, patient.model), seconds=60),
    ]
    return Examination(
        first + run_checks(checks, seconds=patient.seconds, secrets=_secrets(settings, storage))
    )


def check_store(name: str, uri: str, storage: StoreSettings, *, writes: bool) -> Finding:
    """Whether a store can be listed and, if asked, written, and keeps what conditional writes promise."""
    store = open_store(uri, _impatient(storage) if uri.startswith("s3://") else None)
    if store.local and not Path(store.uri).exists():
        return ok(name, f"{store.uri} is not there yet: the first run makes it")
    try:
        store.ensure()
    except BucketMissing as error:
        return broken(name, error.message, error.remedy or "create the bucket, or correct the URI")
    if not writes:
        return ok(name, f"{store.uri} can be listed")
    key = f".doctor/{secrets.token_hex(8)}"
    try:
        promise = _broken_promise(store, key)
    finally:
        _forget(store, key)
    if promise:
        return broken(name, f"{store.uri} {promise}", "use a server that honours If-None-Match and If-Match")
    return ok(name, f"{store.uri}: read, write, conditional create and replace, delete")


def check_archive(uri: str | None, storage: StoreSettings) -> Finding:
    """Whether the archive can be listed and its first object read."""
    if uri is None:
        return skipped("archive", "not named: --archive URI")
    store = open_store(uri, _impatient(storage) if uri.startswith("s3://") else None)
    store.ensure()
    first = next(iter(store.list()), None)
    if first is None:
        return broken("archive", f"{store.uri} is empty", "correct the prefix: keys are case-sensitive")
    size = len(store.get(first.key))
    return ok("archive", f"{store.uri} can be listed and read; {first.key} has {size:,} bytes")


def check_milvus(settings: Settings) -> list[Finding]:
    """Whether Milvus answers us, and what its version does."""
    if "://" not in settings.milvus and not Path(settings.milvus).exists():
        return [ok("milvus", f"{settings.milvus} is not there yet: Milvus Lite makes it at the first load")]
    from jobs.runtime.resolve import open_milvus

    with open_milvus(settings) as milvus:
        can = milvus.capabilities
        collections = len(milvus.call("list_collections"))
        aliases = _alias_of(milvus, settings.alias)
    where = "Milvus Lite" if can.lite else "Milvus"
    found = [
        ok("milvus", f"{where} {can.version} at {settings.milvus}: {collections} collections, {aliases}"),
        ok("milvus index", f"{', '.join(sorted(can.index_types))}; rows by {can.import_interface}"),
    ]
    if not can.lite and can.number < (2, 5, 5):
        found.append(
            warning(
                "milvus guard",
                f"{can.version} lets anybody drop the collection that an alias points to",
                "drop generations by `clvr retire` only, or use Milvus 2.5.5 or newer",
            )
        )
    if can.lite and settings.ray:
        found.append(
            warning(
                "milvus", "a file serves this machine only, and a Ray cluster is set", "use a Milvus server"
            )
        )
    return found


def check_bucket(settings: Settings, storage: StoreSettings) -> Finding:
    """Whether bulk import has a bucket, and whether shards lie in it already."""
    if "://" not in settings.milvus:
        return skipped("milvus bucket", "Milvus Lite imports nothing")
    if not settings.milvus_bucket:
        return warning(
            "milvus bucket",
            "not named, so rows are inserted, which is slow for more than some 100,000",
            "set CLVR_MILVUS_BUCKET to the server's own bucket",
        )
    found = check_store("milvus bucket", settings.milvus_bucket, storage, writes=False)
    if found.state != "ok":
        return found
    inside = settings.runs.startswith(settings.milvus_bucket.rstrip("/") + "/")
    return replace(found, says=found.says + ("; runs lie in it" if inside else "; shards are copied into it"))


def check_model(uri: str | None) -> Finding:
    """Whether a checkpoint is whole."""
    if uri is None:
        return skipped("model", "not named: --checkpoint URI")
    from clvr_model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(uri)
    card = checkpoint.card
    trained = f", made {card.created_at[:10]}" if card.created_at else ""
    return ok("model", f"fingerprint {checkpoint.fingerprint}, {len(card.label_ids)} vehicle models{trained}")


def check_files(config: Path | None) -> list[Finding]:
    """Whether files that hold secrets can be read by their owner only."""
    held = [Path(os.environ[name]) for name in _SECRET_FILES if os.environ.get(name)]
    held += [Path("~/.aws/credentials").expanduser()]
    try:
        file = settings_file(config)
    except BadSetting:
        file = None
    if file is not None and "milvus_token" in file.read_text(encoding="utf-8", errors="replace"):
        held.append(file)
    found = []
    for path in held:
        if path.is_file() and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
            found.append(
                warning("files", f"{path} holds a secret and has mode {mode:04o}", f"chmod 600 {path}")
            )
        elif not path.is_file() and path.name != "credentials":
            found.append(
                broken("files", f"{path} is named by the environment and is not there", "correct it")
            )
    return found or [ok("files", "those that hold secrets are readable by their owner only")]


def _unknown_variables() -> list[Finding]:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | _OTHER_VARIABLES
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    says = f"nobody reads {', '.join(unknown)}"
    return [warning("settings", says, "`clvr config` lists what there is")] if unknown else []


def _settings_without_file(patient: Patient) -> Settings:
    good: dict[str, Any] = {name: value for name, value in patient.flags.items() if value is not None}
    for name in Settings.model_fields:
        value = good.get(name, os.environ.get(PREFIX + name.upper()))
        if value is not None:
            good[name] = value
    try:
        return Settings.model_validate(good)
    except ValueError:
        return Settings.model_validate({})


def _impatient(storage: StoreSettings) -> StoreSettings:
    # Who waits for a diagnosis does not want two minutes of retries.
    return replace(storage, retries=1, retry_seconds=3.0, connect_seconds=3.0, read_seconds=5.0)


def _broken_promise(store: Store, key: str) -> str:
    store.create(key, b"first")
    try:
        store.create(key, b"second")
    except ObjectExists:
        pass
    else:
        return "lets a second writer overwrite a conditional create"
    etag = store.fetch(key).etag
    store.replace(key, b"third", etag=etag)
    try:
        store.replace(key, b"fourth", etag=etag)
    except ObjectChanged:
        pass
    else:
        return "ignores the etag of a conditional replace"
    return "" if store.get(key) == b"third" else "does not give back what was written"


def _forget(store: Store, key: str) -> None:
    try:
        store.delete(key)
    except ClvrError as error:
        raise type(error)(
            f"{store.uri}: what was written cannot be deleted: {error.message}", remedy=error.remedy
        ) from error


def _alias_of(milvus: Any, alias: str) -> str:
    from index.milvus.collection import live_generation

    current = live_generation(milvus, alias)
    return f"{current.name} is live as {alias}" if current else f"nothing is live as {alias}"


def _secrets(settings: Settings, storage: StoreSettings) -> list[str]:
    found = [storage.secret_key, storage.session_token, os.environ.get("RAY_AUTH_TOKEN")]
    for held in (settings.milvus_token, settings.jobs_token, settings.webhook):
        if held:
            secret = held.get_secret_value()
            found += [secret, secret.partition(":")[2]]
    return [secret for secret in found if secret]
