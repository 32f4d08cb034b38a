"""`flforensics trace`."""

from collections.abc import Mapping
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
from flforensics.cli.output import deliver, profile_lines, progress_bar, require_forms
from flforensics.provenance import METHODS

if TYPE_CHECKING:
    from flforensics.archive.declared import Archive
    from flforensics.cli.laboratory import Given
    from flforensics.provenance.case import Settings
    from flforensics.provenance.trace import Answers
    from flforensics.results import Method, Progress, Trace

_SPLITS = list(dict.fromkeys(split for row in METHODS.values() for split in row.by))
_METHOD_HELP = "; ".join(f"{name}: {row.help}" for name, row in METHODS.items())


@click.command("trace")
@input_options
@archive_option
@click.option("--round", "number", type=int, required=True, metavar="N", help="The round whose global is asked.")
@click.option(
    "--method", type=click.Choice(list(METHODS)), default="ledger", show_default=True, help=f"{_METHOD_HELP}."
)
@target_options
@path_options
@click.option(
    "--layer-decay", type=float, default=0.9, show_default=True, help="tracefl: weight of a layer over the next."
)
@click.option(
    "--scale-clients/--no-scale-clients",
    default=True,
    show_default=True,
    help="tracefl: multiply clients by their weight, as the paper does; the published code's default does not.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME=CLIENT,...",
    help="shapley: judge these clients as one; may be repeated.",
)
@click.option(
    "--max-permutations",
    type=click.IntRange(min=32),
    default=2000,
    show_default=True,
    help="shapley: stop sampling here.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="shapley: of the permutations; --confirm: of the controls.",
)
@click.option(
    "--confirm",
    is_flag=True,
    help="Grade the evidence for each input, A to D: by other methods, precisions and targets, by control"
    " inputs, and by the fusion without the client.",
)
@computing_options
@click.option("--profile", is_flag=True, help="Say on standard error where the time went.")
@click.option(
    "--tamper",
    is_flag=True,
    help="Search for a small edit of the files that overturns the ranking and still replays: an upper bound (the"
    " ledger always states the smallest).",
)
@click.option(
    "--by",
    type=click.Choice(_SPLITS),
    help="Where scores sit: in each layer of the network (ledger, tracefl), or, for the first client, in which"
    " neurons (ledger).",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show only the N best clients in the table; with --by neuron: the N neurons that carry most [default:"
    " 10].",
)
@report_options
def command(
    inputs: tuple[str, ...],
    archive_path: Path | None,
    number: int,
    texts: tuple[str, ...],
    labels: Path | None,
    chosen: str | None,
    against: str | None,
    device: str,
    top: int | None,
    factory: str | None,
    confirm: bool,
    memory: int,
    profile: bool,
    form: str | None,
    outputs: tuple[Path, ...],
    **options: Any,
) -> int:
    """Who is responsible for these predictions?

    INPUT is an image, text or tensor file, a folder of them, or a pattern.
    """
    from flforensics.archive import open_archive
    from flforensics.cli.laboratory import Given
    from flforensics.cli.replay import status
    from flforensics.provenance.case import Settings
    from flforensics.provenance.profile import OTHER, Profile

    require_forms(form, outputs)
    _require_players(options)
    _require_ledger(confirm, options["method"])
    archive = open_archive(archive_folder(archive_path))
    labels_known = archive.manifest.labels
    device = device_name(device)
    settings = Settings(
        chosen=class_index(chosen, labels_known),
        versus=opponent(against, labels_known),
        device=device,
        memory=on_device(memory, device),
        profile=Profile(measuring=profile),
        **options | ({"units": top} if top and options["by"] == "neuron" else {}),
    )
    _require_a_question(settings)
    with archive.hashing(), progress_bar() as progress, settings.profile.stage(OTHER):
        result = trace(
            archive,
            number,
            Given(inputs, texts, labels),
            settings=settings,
            confirm=confirm,
            factory=factory,
            progress=progress,
        )
    deliver(result, form=form, outputs=outputs, top=None if settings.by == "neuron" else top)
    if profile:
        click.echo(profile_lines(settings.profile), err=True)
    return status(result.replay)


def trace(
    archive: "Archive",
    number: int,
    given: "Given",
    *,
    settings: "Settings",
    confirm: bool = False,
    factory: str | None,
    progress: "Progress",
) -> "Trace":
    """The whole answer: the check, the replay of the round, the trace of every input and how strong it is."""
    from flforensics.cli.laboratory import doubts_of, groups_of, network_of, run_of, same_ranking
    from flforensics.cli.replay import history, replay_one
    from flforensics.fusion.specification import fusion_specification, rule_of
    from flforensics.provenance.confirm import Inquiry, confirmed
    from flforensics.provenance.profile import HASHING, REPLAY
    from flforensics.provenance.summary import summary
    from flforensics.provenance.trace import joined
    from flforensics.results import Trace

    round_, fusion = archive.round(number), fusion_specification(archive.manifest.fusion)
    groups = groups_of(archive, given)
    batches, positions = [group.questions for group in groups], [group.positions for group in groups]
    doubts = doubts_of(archive, factory=factory, progress=progress)
    with settings.profile.stage(REPLAY):
        replay = replay_one(archive, number, progress=progress)
    inquiry = Inquiry(
        round_,
        rule_of(fusion),
        network_of(archive, factory=factory),
        archive.manifest.labels,
        replay.verdict.replays,
        earlier=history(archive, number),
        progress=progress,
    )

    def answers(settings: "Settings") -> "Answers":
        return joined([inquiry.ask(questions, settings) for questions in batches], positions)

    found = answers(settings)
    require_another_class(settings, found.inputs)
    plain = replace(settings, by=None, tamper=False)
    same = same_ranking(found.inputs, answers(replace(plain, precise=False)).inputs) if settings.precise else None
    inputs = confirmed(inquiry, batches, positions, found.inputs, plain) if confirm else found.inputs
    with settings.profile.stage(HASHING):
        digest = archive.digest
    return Trace(
        run=run_of(settings, same),
        archive=relative(archive.root),
        digest=digest,
        round=number,
        labels=archive.manifest.labels,
        method=_method(settings, found),
        replay=replay,
        inputs=inputs,
        untraced=found.untraced,
        warnings=(*doubts, *found.warnings),
        summary=summary(inputs),
    )


def _require_players(options: Mapping[str, Any]) -> None:
    """Raises UsageError where groups are given to a method that knows none."""
    from flforensics.errors import UsageError

    if options["groups"] and "groups" not in METHODS[options["method"]].options:
        able = ", ".join(name for name, row in METHODS.items() if "groups" in row.options)
        raise UsageError(f"--method {options['method']} has no groups", hint=f"use --method {able}")


def _require_ledger(confirm: bool, method: str) -> None:
    """Raises UsageError where another method's answers are to be confirmed."""
    from flforensics.errors import UsageError

    if confirm and method != "ledger":
        raise UsageError(
            f"--confirm grades the ledger's answers, not those of --method {method}",
            hint="leave --method out; the other methods are run beside it",
        )


def _require_a_question(settings: "Settings") -> None:
    """Raises UsageError where the method cannot be split, or a margin over a class is not what is explained."""
    from flforensics.errors import UsageError

    method, row = settings.method, METHODS[settings.method]
    if settings.by is not None and settings.by not in row.by:
        able = ", ".join(name for name, other in METHODS.items() if settings.by in other.by)
        raise UsageError(f"--method {method} has no parts by {settings.by}", hint=f"use --method {able}")
    require_margin(settings, explains_logit="target" not in row.options)


def _method(settings: "Settings", found: "Answers") -> "Method":
    """The method with the parameters that its numbers depend on."""
    from flforensics.cli.laboratory import method_of

    exact = all(one.permutations is None for one in found.inputs) and "seed" in METHODS[settings.method].options
    return method_of(settings, idle=("tolerance", "max_permutations", "seed") if exact else ())
