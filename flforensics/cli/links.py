"""What a lineage asks of each round of an archive: plain tasks, and the work that opens the rounds they name."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from flforensics.archive.declared import Archive
from flforensics.cli.laboratory import Laboratory
from flforensics.errors import EvidenceError
from flforensics.fusion.specification import FusionSpecification, fusion_specification, rule_of
from flforensics.provenance.lineage import within
from flforensics.provenance.links import Asked, Linked, Linking, Step
from flforensics.replay import examine_round, undecided
from flforensics.results import Progress, RoundReplay
from flforensics.rounds import Round, StoredModel, spans
from flforensics.scheduling import Sendable


@dataclass(frozen=True)
class RoundTask:
    """One round on the way to round `last`; `before` is the one whose global comes before, where any is stored.

    With `begins` the way starts at its global, whoever made that; `absent` says why nothing of it can be read.
    """

    number: int
    last: int
    before: int | None = None
    begins: bool = False
    absent: str = ""


@dataclass(frozen=True)
class RoundAnswer:
    """What the round did to every input, and its replay where it has clients or weights."""

    linked: Linked
    replay: RoundReplay | None


def round_tasks(numbers: Sequence[int], *, begins: bool) -> list[RoundTask]:
    """A task for each of the stored rounds, oldest first, and for each gap between them."""
    tasks = [RoundTask(numbers[0], numbers[-1], begins=begins)]
    for before, number in itertools.pairwise(numbers):
        absent = range(before + 1, number)
        if absent:
            reason = f"the archive holds nothing of {spans(absent)}"
            tasks.append(RoundTask(absent[-1], numbers[-1], absent=reason))
        tasks.append(RoundTask(number, numbers[-1], None if absent else before))
    return tasks


def stored_step(archive: Archive, number: int, *, reason: str = "") -> Step:
    """A round as its global alone, and the reason why there is no more, or not even that."""
    try:
        return Step(number, archive.stored_global(number), reason=reason)
    except EvidenceError as error:
        return Step(number, None, reason=error.message)


@dataclass(frozen=True)
class LineageWork(Sendable):
    """The ledger of a round for what is asked, and its replay unless `replaying` is off.

    With `comparing`, updates are compared with those that the same clients sent before.
    """

    laboratory: Laboratory
    asked: Asked
    replaying: bool
    comparing: bool

    def __call__(self, task: RoundTask, progress: Progress) -> RoundAnswer:
        """What one round did; what is wrong with it is the reason in its link."""
        replay = self._replay(task.number, progress) if self.replaying else None
        linked = self._linking.linked(
            self._step(task), before=self._before(task), progress=within(progress, task.number, task.last)
        )
        return RoundAnswer(linked, replay)

    @cached_property
    def _fusion(self) -> FusionSpecification:
        return fusion_specification(self.laboratory.archive.manifest.fusion)

    @cached_property
    def _linking(self) -> Linking:
        return Linking(self.asked, self.laboratory.network, rule_of(self._fusion))

    @cached_property
    def _rounds(self) -> "dict[int, Round | EvidenceError]":
        """The rounds that were opened here, or why they cannot be."""
        return {}

    def _opened(self, number: int) -> "Round | EvidenceError":
        if number not in self._rounds:
            try:
                self._rounds[number] = self.laboratory.archive.round(number)
            except EvidenceError as error:
                self._rounds[number] = error
        return self._rounds[number]

    def _history(self, number: int) -> tuple[Round, ...]:
        """The rounds before `number`, if the rule's server keeps state."""
        return self._rounds_before(number) if rule_of(self._fusion).needs_history else ()

    def _rounds_before(self, number: int) -> tuple[Round, ...]:
        """The rounds before `number` that can be opened, oldest first."""
        earlier = [self._opened(one) for one in self.laboratory.archive.fusions if one < number]
        return tuple(one for one in earlier if not isinstance(one, EvidenceError))

    def _compared(self, number: int) -> tuple[Round, ...]:
        """The rounds before `number` whose clients' updates are known, if updates are compared."""
        rounds = self._rounds_before(number) if self.comparing else ()
        return tuple(one for one in rounds if one.previous is not None or one.values != "full")

    def _replay(self, number: int, progress: Progress) -> RoundReplay | None:
        """The verdict; a file that is missing or rejected gives `indeterminate` with the reason."""
        if number not in self.laboratory.archive.fusions:
            return None
        one = self._opened(number)
        if isinstance(one, EvidenceError):
            return undecided(number, self._fusion.rule, str(one))
        earlier = self._history(number)
        return examine_round(one, self._fusion, earlier=earlier, recovering=False, progress=progress)

    def _step(self, task: RoundTask) -> Step:
        """The round as the archive has it."""
        number, archive = task.number, self.laboratory.archive
        if task.absent:
            return Step(number, None, reason=task.absent)
        if number not in archive.fusions:
            step = stored_step(archive, number, reason=f"the archive holds no clients of round {number}")
        else:
            one = self._opened(number)
            if isinstance(one, EvidenceError):
                step = stored_step(archive, number, reason=one.message)
            else:
                step = Step(number, one.fused, one, self._history(number), self._compared(number))
        return replace(step, round=None, reason="" if step.fused else step.reason) if task.begins else step

    def _before(self, task: RoundTask) -> StoredModel | None:
        return None if task.before is None else stored_step(self.laboratory.archive, task.before).fused
