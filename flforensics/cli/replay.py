"""`flforensics replay`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flforensics.cli.options import archive_folder, archive_option, jobs_option, relative, report_options
from flforensics.cli.output import deliver, progress_bar, require_forms
from flforensics.fusion import FUSIONS
from flforensics.scheduling import HERE, Scheduler

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
@jobs_option
@report_options
def command(
    archive_path: Path | None,
    number: int | None,
    rule: str,
    recovering: bool | None,
    jobs: int,
    form: str | None,
    outputs: tuple[Path, ...],
) -> int:
    """Is each global the fusion of its clients?

    Runs the declared rule again on the stored clients and compares with the stored global, by a proven bound on
    rounding errors.
    """
    from flforensics.archive import open_archive
    from flforensics.cli.dividing import divided

    require_forms(form, outputs)
    archive = open_archive(archive_folder(archive_path))
    with archive.hashing(), divided(jobs) as scheduler, progress_bar() as progress:
        result = replay(archive, number, rule=rule, recovering=recovering, scheduler=scheduler, progress=progress)
    deliver(result, form=form, outputs=outputs)
    return worst(status(one) for one in result.rounds)


def replay(
    archive: "Archive",
    number: int | None,
    *,
    rule: str = DECLARED,
    recovering: bool | None = None,
    scheduler: Scheduler = HERE,
    progress: "Progress",
) -> "Replay":
    """Every round, or one; each is a task of its own."""
    from flforensics.cli.dividing import answers
    from flforensics.results import Replay

    numbers = archive.fusions if number is None else (number,)
    work = ReplayWork(archive, rule, recovering)
    rounds = tuple(answers(scheduler, archive, work, numbers, progress))
    return Replay(relative(archive.root), archive.digest, rounds)


@dataclass(frozen=True)
class ReplayWork:
    """The replay of a round, whose number is the task."""

    archive: "Archive"
    rule: str
    recovering: bool | None

    def __call__(self, number: int, progress: "Progress") -> "RoundReplay":
        """As `replay_one`."""
        return replay_one(self.archive, number, rule=self.rule, recovering=self.recovering, progress=progress)


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
