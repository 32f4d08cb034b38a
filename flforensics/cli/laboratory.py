"""What several commands need besides a round: the network, the inputs as a batch, the check, the run itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from flforensics.archive.declared import Archive
from flforensics.cli.options import relative
from flforensics.cli.replay import replay_one
from flforensics.errors import EvidenceError, UsageError
from flforensics.evidence import EvidenceFile, open_evidence
from flforensics.formats import open_checkpoint
from flforensics.gradients import Call
from flforensics.inputs import (
    Sample,
    alike,
    collate,
    expand,
    label_of_folder,
    noise_shape,
    read_labels,
    read_samples,
    text_samples,
    with_labels,
)
from flforensics.models import build_network
from flforensics.provenance import METHODS
from flforensics.provenance.case import Settings
from flforensics.provenance.check import logits_difference
from flforensics.provenance.trace import Questions
from flforensics.results import CheckOutcome, InputLineage, InputTrace, Method, Progress, Run, Subject
from flforensics.scheduling import Sendable


@dataclass(frozen=True)
class Given:
    """The inputs as the operator gave them."""

    patterns: tuple[str, ...]
    texts: tuple[str, ...] = ()
    labels: Path | None = None


def network_of(archive: Archive, *, factory: str | None) -> nn.Module:
    """The network that the manifest describes. Raises UsageError if it describes none."""
    table = archive.manifest.model
    if table is None:
        raise UsageError(
            "archive.toml has no [model]", hint="README, 'Describe your archive', shows how to state it"
        )
    labels = len(archive.manifest.labels) or None
    return build_network(table, labels=labels, folder=archive.resource, factory=factory, drawn=False)


@dataclass(frozen=True)
class Laboratory(Sendable):
    """An archive and its network, which is built where it is used first."""

    archive: Archive
    factory: str | None

    @cached_property
    def network(self) -> nn.Module:
        """As `network_of`."""
        return network_of(self.archive, factory=self.factory)


@dataclass(frozen=True)
class Group:
    """Inputs of one shape, and their positions among all inputs."""

    positions: tuple[int, ...]
    questions: Questions


def groups_of(archive: Archive, given: Given) -> list[Group]:
    """The inputs in batches of one shape, each with its name, digest and true class where one is known."""
    samples = _samples(archive, given)
    if not samples:
        raise UsageError("there is nothing to trace", hint="give input files, folders, patterns or --text")
    return [Group(tuple(rows), _questions([samples[row] for row in rows])) for rows in alike(samples)]


def shape_of_noise(archive: Archive, groups: Sequence[Group]) -> tuple[int, ...] | None:
    """The shape of one input of random numbers: of the first one given, or of the [check]'s, or as [input] says.

    None where nothing says it, and for token ids.
    """
    check = archive.manifest.check
    if groups:
        call = groups[0].questions.call
    elif check is not None:
        call = _questions(_read(archive, [archive.resource(check.input)])).call
    else:
        return noise_shape(input_table(archive))
    return tuple(call.arguments[0].shape[1:]) if call.arguments else None


def run_check(archive: Archive, *, factory: str | None) -> CheckOutcome | None:
    """The outcome of the archive's [check], or None if it has none.

    Raises EvidenceError if the check cannot be run.
    """
    check = archive.manifest.check
    if check is None:
        return None
    if not archive.globals:
        raise EvidenceError(
            "the archive holds no global to check",
            reason="MISSING",
            file="archive.toml",
            hint="correct `global` in [layout]",
        )
    number = archive.globals[-1] if check.round is None else check.round
    samples = _read(archive, [archive.resource(check.input)])
    difference = logits_difference(
        network_of(archive, factory=factory),
        archive.stored_global(number),
        _questions(samples[:1]).call,
        expected=check.logits,
        settings=Settings(),
    )
    allowed = check.tolerance * max(1.0, *map(abs, check.logits))
    return CheckOutcome(number, check.input, difference, allowed, difference <= allowed)


def failed_check(check: CheckOutcome) -> EvidenceError:
    """The error (CHECK) for a check that failed: every answer would be about another model."""
    return EvidenceError(
        f"the archive's [check] failed: the logits of {check.input} under the global of round {check.round} differ"
        f" by {check.difference:.2g} from those stored",
        reason="CHECK",
        file=check.input,
        hint="correct [model] or [input] in archive.toml, or the check itself",
    )


def doubts_of(archive: Archive, *, factory: str | None, progress: Progress) -> tuple[str, ...]:
    """Run the archive's check, so that a wrong preprocessing cannot pass silently.

    A check that fails under a global that replays is an error. Where that global does not replay, the check may
    have failed because of it, and the answer goes on with a warning.
    """
    check = run_check(archive, factory=factory)
    if check is None or check.passed:
        return ()
    error = failed_check(check)
    if check.round not in archive.fusions or replay_one(archive, check.round, progress=progress).verdict.replays:
        raise error
    return (f"{error.message}, and that global does not replay",)


def method_of(settings: Settings, *, idle: Sequence[str] = ()) -> Method:
    """The method with the parameters that its numbers depend on; `idle` ones did not matter this time."""
    shown = {name: getattr(settings, name) for name in METHODS[settings.method].options}
    unused = {*idle, *(("tolerance", "max_nodes") if settings.nodes is not None else ())}
    shown |= {} if settings.versus is None else {"against": settings.versus}
    parameters = ((name, value) for name, value in shown.items() if value not in (None, ()) and name not in unused)
    return Method(settings.method, tuple(parameters))


def same_ranking(precise: Sequence[InputTrace | InputLineage], plain: Sequence[InputTrace | InputLineage]) -> bool:
    """Whether every input has its clients in the same order in both."""
    orders = [[[client.client for client in one.clients] for one in inputs] for inputs in (precise, plain)]
    return orders[0] == orders[1]


def run_of(settings: Settings, same: bool | None) -> Run:
    """Where and how the numbers were computed; `same` says whether float32 ranks alike, where that was asked."""
    dtype = str(settings.dtype).removeprefix("torch.")
    versions, passes = (("torch", torch.__version__),), settings.profile.passes or None
    return Run(settings.device, dtype, torch.get_num_threads(), versions, same, passes)


def _samples(archive: Archive, given: Given) -> list[Sample]:
    table, names = input_table(archive), archive.manifest.labels
    texts = text_samples(table, given.texts, resource=archive.resource) if given.texts else []
    paths = expand(given.patterns, kind=str(table.get("kind"))) if given.patterns else []
    files = [open_evidence(path, relative(path)) for path in paths]
    return [*_labelled(_read(archive, files), paths, names, given.labels), *texts]


def _read(archive: Archive, files: Sequence[EvidenceFile]) -> list[Sample]:
    return read_samples(
        input_table(archive),
        files,
        resource=archive.resource,
        names=archive.manifest.labels,
        open_tensors=open_checkpoint,
    )


def _labelled(
    samples: Sequence[Sample], paths: Sequence[Path], names: Sequence[str], labels: Path | None
) -> list[Sample]:
    """True classes from --labels, or else from class-named folders; labels inside a file stay."""
    if labels is not None:
        table = read_labels(open_evidence(labels, relative(labels)), names)
        return with_labels(samples, table)
    folders = {relative(path): label_of_folder(path, names) for path in paths}
    return [
        sample if sample.true is not None else replace(sample, true=folders.get(sample.source))
        for sample in samples
    ]


def _questions(samples: Sequence[Sample]) -> Questions:
    batch = collate(samples)
    subjects = tuple(Subject(one.source, one.index, one.sha256, one.true) for one in samples)
    return Questions(Call(batch.arguments, batch.keywords), subjects)


def input_table(archive: Archive) -> dict[str, object]:
    """[input] of the manifest. Raises UsageError if there is none."""
    table = archive.manifest.input
    if table is None:
        raise UsageError(
            "archive.toml has no [input]", hint="README, 'Describe your archive', shows how to state it"
        )
    return dict(table)
