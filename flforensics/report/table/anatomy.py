"""Where in the network scores sit, for people: a matrix of layers and clients, or a list of neurons."""

from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from flforensics.report.table.layout import WIDTH, wrapped
from flforensics.report.words import bar, percent, plural, shown, signed
from flforensics.results import InputTrace, LayerPart, Neurons, Trace, UnitPart

_LAYERS = 12
_NARROWEST = 10
_REST = 26


def anatomy_lines(one: InputTrace, top: int | None) -> Iterator[str]:
    """What was asked for, after an empty line."""
    if one.layers is not None:
        yield ""
        yield _layer_table(one, one.layers, top)
    if one.neurons is not None:
        yield ""
        yield from _neuron_table(one.neurons)


def everything(result: Trace) -> str:
    """What other formats hold of every client besides, where a table of many inputs leaves it out."""
    if any(one.layers is not None for one in result.inputs):
        return "layer of every "
    return "neuron that was asked for, and every " if any(one.neurons for one in result.inputs) else ""


def _layer_table(one: InputTrace, layers: tuple[LayerPart, ...], top: int | None) -> str:
    """The layers that matter most, in the network's order, by the first clients; the last row is the scores."""
    important = set(sorted(range(len(layers)), key=lambda place: -_size(layers[place]))[:_LAYERS])
    listed = [layer for place, layer in enumerate(layers) if place in important]
    others = [layer for place, layer in enumerate(layers) if place not in important]
    names = [client.client for client in one.clients[: _columns(one, listed, top)]]
    rows = [(shown(layer.layer), *_cells(one, [layer], names)) for layer in listed]
    if others:
        rows.append((f"{len(others)} more", *_cells(one, others, names)))
    rows.append(("= score", *_cells(one, list(layers), names)))
    headers = ["layer", *map(shown, names), *_more(one, names), *["(no client)"] * (one.parts is not None)]
    return tabulate(
        rows, headers=headers, colalign=("left", *["right"] * (len(headers) - 1)), disable_numparse=True
    )


def _cells(one: InputTrace, layers: list[LayerPart], names: list[str]) -> list[str]:
    """The sum of the layers' parts for each shown client, for all further clients, and for no client."""
    totals = dict.fromkeys((client.client for client in one.clients), 0.0)
    for layer in layers:
        for client, part in layer.clients:
            totals[client] += part
    values = [totals[name] for name in names]
    if _more(one, names):
        values.append(sum(total for name, total in totals.items() if name not in names))
    if one.parts is not None:
        values.append(sum((layer.server or 0.0) + (layer.unexplained or 0.0) for layer in layers))
    return [signed(value) for value in values]


def _more(one: InputTrace, names: list[str]) -> list[str]:
    rest = len(one.clients) - len(names)
    return [f"{rest} more"] if rest else []


def _columns(one: InputTrace, listed: list[LayerPart], top: int | None) -> int:
    """How many clients fit beside the longest layer's name and the two columns for all the rest."""
    name = max(len(shown(layer.layer)) for layer in listed)
    cell = max(_NARROWEST, *(len(shown(client.client)) for client in one.clients))
    return min(max(1, (WIDTH - name - _REST) // (cell + 2)), top or len(one.clients))


def _size(layer: LayerPart) -> float:
    """Σ|part| of a layer."""
    return sum(abs(part) for _, part in layer.clients)


def _neuron_table(neurons: Neurons) -> Iterator[str]:
    name = shown(neurons.client)
    yield wrapped(
        f"What carries {name}'s score of {signed(neurons.score)}, and its share of it"
        f" ({plural(neurons.others, 'other')} carry {signed(neurons.rest)} together):"
    )
    yield ""
    rows: list[tuple[Any, ...]] = [
        (rank, shown(unit.layer), _what(unit), signed(unit.part), *_share(unit))
        for rank, unit in enumerate(neurons.units, start=1)
    ]
    yield tabulate(
        rows,
        headers=["", "layer", "unit", "part", "share", ""],
        colalign=("right", "left", "left", "right", "right", "left"),
        disable_numparse=True,
    )


def _what(unit: UnitPart) -> str:
    return f"{unit.kind} {unit.unit}" if unit.tensor is None else shown(unit.tensor.rpartition(".")[2])


def _share(unit: UnitPart) -> tuple[str, str]:
    return ("", "") if unit.share is None else (percent(unit.share), bar(unit.share))
