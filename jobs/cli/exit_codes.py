"""The exit codes: `clvr exit-codes` and the table in README.md."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExitCode:
    """What an exit code means, and what to do."""

    meaning: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ListedExitCode:
    """One row of the table. code: one number, or several with commas between them."""

    code: str
    meaning: str
    remedy: str


EXIT_CODES: dict[str, ExitCode] = {
    "0": ExitCode("done"),
    "1": ExitCode(
        "unexpected error, or a failed check of `doctor` or `stack status`",
        "run `clvr --debug …` and report it",
    ),
    "2": ExitCode("wrong usage", "`--help`"),
    "3": ExitCode(
        "an input, such as a file, a run or a checkpoint, is missing, empty or unreadable",
        "the message names it",
    ),
    "4": ExitCode(
        "object storage or the database of cases is unreachable, refuses access or is full",
        "nothing is lost: run the command again",
    ),
    "5": ExitCode(
        "Milvus is unreachable or refuses the request",
        "the live generation is unchanged: run the command again",
    ),
    "6": ExitCode("parts that do not belong together, such as two fingerprints", "the message names both"),
    "7": ExitCode("counts that differ, or an altered object", "rebuild the object that the message names"),
    "8": ExitCode("the gate failed", "the live generation stays; the message lists the failures"),
    "9": ExitCode(
        "more unreadable images than allowed",
        "check the causes, then continue with a higher limit",
    ),
    "10": ExitCode("locked: another process does the same work", "wait; the message names the owner"),
    "11": ExitCode(
        "the training loss is not a number",
        "the last good checkpoint is kept; change the recipe",
    ),
    "12": ExitCode(
        "the Ray cluster is unreachable, refuses the token or does not know the job",
        "`clvr doctor`",
    ),
    "130, 137, 143": ExitCode("interrupted, killed, terminated", "run the command again: it continues"),
    "141": ExitCode("the reader of stdout closed it, such as `| head`"),
}
"""By code; README.md has the same rows. The classes of `infra.errors` have the codes 1 and 3 to 12."""
