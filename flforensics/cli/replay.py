"""`flforensics replay`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flforensics.cli.options import archive_folder, archive_option, relative, report_options
from flforensics.cli.output import deliver, progress_bar, require_forms
from flforensics.fusion import FUSIONS

if TYPE_CHECKING:
    from flforensics.archive.declared import Archive
    from flforensics.results import Progress, Replay, RoundReplay
    from flforensics.rounds import Round


DECLARED, AUTO = "declared", "auto"


@click.command("replay")
@archive_option
@click.option("--round", "number", type=int, metavar="N", help="Only this round [default: every round].")
@click.option(
    "--rule",
    type=click.Choice([DECLARED, AUTO, *FUSIONS]),
    default=DECLARED,
    show_default=True,
    help=f"{AUTO}: name every known rule that reproduces the round; or the name of one rule, with its defaults.",
)
@click.option(
    "--recover/--no-recover",
    "recovering",
    default=None,
    help="Recover the weights that the server really used, and describe what is not explained"
    " [default: for rounds that do not replay].",
)
@report_options
def command(
    archive_path: Path | None,
    number: int | None,
    rule: str,
    recovering: bool | None,
    form: str | None,
    outputs: tuple[Path, ...],
) -> int:
    """Is each global the fusion of its clients?

    Runs the declared rule again on the stored clients and compares with the stored global, by a proven bound on
    rounding errors.
    """
    from flforensics.archive import open_archive

    require_forms(form, outputs)
    archive = open_archive(archive_folder(archive_path))
    with archive.hashing(), progress_bar() as progress:
        result = replay(archive, number, rule=rule, recovering=recovering, progress=progress)
    deliver(result, form=form, outputs=outputs)
    return worst(status(one) for one in result.rounds)


def replay(
    archive: "Archive",
    number: int | None,
    *,
    rule: str = DECLARED,
    recovering: bool | None = None,
    progress: "Progress",
) -> "Replay":
    """Every round, or one."""
    from flforensics.results import Replay

    numbers = archive.fusions if number is None else (number,)
    rounds = tuple(
        replay_one(archive, one, rule=rule, recovering=recovering, progress=progress) for one in numbers
    )
    return Replay(relative(archive.root), archive.digest, rounds)


def replay_one(
    archive: "Archive",
    number: int,
    *,
    rule: str = DECLARED,
    recovering: bool | None = False,
    progress: "Progress",
) -> "RoundReplay":
    """One round; a file that is missing or rejected gives `indeterminate` with the reason."""
    from flforensics.errors import EvidenceError
    from flforensics.fusion.specification import fusion_specification
    from flforensics.replay import examine_round, undecided

    table = archive.manifest.fusion if rule in (DECLARED, AUTO) else {"rule": rule}
    fusion = fusion_specification(table)
    try:
        round_ = archive.round(number)
        earlier = history(archive, number, every_rule=rule == AUTO)
    except EvidenceError as error:
        return undecided(number, fusion.rule, str(error))
    return examine_round(
        round_, fusion, earlier=earlier, every_rule=rule == AUTO, recovering=recovering, progress=progress
    )


def history(archive: "Archive", number: int, *, every_rule: bool = False) -> "list[Round]":
    """The rounds before `number`, oldest first, if the archive's rule (or any) keeps state between rounds."""
    from flforensics.fusion.specification import fusion_specification, rule_of

    if not every_rule and not rule_of(fusion_specification(archive.manifest.fusion)).needs_history:
        return []
    return [archive.round(one) for one in archive.fusions if one < number]


def status(one: "RoundReplay") -> int:
    """1 for an inconsistent round or a client with non-finite numbers, 3 for no decision, else 0."""
    from flforensics.cli import FINDING, UNDECIDED, WELL
    from flforensics.results import Verdict

    if one.verdict is Verdict.INCONSISTENT or any(problem.finding for problem in one.problems):
        return FINDING
    return WELL if one.verdict.replays else UNDECIDED


def worst(codes: Iterable[int]) -> int:
    """A finding weighs more than a missing decision; nothing to replay is no decision either."""
    from flforensics.cli import FINDING, UNDECIDED, WELL

    return max(codes, key=(WELL, UNDECIDED, FINDING).index, default=UNDECIDED)
