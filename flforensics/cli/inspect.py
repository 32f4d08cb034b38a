"""`flforensics inspect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flforensics.cli.options import archive_folder, archive_option, jobs_option, relative, report_options
from flforensics.cli.output import deliver, progress_bar, require_forms
from flforensics.scheduling import HERE, Scheduler

if TYPE_CHECKING:
    from flforensics.archive.declared import Archive
    from flforensics.replay.anomalies import Mark
    from flforensics.results import CheckOutcome, Inspection, Problem, Progress, RoundContents


@click.command("inspect")
@archive_option
@click.option("--factory", metavar="MODULE:FUNCTION", help='For `source = "python"`: what builds the network.')
@jobs_option
@report_options
def command(
    archive_path: Path | None, factory: str | None, jobs: int, form: str | None, outputs: tuple[Path, ...]
) -> int:
    """What is in this archive, and what is wrong with it.

    Reads every tensor of every round, looks for numbers that are not finite and for what would be odd in an
    honest run, and runs the archive's [check].
    """
    from flforensics.archive import open_archive
    from flforensics.cli.dividing import divided

    require_forms(form, outputs)
    archive = open_archive(archive_folder(archive_path))
    with archive.hashing(), divided(jobs) as scheduler, progress_bar() as progress:
        result = inspection(archive, factory=factory, scheduler=scheduler, progress=progress)
    deliver(result, form=form, outputs=outputs)
    return status(result.problems)


def status(problems: "tuple[Problem, ...]") -> int:
    """1 for a finding, 3 for evidence that is missing or rejected, else 0."""
    from flforensics.cli import FINDING, UNDECIDED, WELL

    if any(problem.finding for problem in problems):
        return FINDING
    return UNDECIDED if problems else WELL


def inspection(
    archive: "Archive", *, factory: str | None, scheduler: Scheduler = HERE, progress: "Progress"
) -> "Inspection":
    """Everything that the archive holds, read once; each round is a task of its own."""
    from flforensics.cli.dividing import answers
    from flforensics.fusion.specification import fusion_specification, rule_of
    from flforensics.replay.anomalies import anomalies, swap_power
    from flforensics.results import Inspection

    manifest = archive.manifest
    fusion = fusion_specification(manifest.fusion)
    found: list[_Found] = []
    work = _InspectWork(archive, weighted=rule_of(fusion).needs_weights)
    for one in answers(scheduler, archive, work, archive.fusions, progress):
        found.append(one)
        progress("rounds", len(found), len(archive.fusions))
    check, failed = _check(archive, factory=factory)
    marks = [mark for one in found for mark in one.marks]
    return Inspection(
        archive=relative(archive.root),
        model=_described(manifest.model, "source", "name"),
        input=_described(manifest.input, "kind", "mode", "size"),
        labels=manifest.labels,
        rule=fusion.rule,
        weights_kind=manifest.layout.weights_kind,
        rounds=tuple(contents for one in found for contents in one.contents),
        check=check,
        problems=tuple(dict.fromkeys((*(problem for one in found for problem in one.problems), *failed))),
        digest=archive.digest,
        anomalies=anomalies(marks),
        swap_power=swap_power(marks),
    )


@dataclass(frozen=True)
class _Found:
    """What one round holds, what is wrong with it, and the marks of its clients."""

    contents: "tuple[RoundContents, ...]"
    problems: "tuple[Problem, ...]"
    marks: "tuple[Mark, ...]"


@dataclass(frozen=True)
class _InspectWork:
    """What one round holds; its number is the task. `weighted` says that the rule cannot do without weights."""

    archive: "Archive"
    weighted: bool

    def __call__(self, number: int, _progress: "Progress") -> _Found:
        """Everything of the round, read once; a file that is rejected is the round's only problem."""
        from flforensics.archive.contents import contents, gaps, misfits, rejected
        from flforensics.errors import EvidenceError
        from flforensics.replay import non_finite
        from flforensics.replay.anomalies import marks_of, movement_of

        archive = self.archive
        try:
            round_ = archive.round(number)
            held, unfit = contents(archive, round_), misfits(round_)
            problems = (*gaps(round_, weighted=self.weighted), *unfit, *non_finite(round_))
            if unfit or any(problem.finding for problem in problems):
                return _Found((held,), problems, ())
            movement = movement_of(archive.round(number - 1)) if number - 1 in archive.fusions else None
            return _Found((held,), problems, tuple(marks_of(round_, movement=movement)))
        except EvidenceError as error:
            return _Found((), (rejected(error),), ())


def _check(archive: "Archive", *, factory: str | None) -> "tuple[CheckOutcome | None, list[Problem]]":
    from flforensics.archive.contents import rejected
    from flforensics.cli.laboratory import failed_check, run_check
    from flforensics.errors import EvidenceError

    try:
        check = run_check(archive, factory=factory)
    except EvidenceError as error:
        return None, [rejected(error)]
    return check, [] if check is None or check.passed else [rejected(failed_check(check))]


def _described(table: object, *keys: str) -> str:
    if not isinstance(table, dict):
        return "(not described)"
    return " ".join(str(table[key]) for key in keys if key in table)
