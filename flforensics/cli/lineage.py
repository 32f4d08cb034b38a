"""`flforensics lineage`."""

from collections.abc import Iterator, Mapping, Sequence
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
    on_device,
    path_options,
    relative,
    report_options,
    target_options,
)
from flforensics.cli.output import deliver, progress_bar, require_forms
from flforensics.errors import EvidenceError, UsageError
from flforensics.rounds import spans

if TYPE_CHECKING:
    from flforensics.archive.declared import Archive
    from flforensics.cli.laboratory import Given
    from flforensics.fusion.rule import Rule
    from flforensics.fusion.specification import FusionSpecification
    from flforensics.provenance.case import Settings
    from flforensics.provenance.lineage import LineageAnswers, Step
    from flforensics.results import Lineage, Progress, RoundReplay
    from flforensics.rounds import Round

Opened = Mapping[int, "Round | EvidenceError"]
"""The rounds that have clients or weights, or why they cannot be opened."""


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
        memory=on_device(memory, device),
        **options,
    )
    require_margin(settings)
    given = Given(inputs, texts, labels)
    with archive.hashing(), progress_bar() as progress:
        result = lineage(archive, first, last, given, settings=settings, factory=factory, progress=progress)
    deliver(result, form=form, outputs=outputs, top=top)
    gaps = [UNDECIDED for one in result.inputs if one.gaps]
    return worst([*map(status, result.replays), *gaps])


def lineage(
    archive: "Archive",
    first: int | None,
    last: int | None,
    given: "Given",
    *,
    settings: "Settings",
    factory: str | None,
    progress: "Progress",
) -> "Lineage":
    """The whole answer: the check, the replay of every round, and the lineage of every input."""
    from flforensics.cli.laboratory import doubts_of, groups_of, method_of, network_of, run_of, same_ranking
    from flforensics.fusion.specification import fusion_specification, rule_of
    from flforensics.provenance.lineage import trace_lineage
    from flforensics.results import Lineage

    fusion = fusion_specification(archive.manifest.fusion)
    numbers = _numbers(archive, first, last)
    groups, network = groups_of(archive, given), network_of(archive, factory=factory)
    doubts = doubts_of(archive, factory=factory, progress=progress)
    opened = {number: _opened(archive, number) for number in _needed(archive, numbers, rule_of(fusion))}
    replays = [_replay(number, opened, fusion, progress) for number in numbers if number in opened]
    steps = list(_steps(archive, numbers, opened, fusion, given_start=first is not None))

    def answers(settings: "Settings") -> "LineageAnswers":
        return trace_lineage(
            steps,
            rule_of(fusion),
            network,
            [group.questions for group in groups],
            settings=settings,
            labels=archive.manifest.labels,
            verdicts={one.round: one.verdict for one in replays},
            progress=progress,
        )

    found = answers(settings)
    require_another_class(settings, found.inputs)
    same = (
        same_ranking(found.inputs, answers(replace(settings, precise=False)).inputs) if settings.precise else None
    )
    positions = [position for group in groups for position in group.positions]
    inputs = dict(zip(positions, found.inputs, strict=True))
    return Lineage(
        run=run_of(settings, same),
        archive=relative(archive.root),
        digest=archive.digest,
        round=numbers[-1],
        labels=archive.manifest.labels,
        method=method_of(settings),
        replays=tuple(replays),
        inputs=tuple(inputs[position] for position in sorted(inputs)),
        untraced=found.untraced,
        warnings=(*doubts, *_unfinished(archive, numbers[-1], asked=last), *found.warnings),
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


def _needed(archive: "Archive", numbers: Sequence[int], rule: "Rule") -> Iterator[int]:
    """The rounds with clients on the way; for rules with server state, those before it too."""
    for number in archive.fusions:
        if number in numbers or (rule.needs_history and number < numbers[-1]):
            yield number


def _opened(archive: "Archive", number: int) -> "Round | EvidenceError":
    try:
        return archive.round(number)
    except EvidenceError as error:
        return error


def _history(opened: Opened, number: int, fusion: "FusionSpecification") -> "tuple[Round, ...]":
    """The rounds before `number` that can be opened, oldest first, if the rule's server keeps state."""
    from flforensics.fusion.specification import rule_of

    if not rule_of(fusion).needs_history:
        return ()
    return tuple(one for key, one in opened.items() if key < number and not isinstance(one, EvidenceError))


def _replay(number: int, opened: Opened, fusion: "FusionSpecification", progress: "Progress") -> "RoundReplay":
    """One round's verdict; a file that is missing or rejected gives `indeterminate` with the reason."""
    from flforensics.replay import examine_round, undecided

    one = opened[number]
    if isinstance(one, EvidenceError):
        return undecided(number, fusion.rule, str(one))
    earlier = _history(opened, number, fusion)
    return examine_round(one, fusion, earlier=earlier, recovering=False, progress=progress)


def _steps(
    archive: "Archive",
    numbers: Sequence[int],
    opened: Opened,
    fusion: "FusionSpecification",
    *,
    given_start: bool,
) -> "Iterator[Step]":
    """The rounds as steps of a lineage; what the archive does not hold at all is a step without anything."""
    from flforensics.provenance.lineage import Step

    for place, number in enumerate(numbers):
        absent = range(numbers[place - 1] + 1, number) if place else range(0)
        if absent:
            yield Step(absent[-1], None, reason=f"the archive holds nothing of {spans(absent)}")
        step = _step(archive, number, opened, _history(opened, number, fusion))
        beginning = place == 0 and (given_start or number not in opened)
        yield replace(step, round=None, reason="" if step.fused else step.reason) if beginning else step


def _step(archive: "Archive", number: int, opened: Opened, earlier: "tuple[Round, ...]") -> "Step":
    from flforensics.provenance.lineage import Step

    one = opened.get(number) or EvidenceError(f"the archive holds no clients of round {number}", reason="CLIENTS")
    if not isinstance(one, EvidenceError):
        return Step(number, one.fused, one, earlier)
    try:
        return Step(number, archive.stored_global(number), reason=one.message)
    except EvidenceError as error:
        return Step(number, None, reason=error.message)


def _unfinished(archive: "Archive", number: int, *, asked: int | None) -> list[str]:
    """A warning of later rounds that have clients and no global."""
    later = [one for one in archive.fusions if one > number]
    if asked is not None or not later:
        return []
    return [f"no global is stored of {spans(later)}: the lineage ends with round {number}"]
