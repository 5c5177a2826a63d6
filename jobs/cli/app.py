"""The command line: one verb a line, their errors, their exit codes."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from infra.errors import ClvrError
from infra.logging import logger, wants_json, without_secrets
from jobs.cli import archive, evaluation, generations, operations, search, setup, training
from jobs.cli.options import redirect_stdout_to_stderr, set_config_file

EXIT_CODES = """
Exit codes: 0 done; 1 unexpected; 2 usage; 3 bad input; 4 object storage; 5 Milvus; 6 parts that do not
belong together; 7 numbers that do not add up; 8 the gate said no; 9 too many bad pictures; 10 locked by
somebody else; 11 training diverged; 12 Ray cluster; 130 interrupted.
"""


class ClvrGroup(TyperGroup):
    """Turns our errors into one line, a remedy and the documented exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a traceback is shown only with --debug."""
        try:
            return super().invoke(ctx)
        except ClvrError as error:
            _fail(error, debug=bool(ctx.params.get("debug")))
        except Exception as error:
            if type(error).__module__.startswith("typer"):  # its own: usage errors, --help
                raise
            unexpected = ClvrError(
                f"unexpected: {type(error).__name__}: {error}",
                remedy="run `clvr --debug …` for the traceback, and report it",
            )
            _fail(unexpected.with_traceback(error.__traceback__), debug=bool(ctx.params.get("debug")))
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command continues where this stopped", err=True)
            raise SystemExit(130) from None


def _fail(error: ClvrError, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    if wants_json():
        facts = {"error": type(error).__name__, "remedy": error.remedy, "exit_code": error.exit_code}
        logger.error(error.message, extra=facts)
    else:
        typer.echo(f"error: {without_secrets(error.message)}", err=True)
        if error.remedy:
            typer.echo(f"remedy: {without_secrets(error.remedy)}", err=True)
    raise SystemExit(error.exit_code)


app = typer.Typer(
    cls=ClvrGroup,
    help="Vehicle re-identification over a whole archive." + "\n\n" + EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback()
def common(
    config: Annotated[Path | None, typer.Option(help="YAML settings file (default: clvr.yaml).")] = None,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Take the options that stand before the verb."""
    set_config_file(config)


VERBS: dict[str, Callable[..., None]] = {
    "demo": setup.demo,
    "generate": archive.generate,
    "train": training.train,
    "plan": archive.plan,
    "embed": archive.embed,
    "status": archive.status,
    "load": generations.load,
    "promote": generations.promote,
    "rollback": generations.rollback,
    "generations": generations.generations,
    "retire": generations.retire,
    "verify": generations.verify,
    "forget": generations.forget,
    "retain": generations.retain,
    "search": search.search,
    "calibrate": search.calibrate,
    "sweep": search.sweep,
    "audit": search.audit,
    "serve": search.serve,
    "evaluate": evaluation.evaluate,
    "reindex": operations.reindex,
    "submit": operations.submit,
    "jobs": operations.jobs,
    "config": setup.show_config,
    "doctor": setup.doctor,
    "stack": setup.stack,
}
# What follows the submitted verb is its own, options and all.
CONTEXTS = {"submit": {"allow_interspersed_args": False}}
for name, verb in VERBS.items():
    app.command(name, context_settings=CONTEXTS.get(name))(verb)


def main() -> None:
    """Entry point of the console script."""
    # gRPC says a line for every fork of a process that holds a channel.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if "--help" not in sys.argv[1:]:
        redirect_stdout_to_stderr()
    app()
