"""Who is on top over many inputs, where the model is right and where it is wrong."""

from collections.abc import Sequence

from flforensics.results import ClientSummary, InputTrace, Summary, SummaryGroup


def summary(inputs: Sequence[InputTrace]) -> Summary | None:
    """The clients over all inputs with a known class; None for fewer than two of them, or without clients."""
    known = [one for one in inputs if one.subject.true is not None]
    if len(known) < 2 or not known[0].clients:
        return None
    weights = {client.client: client.weight for client in known[0].clients}
    order = sorted(weights, key=lambda client: (-weights[client], client))
    tied = len(order) > 1 and weights[order[0]] == weights[order[1]]
    groups = [
        _group(right, [one for one in known if (one.subject.true == one.prediction.index) is right], order)
        for right in (True, False)
    ]
    return Summary(
        chance=1 / len(order),
        largest=None if tied else order[0],
        groups=tuple(group for group in groups if group.inputs),
        left_out=len(inputs) - len(known),
    )


def _group(right: bool, inputs: Sequence[InputTrace], order: Sequence[str]) -> SummaryGroup:
    return SummaryGroup(right, len(inputs), tuple(_client(name, inputs) for name in order) if inputs else ())


def _client(name: str, inputs: Sequence[InputTrace]) -> ClientSummary:
    lines = [client for one in inputs for client in one.clients if client.client == name]
    return ClientSummary(
        name,
        lines[0].weight,
        on_top=sum(line.rank == 1 for line in lines),
        named=sum(one.responsible.client == name for one in inputs),
        share=sum(line.share for line in lines) / len(lines),
    )
