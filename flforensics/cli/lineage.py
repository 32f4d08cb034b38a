"""`flforensics lineage`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flforensics.cli.against import opponent, require_another_class, require_margin
from flforensics.cli.options import (
    archive_folder,
    archive_option,
    class_index,
    computing_options,
    device_name,
    input_options,
    jobs_option,
    on_device,
    path_options,
    relative,
    report_options,
    target_options,
)
from flforensics.cli.output import deliver, progress_bar, require_forms
from flforensics.errors import EvidenceError, UsageError
from flforensics.rounds import spans
from flforensics.scheduling import HERE, Scheduler

if TYPE_CHECKING:
    from flforensics.archive.declared import Archive
    from flforensics.cli.laboratory import Given
    from flforensics.provenance.case import Settings
    from flforensics.provenance.lineage import LineageAnswers
    from flforensics.results import Lineage, Method, Progress, RoundReplay


@click.command("lineage")
@input_options
@archive_option
@click.option(
    "--round", "last", type=int, metavar="N", help="The round whose global is asked [default: the last one]."
)
@click.option(
    "--from", "first", type=int, metavar="N", help="Begin with the global of round N [default: the first one]."
)
@target_options
@path_options
@computing_options
@jobs_option
@click.option(
    "--departures",
    is_flag=True,
    help="Also compare every update with those that its client sent before: what departs, and what is suspect.",
)
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show only the N best clients in the table.")
@report_options
def command(
    inputs: tuple[str, ...],
    archive_path: Path | None,
    first: int | None,
    last: int | None,
    texts: tuple[str, ...],
    labels: Path | None,
    chosen: str | None,
    against: str | None,
    device: str,
    memory: int,
    jobs: int,
    departures: bool,
    top: int | None,
    factory: str | None,
    form: str | None,
    outputs: tuple[Path, ...],
    **options: Any,
) -> int:
    """Who is responsible, over all stored rounds?

    Adds up what every round did to these predictions, from the initial model to the last global, so that a client
    is found that was absent from the last round. INPUT is an image, text or tensor file, a folder of them, or a
    pattern.
    """
    from flforensics.archive import open_archive
    from flforensics.cli import UNDECIDED
    from flforensics.cli.dividing import divided
    from flforensics.cli.laboratory import Given
    from flforensics.cli.replay import status, worst
    from flforensics.provenance.case import Settings

    require_forms(form, outputs)
    archive = open_archive(archive_folder(archive_path))
    names, device = archive.manifest.labels, device_name(device)
    settings = Settings(
        chosen=class_index(chosen, names),
        versus=opponent(against, names),
        device=device,
        memory=on_device(memory, device) // jobs,
        **options,
    )
    require_margin(settings)
    given = Given(inputs, texts, labels)
    with archive.hashing(), divided(jobs) as scheduler, progress_bar() as progress:
        result = lineage(
            archive,
            first,
            last,
            given,
            comparing=departures,
            settings=settings,
            factory=factory,
            scheduler=scheduler,
            progress=progress,
        )
    deliver(result, form=form, outputs=outputs, top=top)
    gaps = [UNDECIDED for one in result.inputs if one.gaps]
    return worst([*map(status, result.replays), *gaps])


def lineage(
    archive: "Archive",
    first: int | None,
    last: int | None,
    given: "Given",
    *,
    comparing: bool = False,
    settings: "Settings",
    factory: str | None,
    scheduler: Scheduler = HERE,
    progress: "Progress",
) -> "Lineage":
    """The whole answer: the check, the replay of every round, and the lineage of every input."""
    from flforensics.cli.dividing import answers
    from flforensics.cli.laboratory import Laboratory, doubts_of, groups_of, method_of, run_of, same_ranking
    from flforensics.cli.links import LineageWork, round_tasks, stored_step
    from flforensics.provenance.lineage import joined
    from flforensics.provenance.links import ask
    from flforensics.results import Lineage

    numbers = _numbers(archive, first, last)
    groups, laboratory = groups_of(archive, given), Laboratory(archive, factory)
    doubts = doubts_of(archive, factory=factory, progress=progress)
    batches, labels = [group.questions for group in groups], archive.manifest.labels
    tasks = round_tasks(numbers, begins=first is not None or numbers[0] not in archive.fusions)
    replays: dict[int, RoundReplay] = {}

    def found(settings: "Settings") -> "LineageAnswers":
        asked = ask(
            stored_step(archive, numbers[-1]), laboratory.network, batches, settings=settings, labels=labels
        )
        work, linked = LineageWork(laboratory, asked, replaying=not replays, comparing=comparing), []
        for one in answers(scheduler, archive, work, tasks, progress):
            linked.append(one.linked)
            if one.replay is not None:
                replays[one.replay.round] = one.replay
            settings.profile.passes += one.linked.passes
            progress("rounds", len(linked), len(tasks))
        verdicts = {number: one.verdict for number, one in replays.items()}
        return joined(asked, batches, linked, verdicts)

    result = found(settings)
    require_another_class(settings, result.inputs)
    same = (
        same_ranking(result.inputs, found(replace(settings, precise=False)).inputs) if settings.precise else None
    )
    positions = [position for group in groups for position in group.positions]
    inputs = dict(zip(positions, result.inputs, strict=True))
    return Lineage(
        run=run_of(settings, same),
        archive=relative(archive.root),
        digest=archive.digest,
        round=numbers[-1],
        labels=labels,
        method=_compared(method_of(settings)) if comparing else method_of(settings),
        replays=tuple(replays.values()),
        inputs=tuple(inputs[position] for position in sorted(inputs)),
        untraced=result.untraced,
        warnings=(*doubts, *_unfinished(archive, numbers[-1], asked=last), *result.warnings),
    )


def _numbers(archive: "Archive", first: int | None, last: int | None) -> tuple[int, ...]:
    """The rounds of which anything is stored, from the first to the last that are asked for."""
    if not archive.globals:
        raise EvidenceError(
            "the archive holds no global",
            reason="MISSING",
            file="archive.toml",
            hint="correct `global` in [layout]",
        )
    for name, number in (("--from", first), ("--round", last)):
        if number is not None and number not in archive.globals:
            raise UsageError(
                f"{name} {number}: the archive holds no global of that round",
                hint=f"it holds those of {spans(archive.globals)}",
            )
    end = archive.globals[-1] if last is None else last
    if first is not None and first >= end:
        raise UsageError(f"--from {first} is not before round {end}", hint="give an earlier round to begin with")
    known = sorted({*archive.globals, *archive.fusions})
    return tuple(number for number in known if (first is None or first <= number) and number <= end)


def _compared(method: "Method") -> "Method":
    """The method, with the number of earlier rounds that an update is compared with."""
    from flforensics.provenance.localize.departure import EARLIER

    return replace(method, parameters=(*method.parameters, ("earlier_rounds", EARLIER)))


def _unfinished(archive: "Archive", number: int, *, asked: int | None) -> list[str]:
    """A warning of later rounds that have clients and no global."""
    later = [one for one in archive.fusions if one > number]
    if asked is not None or not later:
        return []
    return [f"no global is stored of {spans(later)}: the lineage ends with round {number}"]
