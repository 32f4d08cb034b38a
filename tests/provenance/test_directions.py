"""The directions of a round as they are read: in groups and blocks, and of each tensor what gradients reach."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from flforensics.fusion import rule_named
from flforensics.gradients import Support, whole
from flforensics.provenance.case import Case, Settings
from flforensics.provenance.directions import Directions, Models, Supports
from flforensics.provenance.localize.localizing import case_of
from flforensics.provenance.staging import Reader
from flforensics.rounds import Round, StoredModel
from tests.provenance.architectures import ARCHITECTURES, make_round

WEIGHTS = (400.0, 250.0, 90.0, 0.0, 120.0)
MIDDLE, CORNER = (slice(1, 2), slice(1, 2)), (slice(1, 3), slice(1, 3))
BOXES = {"4.weight": Support((18, 3, 3), MIDDLE), "2.weight": Support((24, 3, 3), CORNER)}
every_memory = pytest.mark.parametrize("memory", [2_000, 20_000, 1 << 30])


def case(memory: int = 1 << 30, *, values: Any = "full") -> Case:
    network = ARCHITECTURES["small maps"].network()
    round_ = make_round(network, weights=WEIGHTS)
    if values != "full":
        round_ = in_updates(round_, -1 if values == "negative-delta" else 1, values)
    return case_of(round_, rule_named("fedavg"), network, None, settings=Settings(precise=True, memory=memory))


def in_updates(round_: Round, sign: int, values: Any) -> Round:
    """The same round with updates stored instead of models."""
    clients = []
    for client in round_.clients:
        assert client.model is not None
        assert round_.previous is not None
        state = {
            name: sign * (tensor.double() - round_.previous.tensors[name].double())
            for name, tensor in client.model.tensors.items()
        }
        clients.append(replace(client, model=replace(client.model, tensors=state)))
    return replace(round_, clients=tuple(clients), values=values)


def supports(of: Case) -> Supports:
    return {name: BOXES.get(name, whole(of.new[name].numel())) for name in of.floating}


def state(model: Any, name: str) -> Tensor:
    return model.tensors[name].double().flatten()  # type: ignore[no-any-return]


def expected(name: str, support: Support, *, models: bool) -> Tensor:
    """The lines in one tensor, one after the other: models, or p_k Δ_k, no server, and what is left."""
    round_ = case().round
    total = sum(WEIGHTS)
    new = [state(client.model, name) for client in round_.clients]
    if models:
        lines = new
    else:
        before = state(round_.previous, name)
        lines = [weight / total * (one - before) for weight, one in zip(WEIGHTS, new, strict=True)]
        moved = state(round_.fused, name) - before
        lines += [torch.zeros_like(moved), moved - sum(lines)]
    return support.of(torch.stack(lines)).flatten(1)


def walked(walks: Directions | Models, asked: Supports, *, again: bool = False) -> dict[str, Tensor]:
    """All blocks of a walk, put together."""
    found = {name: torch.zeros(walks.lines, one.width, dtype=torch.float64) for name, one in asked.items()}
    seen: list[str] = []
    for block in walks.walk(asked, again=again):
        assert block.support == asked[block.name]
        found[block.name][block.lines] += block.factors[:, None] * block.values
        seen += [] if seen[-1:] == [block.name] else [block.name]
    assert sorted(seen) == sorted(asked)  # every tensor in one go
    return found


@pytest.mark.parametrize("kind", [Directions, Models])
def test_reading_leaves_the_round_as_it_is(kind: Any) -> None:
    """Where what is stored has the type of sums already, those must not be formed in it."""
    of = case()
    stored = [of.round.previous, of.round.fused, *(client.model for client in of.round.clients)]
    wide = [replace(one, tensors={n: t.double() for n, t in one.tensors.items()}) for one in stored if one]
    before = [{name: tensor.clone() for name, tensor in one.tensors.items()} for one in wide]
    clients = tuple(replace(client, model=model) for client, model in zip(of.round.clients, wide[2:], strict=True))
    round_ = replace(of.round, previous=wide[0], fused=wide[1], clients=clients)
    again = case_of(round_, of.rule, of.network, None, settings=of.settings)
    assert list(kind(again).walk({name: whole(again.new[name].numel()) for name in again.floating}, again=False))
    for one, expected in zip(wide, before, strict=True):
        assert all(torch.equal(one.tensors[name], tensor) for name, tensor in expected.items())


def test_models_take_their_part_of_the_memory() -> None:
    of, size = case(1 << 20), 8
    assert of.memory == (1 << 20) - 4 * size * of.parameters
    assert replace(of, previous=None).memory == (1 << 20) - 2 * size * of.parameters
    assert case(4 * size * of.parameters).memory == 4 * size * of.parameters // 8


@every_memory
@pytest.mark.parametrize("values", ["full", "delta", "negative-delta"])
@pytest.mark.parametrize("kind", [Directions, Models])
def test_a_walk_gives_every_line_of_every_tensor_once(kind: Any, values: str, memory: int) -> None:
    of = case(memory, values=values)
    for name, lines in walked(kind(of), supports(of)).items():
        truth = expected(name, supports(of)[name], models=kind is Models)
        torch.testing.assert_close(lines, truth, rtol=1e-9, atol=1e-12)


@every_memory
@pytest.mark.parametrize("piece", [1, 20, 1 << 18])
def test_sizes_are_of_whole_tensors(memory: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever part of a tensor gradients reach, whatever tensors they reach, in pieces of any size."""
    monkeypatch.setattr("flforensics.provenance.staging._PIECE", piece)
    of = case(memory)
    truth = torch.cat([expected(name, whole(of.new[name].numel()), models=False) for name in of.floating], 1)
    for met in (of.floating, ("4.weight", "4.bias"), ()):
        directions = Directions(of)
        if met:
            walked(directions, {name: supports(of)[name] for name in met})
        torch.testing.assert_close(directions.sizes(), torch.linalg.vector_norm(truth[:-2], dim=1))
        walked(directions, supports(of))
        torch.testing.assert_close(directions.sizes(), torch.linalg.vector_norm(truth[:-2], dim=1))


@pytest.mark.parametrize("values", ["full", "delta"])
@pytest.mark.parametrize("support", [BOXES["4.weight"], whole(162)], ids=["box", "whole"])
def test_a_model_times_a_factor(support: Support, values: str) -> None:
    of = case(values=values)
    reader, row = Reader([of.scene.read("4.weight")], of.settings, support), torch.zeros(support.width).double()
    reader.model(1, row, factor=0.25)
    torch.testing.assert_close(row, 0.25 * expected("4.weight", support, models=True)[1])


def test_what_is_kept_is_not_read_again_unless_more_is_asked_of_it() -> None:
    of = case()
    directions, everything = Directions(of), {name: whole(of.new[name].numel()) for name in of.floating}
    first = walked(directions, supports(of), again=True)
    assert of.settings.profile.passes == 1
    second = walked(directions, supports(of), again=True)
    assert of.settings.profile.passes == 1
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = walked(directions, everything)
    assert of.settings.profile.passes == 2
    torch.testing.assert_close(BOXES["4.weight"].of(third["4.weight"]).flatten(1), first["4.weight"])


@pytest.mark.parametrize("few", [1, 50, 150, 1 << 20])
@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("values", ["full", "delta"])
def test_models_of_some_clients_at_a_time(
    values: str, at_once: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several tensors, some of which are read together: then a client's file is opened once for them."""
    opened, several = [], StoredModel.several
    monkeypatch.setattr(StoredModel, "several", lambda self, shapes: opened.append(self) or several(self, shapes))
    monkeypatch.setattr("flforensics.provenance.directions._FEW", few)
    one, factors = case(values=values), [0.5, 1.0, 0.0, -2.0, 3.0]
    shapes = {name: one.new[name].shape for name in one.floating}
    tensors = Models(one).several(list(shapes))
    for start in range(0, len(factors), at_once):
        lines = slice(start, min(start + at_once, len(factors)))
        found = tensors.of(lines, factors=factors)
        assert found.keys() == shapes.keys()
        for name, rows in found.items():
            models = expected(name, whole(shapes[name].numel()), models=True)[lines]
            truth = models * torch.tensor(factors[lines], dtype=torch.float64)[:, None]
            torch.testing.assert_close(rows, truth.view(-1, *shapes[name]), rtol=0, atol=1e-6)
    assert len(opened) == {1: 0, 50: 10, 150: 5, 1 << 20: 5}[few]


def test_small_tensors_of_a_client_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    of, asked = case(), []
    several = StoredModel.several

    def noted(self: StoredModel, shapes: Any) -> Any:
        asked.append((self.source, tuple(shapes)))
        return several(self, shapes)

    monkeypatch.setattr(StoredModel, "several", noted)
    walked(Directions(of), supports(of))
    small = tuple(name for name in of.floating if name not in BOXES)
    weighty = [client.model.source for client in of.clients if client.model and client.weight]
    assert sorted(asked) == [(source, small) for source in sorted(weighty)]


def test_tensors_are_read_together_up_to_a_part_of_all_and_alone_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one in sixteen values at once, or what is little whatever there is."""
    asked = {f"{n}": whole(width) for n, width in enumerate((10, 300, 20, 30, 40, 500, 5, 60, 1000, 7))}
    clients, whole_width = len(case().clients), 1972
    for small, room, most, count in ((0, 1 << 20, whole_width // 16, 2), (200, 1 << 20, 200, 1), (200, 70, 70, 3)):
        directions = Directions(case())
        monkeypatch.setattr("flforensics.provenance.directions._SMALL", small * clients * 8)
        monkeypatch.setattr(Directions, "_room", room * clients)
        groups = [[support.width for support in group.values()] for group in directions._groups(asked)]
        assert sorted(width for group in groups for width in group) == sorted(one.width for one in asked.values())
        assert all(len(group) == 1 or sum(group) <= most for group in groups)
        together = [group for group in groups if max(group) <= most]
        assert all(sum(one) + other[0] > most for one, other in pairwise(together))
        assert len(together) == count
