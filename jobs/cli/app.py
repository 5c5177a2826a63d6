"""The command line: its commands, their errors and exit codes."""

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
from jobs.cli import archive, evaluation, generations, operations, reproduction, search, setup, training
from jobs.cli.interrupts import INTERRUPTED, allow_interrupts, exit_on_interrupt
from jobs.cli.options import flag_aliases, set_config_file
from jobs.cli.streams import prepare_streams

EXIT_CODES = """
Exit codes: 0 success; 1 unexpected error; 2 usage; 3 bad input; 4 object storage; 5 Milvus; 6 inputs that
do not match each other; 7 counts that do not add up; 8 gate failed; 9 too many quarantined images; 10 locked
by another process; 11 training diverged; 12 Ray cluster; 130 interrupted; 141 stdout closed by its reader.
"""


class ClvrGroup(TyperGroup):
    """Print an error as one line and a remedy, and exit with its documented code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; only --debug shows a traceback."""
        try:
            return super().invoke(ctx)
        except ClvrError as error:
            _fail(error, debug=bool(ctx.params.get("debug")))
        except Exception as error:
            if type(error).__module__.startswith("typer"):  # usage errors and --help
                raise
            if type(error).__module__.startswith("ray."):
                from jobs.runtime.ray_cluster import root_cause

                if isinstance(cause := root_cause(error), ClvrError):
                    _fail(cause.with_traceback(error.__traceback__), debug=bool(ctx.params.get("debug")))
            unexpected = ClvrError(
                f"unexpected: {type(error).__name__}: {error}",
                remedy="run `clvr --debug …` for the traceback, and report the error",
            )
            _fail(unexpected.with_traceback(error.__traceback__), debug=bool(ctx.params.get("debug")))
        except KeyboardInterrupt:
            exit_on_interrupt()  # a second Ctrl-C ends the process at once
            typer.echo("interrupted; run the same command again to continue", err=True)
            raise SystemExit(INTERRUPTED) from None


def _fail(error: ClvrError, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    if wants_json():
        fields = {"error": type(error).__name__, "remedy": error.remedy, "exit_code": error.exit_code}
        logger.error(error.message, extra=fields)
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
    """Read the options before the command."""
    set_config_file(config)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": setup.demo,
    "generate": archive.generate,
    "train": training.train,
    "model": training.model,
    "plan": archive.plan,
    "embed": archive.embed,
    "status": archive.status,
    "fit-transform": generations.fit_transform,
    "load": generations.load,
    "promote": generations.promote,
    "rollback": generations.rollback,
    "generations": generations.generations,
    "retire": generations.retire,
    "verify": generations.verify,
    "forget": generations.forget,
    "retain": generations.retain,
    "search": search.search,
    "calibrate": evaluation.calibrate,
    "sweep": search.sweep,
    "audit": search.audit,
    "serve": search.serve,
    "evaluate": evaluation.evaluate,
    "compare-models": evaluation.compare_models,
    "reproduce": reproduction.reproduce,
    "drift": evaluation.drift,
    "reindex": operations.reindex,
    "submit": operations.submit,
    "jobs": operations.jobs,
    "config": setup.show_config,
    "doctor": setup.doctor,
    "stack": setup.stack,
}
for name, command in COMMANDS.items():
    app.command(
        name,
        context_settings={
            "token_normalize_func": flag_aliases(name),
            # The words after the submitted command are its own, including its options.
            "allow_interspersed_args": name != "submit",
        },
    )(command)


def main() -> None:
    """Run the console script."""
    # gRPC logs a line for every fork of a process that has an open channel.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    prepare_streams(keep_stdout="--help" in sys.argv[1:])
    allow_interrupts()
    try:
        app()
    except ClvrError as error:  # from the output of --help
        _fail(error, debug=False)
