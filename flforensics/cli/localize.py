"""`flforensics localize`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flforensics.cli.options import (
    archive_folder,
    archive_option,
    computing_options,
    device_name,
    input_options,
    on_device,
    relative,
    report_options,
)
from flforensics.cli.output import deliver, progress_bar, require_forms
from flforensics.errors import UsageError
from flforensics.provenance.localize import LOCALIZERS

if TYPE_CHECKING:
    from flforensics.archive.declared import Archive
    from flforensics.cli.laboratory import Given, Group
    from flforensics.provenance.case import Settings
    from flforensics.provenance.localize.localizing import Found, Materials
    from flforensics.results import Localization, Progress
    from flforensics.rounds import Round

ALL = "all"
_METHOD_HELP = "; ".join(f"{name}: {row.help}" for name, row in LOCALIZERS.items())


@dataclass(frozen=True)
class Asked:
    """What the operator wants of the localizers, in the words of the command line."""

    methods: tuple[str, ...] = ()
    wrong: bool = False
    random_inputs: int = 10
    threshold: float = 0.003


@click.command("localize")
@input_options
@archive_option
@click.option(
    "--round", "number", type=int, required=True, metavar="N", help="The round whose clients are compared."
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice([*LOCALIZERS, ALL]),
    help=f"May be repeated [default: those that the given inputs allow]. {_METHOD_HELP}.",
)
@click.option("--wrong", is_flag=True, help="Take inputs without a true class as mispredicted.")
@click.option(
    "--random-inputs",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="feddebug: how many random inputs.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=0.003,
    show_default=True,
    help="feddebug: a neuron is active above this.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs and of resampling.")
@computing_options
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show only the N most suspect in the tables.")
@report_options
def command(
    inputs: tuple[str, ...],
    archive_path: Path | None,
    number: int,
    texts: tuple[str, ...],
    labels: Path | None,
    methods: tuple[str, ...],
    wrong: bool,
    random_inputs: int,
    threshold: float,
    seed: int,
    precise: bool,
    memory: int,
    device: str,
    factory: str | None,
    top: int | None,
    form: str | None,
    outputs: tuple[Path, ...],
) -> int:
    """Which client of a round is faulty?

    Without inputs, clients are compared on random ones. INPUT is as for `trace`, with true classes from --labels
    or from folders: what the round's global gets wrong is looked into, and what it gets right is the control.
    """
    from flforensics.archive import open_archive
    from flforensics.cli.laboratory import Given
    from flforensics.cli.replay import status
    from flforensics.provenance.case import Settings

    require_forms(form, outputs)
    archive = open_archive(archive_folder(archive_path))
    device = device_name(device)
    settings = Settings(seed=seed, precise=precise, device=device, memory=on_device(memory, device))
    asked = Asked(methods, wrong, random_inputs, threshold)
    with archive.hashing(), progress_bar() as progress:
        result = localize(
            archive,
            number,
            Given(inputs, texts, labels),
            asked=asked,
            settings=settings,
            factory=factory,
            progress=progress,
        )
    deliver(result, form=form, outputs=outputs, top=top)
    return status(result.replay)


def localize(
    archive: "Archive",
    number: int,
    given: "Given",
    *,
    asked: Asked,
    settings: "Settings",
    factory: str | None,
    progress: "Progress",
) -> "Localization":
    """The whole answer: the check, the replay of the round, and every method's finding."""
    from flforensics.cli.laboratory import doubts_of, groups_of, network_of, run_of, shape_of_noise
    from flforensics.cli.replay import history, replay_one
    from flforensics.fusion.specification import fusion_specification, rule_of
    from flforensics.provenance.localize.localizing import localize_round
    from flforensics.results import Localization

    round_, fusion = archive.round(number), fusion_specification(archive.manifest.fusion)
    groups = groups_of(archive, given) if given.patterns or given.texts else []
    shape = shape_of_noise(archive, groups)
    methods = chosen_methods(asked.methods, inputs=bool(groups), noise=shape is not None)
    materials = _materials(archive, groups, shape, asked=asked, settings=settings)
    doubts = doubts_of(archive, factory=factory, progress=progress)
    replay = replay_one(archive, number, progress=progress)
    left_out: list[str] = []
    if any(LOCALIZERS[name].earlier for name in methods):
        before, left_out = earlier_rounds(archive, round_, progress=progress)
        materials = replace(materials, before=before)

    def findings(settings: "Settings") -> "Found":
        return localize_round(
            round_,
            rule_of(fusion),
            network_of(archive, factory=factory),
            materials,
            methods=methods,
            settings=settings,
            replays=replay.verdict.replays,
            earlier=history(archive, number),
            progress=progress,
        )

    found = findings(settings)
    same = _same_ranking(found, findings(replace(settings, precise=False))) if settings.precise else None
    return Localization(
        run=run_of(settings, same),
        archive=relative(archive.root),
        digest=archive.digest,
        round=number,
        replay=replay,
        findings=found.findings,
        silent=found.silent,
        warnings=(*doubts, *left_out, *found.warnings),
    )


def earlier_rounds(
    archive: "Archive", round_: "Round", *, progress: "Progress"
) -> "tuple[tuple[Round, ...], list[str]]":
    """The rounds that the clients of `round_` can be compared with, oldest first; which are left out, and why.

    For each client as many of its last rounds as departure compares; only rounds that replay, from a known model.
    """
    from flforensics.provenance.localize.departure import EARLIER

    missing = {client.client: EARLIER for client in round_.clients if client.model is not None}
    found: list[Round] = []
    left_out: list[str] = []
    for number in sorted((one for one in archive.fusions if one < round_.number), reverse=True):
        one, reason = _earlier_round(archive, number, missing, progress=progress)
        if reason:
            left_out.append(f"round {number} is left out of what clients usually send: {reason}")
        if one is not None:
            found.insert(0, one)
            for client in one.clients:
                if client.model is not None and missing.get(client.client, 0):
                    missing[client.client] -= 1
        if not any(missing.values()):
            break
    return tuple(found), left_out


def _earlier_round(
    archive: "Archive", number: int, missing: "Mapping[str, int]", *, progress: "Progress"
) -> "tuple[Round | None, str]":
    """A round with somebody whose earlier updates are still missing, or why it cannot be used."""
    from flforensics.cli.replay import replay_one
    from flforensics.errors import EvidenceError

    try:
        one = archive.round(number)
    except EvidenceError as error:
        return None, error.message
    if not any(missing.get(client.client) for client in one.clients if client.model is not None):
        return None, ""
    if one.previous is None and one.values == "full":
        return None, "it has no previous global, so that no update is known"
    if not replay_one(archive, number, progress=progress).verdict.replays:
        return None, "it does not replay"
    return one, ""


def _same_ranking(precise: "Found", plain: "Found") -> bool:
    """Whether every method ranks the clients in the same order in both."""
    orders = [[[one.client for one in method.suspects] for method in found.findings] for found in (precise, plain)]
    return orders[0] == orders[1]


def chosen_methods(given: Sequence[str], *, inputs: bool, noise: bool) -> list[str]:
    """The methods to run, in the table's order. Raises UsageError for one that lacks what it looks at."""
    lacks = {name: _lack(name, inputs=inputs, noise=noise) for name in LOCALIZERS}
    wanted = [name for name in LOCALIZERS if name in given or ALL in given]
    for name in wanted:
        if lacks[name]:
            raise UsageError(f"--method {name} {lacks[name]}", hint="README, 'Which client is faulty', says what")
    possible = wanted or [name for name in LOCALIZERS if not lacks[name]]
    if not possible:
        raise UsageError("there is nothing to look at", hint="give inputs that the global gets wrong")
    return possible


def _lack(name: str, *, inputs: bool, noise: bool) -> str:
    """What is missing for a method, or nothing."""
    row = LOCALIZERS[name]
    if row.mispredictions and not inputs:
        return "needs inputs that the global gets wrong"
    return "makes inputs of random numbers, and the shape of none is known here" if row.noise and not noise else ""


def _materials(
    archive: "Archive",
    groups: "Sequence[Group]",
    shape: tuple[int, ...] | None,
    *,
    asked: Asked,
    settings: "Settings",
) -> "Materials":
    """The given inputs with their classes, and the random ones."""
    from flforensics.cli.laboratory import input_table
    from flforensics.gradients import Call
    from flforensics.inputs import kaiming_noise, uniform_noise
    from flforensics.provenance.localize.influence import NOISE_INPUTS
    from flforensics.provenance.localize.localizing import Materials

    probes: Call | None = None
    noise: Call | None = None
    if shape is not None:
        table = input_table(archive)
        probes = Call((kaiming_noise(table, shape, count=asked.random_inputs, seed=settings.seed),))
        noise = Call((uniform_noise(table, shape, count=NOISE_INPUTS, seed=settings.seed),))
    return Materials(
        probes,
        noise,
        tuple(group.questions.call for group in groups),
        tuple(_true_classes(group, wrong=asked.wrong) for group in groups),
        asked.threshold,
    )


def _true_classes(group: "Group", *, wrong: bool) -> "tuple[int, ...]":
    """The true classes, −1 where not known. Raises UsageError if that is not meant."""
    subjects = group.questions.subjects
    unknown = [subject.source for subject in subjects if subject.true is None]
    if unknown and not wrong:
        raise UsageError(
            f"{unknown[0]} has no true class ({len(unknown)} of {len(subjects)} inputs)",
            hint="give --labels, or --wrong if each of them was predicted wrongly",
        )
    return tuple(-1 if subject.true is None else subject.true for subject in subjects)
