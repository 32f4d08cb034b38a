"""The ledger over all stored rounds: from the initial model to the final target, round by round.

For the class (and the class against it) that the last global fixes, the ledgers of the rounds telescope:

    f(θ_R) = f(θ_0) + Σ_rounds (clients + server + unexplained + residual) + gaps.

A gap is a movement that no ledger divides: a global whose clients are not stored, a round whose ledger is not
computable, a round that started from another model than the global before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from flforensics.fusion.rule import Rule
from flforensics.provenance.case import Settings
from flforensics.provenance.chain import Chain, Reading, chained
from flforensics.provenance.links import Asked, Linked, Linking, Step, ask
from flforensics.provenance.reading import target_of
from flforensics.provenance.trace import Questions
from flforensics.results import InputLineage, Progress, Target, Untraced, Verdict, no_progress
from flforensics.rounds import spans


@dataclass(frozen=True)
class LineageAnswers:
    """One lineage per input, in the order of the batches, and what a reader must know besides."""

    inputs: tuple[InputLineage, ...]
    untraced: tuple[Untraced, ...]
    warnings: tuple[str, ...]


def trace_lineage(
    steps: Sequence[Step],
    rule: Rule,
    network: nn.Module,
    batches: Sequence[Questions],
    *,
    settings: Settings,
    labels: Sequence[str],
    verdicts: Mapping[int, Verdict],
    progress: Progress = no_progress,
) -> LineageAnswers:
    """The lineage of every input through `steps`, oldest first; the last one's global fixes what is explained.

    `verdicts` are the rounds' replays. What is wrong with an earlier round is the reason for a gap.
    Raises EvidenceError where the last global does not fit the network, and NotComputableError where its target
    is not finite (NON_FINITE) or no earlier model is known (PREVIOUS).
    """
    asked = ask(steps[-1], network, batches, settings=settings, labels=labels)
    linking = Linking(asked, network, rule)
    linked = []
    for place, step in enumerate(steps):
        before = steps[place - 1].fused if place else None
        linked.append(
            linking.linked(step, before=before, progress=within(progress, step.number, steps[-1].number))
        )
        progress("rounds", place + 1, len(steps))
    return joined(asked, batches, linked, verdicts)


def joined(
    asked: Asked, batches: Sequence[Questions], linked: Sequence[Linked], verdicts: Mapping[int, Verdict]
) -> LineageAnswers:
    """The lineages from what every round did, oldest first. Raises NotComputableError (PREVIOUS)."""
    links = [one.link for one in linked]
    doubtful = [link.number for link in links if _is_doubtful(link.number, verdicts)]
    subjects = [subject for batch in batches for subject in batch.subjects]
    chains = [chained(links, index) for index in range(len(subjects))]
    readings = [
        Reading(chain, subject, said, target, doubtful)
        for chain, subject, said, target in zip(
            chains, subjects, asked.standing.predictions, _targets(asked), strict=True
        )
    ]
    inputs = tuple(reading.answer() for reading in readings)
    untraced = {name: reason for one in linked for name, reason in one.untraced.items()}
    warnings = [warning for one in linked for warning in one.warnings]
    return LineageAnswers(
        inputs,
        tuple(Untraced(name, reason) for name, reason in untraced.items()),
        (
            *_openings(chains),
            *_ways_out(inputs, doubtful, links[-1].number),
            *warnings,
            *_rough(inputs, asked.settings),
        ),
    )


def within(progress: Progress, number: int, last: int) -> Progress:
    """The progress of one round as a part of the whole."""
    return lambda stage, done, total: progress(f"round {number} of {last}: {stage}", done, total)


def _targets(asked: Asked) -> list[Target]:
    """What is explained, for every input."""
    values = iter(asked.standing.values)
    return [
        target_of(target, index, value=next(values))
        for call, target in zip(asked.calls, asked.targets, strict=True)
        for index in range(call.count)
    ]


def _openings(chains: Sequence[Chain]) -> list[str]:
    """Why a lineage does not begin earlier, where something stands in its way."""
    found = {(chain.initial.round, chain.before): None for chain in chains if chain.initial and chain.before}
    return [f"the lineage begins with the global of round {number}: {reason}" for number, reason in found]


def _is_doubtful(number: int, verdicts: Mapping[int, Verdict]) -> bool:
    """Whether a round does not replay, or starts from a global that is none of its clients' making.

    A start that cannot be judged, such as the initial model, is taken as stored.
    """
    own, before = verdicts.get(number), verdicts.get(number - 1)
    return (own is not None and not own.replays) or before is Verdict.INCONSISTENT


def _ways_out(inputs: Sequence[InputLineage], doubtful: Sequence[int], last: int) -> list[str]:
    """How to ask again without the rounds that keep clients from being named, where that is possible."""
    used = {round_.round for one in inputs for round_ in one.rounds}
    rounds = [number for number in doubtful if number in used]
    if not rounds or rounds[-1] >= last:
        return []
    return [
        f"no client with a part in {spans(rounds)} is named; --from {rounds[-1]} leaves out what does not replay"
    ]


def _rough(inputs: Sequence[InputLineage], settings: Settings) -> list[str]:
    """A warning of lines that are less exact than was asked for."""
    rough = [one for one in inputs if any(round_.converged is False for round_ in one.rounds)]
    if not rough:
        return []
    return [
        f"{len(rough)} of {len(inputs)} inputs have rounds that did not converge within {settings.max_nodes}"
        " nodes: raise --max-nodes, or read those rounds' scores with their residual"
    ]
