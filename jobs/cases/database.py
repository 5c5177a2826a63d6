"""The database of cases: SQLite by default, PostgreSQL by its URL; opened, migrated, and in transactions.

A transaction is on disk when it returns: a process may be killed at any moment, and the database holds all of
a change or nothing of it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from infra.errors import BadSetting, CaseDatabaseError
from infra.settings import Settings

BUSY_SECONDS = 20
MIGRATIONS = Path(__file__).parent / "migrations"
REVISION = "0001"
"""The revision of the last migration."""
_MIGRATION_LOCK = 0x636C7672  # of PostgreSQL's advisory locks: "clvr"


class CaseDatabase:
    """A connection pool. Safe to share between threads; processes share a database by its URL.

    Raises BadSetting for a URL that no driver serves, CaseDatabaseError where it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.url = database_url(url)
        try:
            self._engine = _engine(self.url)
        except (NoSuchModuleError, ModuleNotFoundError) as missing:
            raise BadSetting(
                f"no driver for a database {self.url.drivername}: {missing}",
                remedy="Use a SQLite file, or pip install 'clvr-archive[postgres]' and postgresql://…",
            ) from missing
        with _errors(self.name), _one_process(self.url), self._engine.connect() as connection:
            _migrate(connection.execution_options(writes=True))

    @property
    def name(self) -> str:
        """Where it is, without a password."""
        return str(self.url.database) if _is_sqlite(self.url) else self.url.render_as_string()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session of one consistent state. Raises CaseDatabaseError."""
        with _errors(self.name), Session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session whose changes are committed, on disk, at the end. Raises CaseDatabaseError."""
        writing = self._engine.execution_options(writes=True)
        with _errors(self.name), Session(writing, expire_on_commit=False) as session, session.begin():
            yield session

    def ping(self) -> None:
        """Raise CaseDatabaseError unless it answers."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def shrink(self) -> None:
        """Remove deleted bytes from the file of SQLite, and ask PostgreSQL to do so."""
        with _errors(self.name), self._engine.connect() as connection:
            raw = connection.execution_options(isolation_level="AUTOCOMMIT")
            raw.exec_driver_sql("VACUUM")
            if _is_sqlite(self.url):
                raw.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def open_cases(settings: Settings) -> CaseDatabase | None:
    """Open the database of the settings, if there is one; None for a SQLite file that does not exist."""
    return CaseDatabase(settings.case_database()) if settings.has_cases() else None


def database_url(text_: str) -> URL:
    """Parse a URL, or the path of a SQLite file. Raises BadSetting."""
    if "://" not in text_:
        return URL.create("sqlite", database=str(Path(text_).absolute()))
    try:
        url = make_url(text_)
    except ArgumentError as error:
        raise BadSetting(
            "the URL of the database of cases cannot be read", remedy="Write postgresql://user@host/name."
        ) from error
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    return url


def _engine(url: URL) -> Engine:
    if not _is_sqlite(url):
        return create_engine(url, pool_pre_ping=True)
    path = Path(str(url.database))
    with _errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        # It holds names and images: nobody else reads it.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        # sqlite3 would begin transactions late, and none at all around a change of tables.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {1000 * BUSY_SECONDS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "secure_delete = ON",  # erased rows are overwritten
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _migrate(connection: Connection) -> None:
    current = _revision(connection)
    connection.rollback()  # a migration begins its own transaction
    if current == REVISION:
        return
    # Here, because most processes have nothing to migrate, and the import is a tenth of a search's CPU time.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    command.upgrade(config, "head")
    connection.commit()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


@contextmanager
def _one_process(url: URL) -> Iterator[None]:
    """Let one process migrate a SQLite file; PostgreSQL has a lock of its own."""
    if not _is_sqlite(url):
        yield
        return
    with Path(f"{url.database}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        reason = str(error.orig).splitlines()[0] if error.orig else type(error).__name__
        locked = isinstance(error, OperationalError) and "locked" in reason
        raise CaseDatabaseError(
            f"the database of cases {name} {'is busy' if locked else 'refuses'}: {reason}",
            remedy="Repeat it in a few seconds." if locked else "Check CLVR_CASES, the server and the disk.",
        ) from error
    except OSError as error:
        raise CaseDatabaseError(
            f"the database of cases {name} cannot be opened: {error.strerror}",
            remedy="Check CLVR_CASES and its permissions.",
        ) from error
