"""From answers to observations: one yes or no, or one number, for each input and method."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from tests.bench.accuracy.federations import FEWEST
from tests.bench.accuracy.measures import Measure, middle, proportion
from tests.bench.accuracy.records import Record

CHANCE, LARGEST = "a random client", "the largest client"
BASELINES = (CHANCE, LARGEST)

Test = Callable[["Asked", int, int], bool]
"""Whether naming a client (its number) is right for an input (its place)."""


@dataclass(frozen=True)
class Asked:
    """A question of a record."""

    record: Record
    question: Record

    @property
    def scenario(self) -> str:
        return str(self.question["scenario"])

    @property
    def inputs(self) -> range:
        return range(len(self.question["true"]))

    @property
    def clients(self) -> list[int]:
        return list(self.question["clients"])

    def of_label(self, place: int) -> dict[int, int]:
        """How many examples of the predicted class of an input each participant has."""
        label = self.question["predicted"][place]
        return {client: held[label] for client, held in zip(self.clients, self.question["held"], strict=True)}

    @property
    def largest(self) -> int:
        """The participant with most examples."""
        return max(zip(self.question["held"], self.clients, strict=True), key=lambda one: sum(one[0]))[1]

    def named(self, method: str, place: int) -> int | None:
        """The top client of a method, or of a baseline that needs no scores."""
        if method == LARGEST:
            return self.largest
        said = self.question["methods"].get(method)
        return None if said is None else int(said["top"][place])

    def direct(self, place: int) -> bool:
        """Whether this mistake is what the flip teaches: the wrong label, for the flipped one."""
        source, to = self.question["flip"]
        return self.question["predicted"][place] == to and source in (None, self.question["true"][place])


def asked(records: Iterable[Record], *scenarios: str) -> list[Asked]:
    """The questions of these scenarios; a name ending in - stands for all that begin so."""

    def wanted(name: str) -> bool:
        return any(name.startswith(one) if one.endswith("-") else name == one for one in scenarios)

    return [Asked(record, one) for record in records for one in record["questions"] if wanted(one["scenario"])]


def holds_label(one: Asked, place: int, client: int) -> bool:
    """TraceFL's rule: the client has at least ten examples of the predicted class."""
    return one.of_label(place).get(client, 0) >= FEWEST


def holds_most(one: Asked, place: int, client: int) -> bool:
    """No participant has more examples of the predicted class."""
    counts = one.of_label(place)
    return counts.get(client, 0) == max(counts.values())


def is_culprit(one: Asked, place: int, client: int) -> bool:
    """The client is the one whose labels were flipped."""
    return bool(client == one.question["culprit"])


def right(
    questions: Sequence[Asked], method: str, test: Test, *, among: Callable[[Asked, int], bool] | None = None
) -> Measure | None:
    """How often the method's top client passes; for a random client the mean of everybody's answers."""
    places = [(one, place) for one in questions for place in one.inputs if among is None or among(one, place)]
    if method == CHANCE:
        shares = [fmean(test(one, place, client) for client in one.clients) for one, place in places]
        mean = fmean(shares) if shares else math.nan
        return Measure(mean, mean, mean, len(shares)) if shares else None
    hits = [test(one, place, named) for one, place in places if (named := one.named(method, place)) is not None]
    return proportion(sum(hits), len(hits))


def right_together(questions: Sequence[Asked], method: str) -> Measure | None:
    """How often the culprit is on top of all of a question's inputs together."""
    said = [(one, one.question["methods"][method]) for one in questions if method in one.question["methods"]]
    return proportion(sum(bool(answer["together"] == one.question["culprit"]) for one, answer in said), len(said))


def responsible(questions: Sequence[Asked], method: str) -> dict[str, Measure | None]:
    """How often the trace's `responsible` is the culprit, somebody else, nobody."""
    named = [
        (one.question["culprit"], client)
        for one in questions
        for client in one.question["methods"].get(method, {}).get("named", [])
    ]
    counts = {
        "culprit": sum(client == culprit for culprit, client in named),
        "another": sum(client is not None and client != culprit for culprit, client in named),
        "nobody": sum(client is None for _, client in named),
    }
    return {name: proportion(count, len(named)) for name, count in counts.items()}


def correlation(questions: Sequence[Asked], method: str, reference: str) -> Measure | None:
    """The median rank correlation with a reference; inputs of one federation are resampled together."""
    groups: dict[str, list[float]] = {}
    for one in questions:
        values = one.question["methods"].get(method, {}).get(reference, [])
        groups.setdefault(one.record["name"], []).extend(value for value in values if value is not None)
    return middle(list(groups.values()))


def same_top(questions: Sequence[Asked], method: str, reference: str) -> Measure | None:
    """How often the method and the reference have the same client on top."""
    pairs = [
        (one.named(method, place), one.named(reference, place))
        for one in questions
        if method in one.question["methods"] and reference in one.question["methods"]
        for place in one.inputs
    ]
    return proportion(sum(left == right for left, right in pairs), len(pairs))


def relative_time(questions: Sequence[Asked], method: str) -> Measure | None:
    """The median of seconds relative to the ledger's on the same inputs."""
    groups: dict[str, list[float]] = {}
    for one in questions:
        methods = one.question["methods"]
        if method in methods and "ledger" in methods:
            groups.setdefault(one.record["name"], []).append(
                methods[method]["seconds"] / methods["ledger"]["seconds"]
            )
    return middle(list(groups.values()))


def methods_of(questions: Iterable[Asked]) -> Iterator[str]:
    """The methods that answered anything, in the order of their first answer."""
    return iter(dict.fromkeys(name for one in questions for name in one.question["methods"]))
