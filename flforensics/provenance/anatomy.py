"""Where in the network a client's score sits: split by layer, and by the units of the global model.

The ledger's product is linear in the tensors, score_k = Σ_tensors ⟨Ḡ, s_k⟩ with Ḡ the gradient averaged over the
input's own nodes, so that the parts of layers, and of the units of a layer, add up to the score.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from flforensics.provenance import METHODS
from flforensics.provenance.case import Case, Scores
from flforensics.provenance.slopes import averaged_gradients
from flforensics.provenance.tracefl import layer_parts as tracefl_parts
from flforensics.provenance.units import Units, layer_of, unit_sums
from flforensics.results import ClientScore, InputTrace, LayerPart, Neurons, UnitPart

_Key = TypeVar("_Key", bound=Hashable)


def with_anatomy(case: Case, scores: Scores, inputs: Sequence[InputTrace]) -> tuple[InputTrace, ...]:
    """The answers with what `settings.by` asks for: their layers, or the units behind the first client of each.

    A method whose scores cannot be split so leaves them as they are.
    """
    by = case.settings.by
    if by not in METHODS[case.settings.method].by:
        return tuple(inputs)
    return tuple((_with_layers if by == "layer" else _with_neurons)(case, scores, inputs))


def layer_parts(case: Case, nodes: Tensor) -> dict[str, Tensor]:
    """What every layer adds to the lines of the ledger, [N, K + 2] float64: clients, server, unexplained."""
    parts: dict[str, Tensor] = {}
    for rows, gradients in _gradients(case, nodes):
        for name, gradient in gradients:
            lines = _lines(case, name).flatten(1)
            products = (gradient.reshape(len(rows), -1) @ lines.T).double()
            _add(parts, layer_of(name), products, rows, count=len(nodes))
    return parts


def unit_parts(case: Case, nodes: Tensor, columns: Tensor) -> dict[Units, Tensor]:
    """What every unit carries of one client's score, [N, units] float64; `columns` [N] says whose."""
    parts: dict[Units, Tensor] = {}
    for rows, gradients in _gradients(case, nodes):
        for name, gradient in gradients:
            lines, products = _lines(case, name), gradient.double()
            for index, column in enumerate(columns[rows.cpu()].tolist()):
                products[index] *= lines[column].view(products.shape[1:])
            units, sums = unit_sums(case.network, name, products)
            _add(parts, units, sums, rows, count=len(nodes))
    return parts


def _gradients(case: Case, nodes: Tensor) -> Iterator[tuple[Tensor, list[tuple[str, Tensor]]]]:
    """Ḡ for a few inputs at a time: their rows, and [n, *shape] by name in the order of the network's tensors."""
    done = 0
    for rows, gradients in averaged_gradients(case, nodes):
        yield rows, [(name, gradients[name]) for name in case.floating if name in gradients]
        done += len(rows)
        case.progress("parts", done, len(nodes))


def _add(parts: dict[_Key, Tensor], key: _Key, values: Tensor, rows: Tensor, *, count: int) -> None:
    """Add the values of some of `count` inputs to what is known under `key`."""
    if key not in parts:
        parts[key] = values.new_zeros(count, values.shape[1])
    parts[key][rows] += values


def _with_layers(case: Case, scores: Scores, inputs: Sequence[InputTrace]) -> list[InputTrace]:
    """In the order of the network's tensors; TraceFL's in the order of first calls."""
    parts = tracefl_parts(case) if scores.lines is None else layer_parts(case, _nodes(scores))
    columns = {client.client: column for column, client in enumerate(case.clients)}
    return [
        replace(one, layers=tuple(_layer(name, part[index], one, columns) for name, part in parts.items()))
        for index, one in enumerate(inputs)
    ]


def _layer(name: str, lines: Tensor, one: InputTrace, columns: Mapping[str, int]) -> LayerPart:
    values = lines.tolist()
    clients = tuple((client.client, values[columns[client.client]]) for client in one.clients)
    rest = values[len(columns) :]
    return LayerPart(name, clients, *rest)


def _with_neurons(case: Case, scores: Scores, inputs: Sequence[InputTrace]) -> list[InputTrace]:
    """The units behind the first client, which is the one that is named, if any is."""
    names = [client.client for client in case.clients]
    columns = torch.tensor([names.index(one.clients[0].client) for one in inputs])
    parts = unit_parts(case, _nodes(scores), columns)
    every = torch.cat(list(parts.values()), 1).cpu()
    seats = [(units, place) for units, part in parts.items() for place in range(part.shape[1])]
    return [
        replace(one, neurons=_neurons(one.clients[0], parts_of_one, seats, count=case.settings.units))
        for one, parts_of_one in zip(inputs, every, strict=True)
    ]


def _neurons(client: ClientScore, parts: Tensor, seats: Sequence[tuple[Units, int]], *, count: int) -> Neurons:
    """The `count` units with the largest |part|; those that carry nothing are not listed."""
    order = parts.abs().topk(min(count, len(parts))).indices.tolist()
    units = tuple(_unit(seats[place], float(parts[place]), client.score) for place in order if parts[place] != 0)
    rest = float(parts.sum()) - sum(unit.part for unit in units)
    return Neurons(client.client, client.score, units, len(seats) - len(units), rest)


def _unit(seat: tuple[Units, int], part: float, score: float) -> UnitPart:
    units, place = seat
    number = place if units.tensor is None else None
    return UnitPart(units.layer, units.kind, number, units.tensor, part, part / score if score else None)


def _lines(case: Case, name: str) -> Tensor:
    """The clients' shares of one tensor, the server's and the unexplained one, [K + 2, *shape]."""
    shares = case.rule.shares(case.scene.read(name), case.scene)
    lines = torch.cat([shares.clients, shares.server[None], shares.unexplained[None]])
    return lines.to(case.settings.device, case.settings.dtype)


def _nodes(scores: Scores) -> Tensor:
    """How many nodes each input needed, [N]."""
    assert scores.lines is not None
    assert scores.lines.nodes is not None
    return scores.lines.nodes
