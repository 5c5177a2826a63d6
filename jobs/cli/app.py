"""The command line: its commands, their errors and exit codes."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer._click.exceptions import UsageError

from infra.errors import ClvrError
from infra.log_format import wants_json
from infra.logging import logger, without_secrets
from infra.tracing import command_span
from jobs.cli import (
    archive,
    cases,
    evaluation,
    generations,
    operations,
    reproduction,
    search,
    setup,
    training,
)
from jobs.cli.groups import HELP_FLAGS, ExampleCommand, ExampleGroup, did_you_mean
from jobs.cli.interrupts import INTERRUPTED, allow_interrupts, exit_on_interrupt
from jobs.cli.options import emit, flag_aliases, has_emitted, set_config_file
from jobs.cli.packages import missing_package
from jobs.cli.schemas import ERROR, ErrorDocument, ErrorFields
from jobs.cli.streams import prepare_streams, results


class ClvrGroup(ExampleGroup):
    """Print an error as one line and a remedy, and exit with its documented code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of `PANELS`; typer would put groups last."""
        return [name for name in COMMANDS if name in self.commands]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; only --debug shows a traceback."""
        try:
            with command_span(next((word for word in sys.argv[1:] if word in COMMANDS), "")):
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
            if isinstance(error, ModuleNotFoundError) and (
                missing := missing_package(error, ctx.invoked_subcommand)
            ):
                _fail(missing.with_traceback(error.__traceback__), debug=bool(ctx.params.get("debug")))
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
    _emit_error(type(error).__name__, error.message, error.remedy, error.exit_code)
    if wants_json():
        fields = {"error": type(error).__name__, "remedy": error.remedy, "exit_code": error.exit_code}
        logger.error(error.message, extra=fields)
    else:
        typer.echo(f"error: {without_secrets(error.message)}", err=True)
        if error.remedy:
            typer.echo(f"remedy: {without_secrets(error.remedy)}", err=True)
    raise SystemExit(error.exit_code)


def _emit_error(kind: str, message: str, remedy: str, exit_code: int) -> None:
    """With --json, print the error on stdout, unless a result is there already: it stays one document."""
    if "--json" not in sys.argv[1:] or has_emitted():
        return
    fields = ErrorFields(
        type=kind,
        message=without_secrets(message),
        remedy=without_secrets(remedy),
        exit_code=exit_code,
    )
    with suppress(ClvrError):  # of a full disk: the error itself is on stderr
        emit(ErrorDocument(fields), True, "", schema=ERROR)


app = typer.Typer(
    cls=ClvrGroup,
    help="Vehicle re-identification over a whole archive.\n\n`clvr COMMAND --help` shows an example of each "
    "command, `clvr exit-codes` the exit codes. Example: clvr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": HELP_FLAGS},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from index.documents import package_version

        typer.echo(f"clvr {package_version()}", file=results())
        raise typer.Exit


@app.callback()
def common(
    config: Annotated[Path | None, typer.Option(help="YAML settings file (default: clvr.yaml).")] = None,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Read the options before the command."""
    set_config_file(config)


PANELS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Prepare": {
        "demo": setup.demo,
        "doctor": setup.doctor,
        "config": setup.show_config,
        "stack": setup.stack_group,
        "generate": archive.generate,
        "pack": archive.pack,
    },
    "Train": {
        "train": training.train,
        "model": training.model_group,
    },
    "Embed and index": {
        "plan": archive.plan,
        "embed": archive.embed,
        "status": archive.status,
        "runs": archive.runs_group,
        "quarantine": archive.quarantine,
        "fit-transform": generations.fit_transform,
        "load": generations.load,
        "promote": generations.promote,
        "rollback": generations.rollback,
        "generations": generations.generations,
        "verify": generations.verify,
        "retire": generations.retire,
    },
    "Search": {
        "search": search.search,
        "sweep": search.sweep,
        "serve": search.serve,
        "case": cases.case_group,
        "audit": search.audit,
    },
    "Evaluate": {
        "evaluate": evaluation.evaluate,
        "compare-models": evaluation.compare_models,
        "calibrate": evaluation.calibrate,
        "drift": evaluation.drift,
        "reproduce": reproduction.reproduce,
    },
    "Operate": {
        "reindex": operations.reindex,
        "submit": operations.submit,
        "jobs": operations.jobs_group,
        "forget": generations.forget,
        "retain": generations.retain,
        "exit-codes": setup.exit_codes,
        "schema": setup.schema,
    },
}
"""The commands by the task that they serve, as --help shows them."""

COMMANDS = {name: command for panel in PANELS.values() for name, command in panel.items()}

for panel, commands in PANELS.items():
    for name, command in commands.items():
        settings = {
            "token_normalize_func": flag_aliases(name),
            # The words after the submitted command are its own, including its options.
            "allow_interspersed_args": name != "submit",
        }
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, cls=ExampleCommand, rich_help_panel=panel, context_settings=settings)(command)


def main() -> None:
    """Run the console script."""
    # gRPC logs a line for every fork of a process that has an open channel.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    prepare_streams(keep_stdout=_is_for_typer(sys.argv[1:]))
    allow_interrupts()
    try:
        result = typer.main.get_command(app).main(prog_name="clvr", standalone_mode=False)
    except ClvrError as error:  # from the output of --help
        _fail(error, debug=False)
    except UsageError as error:
        _show_usage_error(error)
        raise SystemExit(error.exit_code) from None
    except typer.Abort:
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(result if isinstance(result, int) else 0)


def _is_for_typer(arguments: Sequence[str]) -> bool:
    """Whether typer itself prints on stdout: help, or what a shell completes words with."""
    flags = {*HELP_FLAGS, "--show-completion", "--install-completion"}
    return not arguments or "_CLVR_COMPLETE" in os.environ or not flags.isdisjoint(arguments)


def _show_usage_error(error: UsageError) -> None:
    error.message = error.message.replace("Value error, ", "")
    wrong = re.search(r"'([^']*)' is not one of (.*)\.$", error.message)
    if wrong:
        error.message += did_you_mean(wrong[1], re.findall(r"'([^']*)'", wrong[2]))
    _emit_error("UsageError", error.format_message(), "see --help", error.exit_code)
    error.show()
