"""Where in the network scores sit: `layers` and `neurons` of an input."""

from typing import Any

from flforensics.results import InputTrace, LayerPart, Neurons, UnitPart


def anatomy_document(one: InputTrace) -> dict[str, Any]:
    """The keys that were asked for, each left out where it was not."""
    document: dict[str, Any] = {}
    if one.layers is not None:
        document["layers"] = [_layer(layer) for layer in one.layers]
    if one.neurons is not None:
        document["neurons"] = _neurons(one.neurons)
    return document


def _layer(layer: LayerPart) -> dict[str, Any]:
    document: dict[str, Any] = {
        "layer": layer.layer,
        "clients": [{"client": client, "score": part} for client, part in layer.clients],
    }
    if layer.server is not None:
        document |= {"server": layer.server, "unexplained": layer.unexplained}
    return document


def _neurons(neurons: Neurons) -> dict[str, Any]:
    return {
        "client": neurons.client,
        "score": neurons.score,
        "units": [_unit(unit) for unit in neurons.units],
        "others": {"count": neurons.others, "part": neurons.rest},
    }


def _unit(unit: UnitPart) -> dict[str, Any]:
    """`unit` counts from 0 (of a token table it is the token's id); a whole tensor has a name instead."""
    which = {"unit": unit.unit} if unit.tensor is None else {"tensor": unit.tensor}
    return {"layer": unit.layer, "kind": unit.kind, **which, "part": unit.part, "share": unit.share}
