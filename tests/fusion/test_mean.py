"""The rounding bounds against servers that really compute in narrow types, and against exact fractions."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from flforensics.fusion import rule_named
from flforensics.fusion.rule import Coefficients, Scene, surveyed
from flforensics.fusion.specification import FusionSpecification, fusion_specification
from flforensics.replay import replay_round
from flforensics.results import Verdict
from flforensics.rounds import ClientModel, Round, RoundTensor, StoredModel

Server = Callable[[list[Tensor], list[int], Tensor], Tensor]


def running_product(models: list[Tensor], counts: list[int], _previous: Tensor) -> Tensor:
    """Factors first, then one sum from the left (Flower's Message API)."""
    total = models[0] * (counts[0] / sum(counts))
    for model, count in zip(models[1:], counts[1:], strict=True):
        total = total + model * (count / sum(counts))
    return total


def sum_then_divide(models: list[Tensor], counts: list[int], _previous: Tensor) -> Tensor:
    """Counts as weights, one division at the end (Flower's legacy `aggregate`)."""
    total = models[0] * counts[0]
    for model, count in zip(models[1:], counts[1:], strict=True):
        total = total + model * count
    return total / sum(counts)


def reversed_tree(models: list[Tensor], counts: list[int], _previous: Tensor) -> Tensor:
    """Any order: the last client first, added in pairs."""
    terms = [model * (count / sum(counts)) for model, count in zip(models, counts, strict=True)][::-1]
    while len(terms) > 1:
        terms = [terms[i] + terms[i + 1] if i + 1 < len(terms) else terms[i] for i in range(0, len(terms), 2)]
    return terms[0]


def differences(models: list[Tensor], counts: list[int], previous: Tensor) -> Tensor:
    """The previous global plus averaged updates (Plato, APPFL, Substra)."""
    change = torch.zeros_like(previous)
    for model, count in zip(models, counts, strict=True):
        change = change + (model - previous) * (count / sum(counts))
    return previous + change


SERVERS: dict[str, Server] = {
    "direct": running_product,
    "sum then divide": sum_then_divide,
    "any order": reversed_tree,
    "difference": differences,
}


def made_round(
    server: Server,
    *,
    clients: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    spread: float = 1.0,
    size: int = 400,
) -> Round:
    """An honest round of one tensor: clients near a previous global, fused in float32, stored in `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    previous = torch.randn(size, generator=generator).to(dtype)
    models = [
        (previous.float() + spread * torch.randn(size, generator=generator)).to(dtype) for _ in range(clients)
    ]
    counts = torch.randint(1, 1001, (clients,), generator=generator).tolist()
    fused = server([model.float() for model in models], counts, previous.float()).to(dtype)
    return as_round(previous, models, [float(count) for count in counts], fused)


def as_round(previous: Tensor, models: list[Tensor], weights: list[float], fused: Tensor, **more: Any) -> Round:
    clients = tuple(
        ClientModel(f"c{k}", weight, StoredModel({"w": model}, f"c{k}"), **more)
        for k, (model, weight) in enumerate(zip(models, weights, strict=True))
    )
    return Round(2, StoredModel({"w": previous}, "previous"), clients, StoredModel({"w": fused}, "global"))


def with_fused(round_: Round, fused: Tensor) -> Round:
    return Round(
        round_.number, round_.previous, round_.clients, StoredModel({"w": fused}, "global"), round_.values
    )


def replayed(round_: Round, rule: str = "fedavg", form: str | None = None) -> Any:
    return replay_round(round_, FusionSpecification(rule, form))


@pytest.mark.parametrize("spread", [1.0, 0.01])
@pytest.mark.parametrize("clients", [1, 2, 7, 50, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("server", SERVERS)
def test_an_honest_server_is_never_accused(server: str, dtype: torch.dtype, clients: int, spread: float) -> None:
    for seed in range(3):
        round_ = made_round(SERVERS[server], clients=clients, seed=seed, dtype=dtype, spread=spread)
        found = replayed(round_)
        assert found.verdict.replays
        assert found.worst_ratio is not None
        assert found.worst_ratio <= 1


def test_the_form_that_fits_is_named() -> None:
    """Few clients close to a large previous global: each form's rounding is visible to the other's bound."""
    names = {}
    for server in ("direct", "difference"):
        round_ = made_round(SERVERS[server], clients=2, seed=1, spread=1e-6, size=4000)
        names[server] = replayed(round_).form
    assert names["direct"] == "direct"


@pytest.mark.parametrize("clients", [2, 10, 100])
@pytest.mark.parametrize("server", SERVERS)
def test_three_bounds_are_seen_and_a_third_of_the_slack_is_not(server: str, clients: int) -> None:
    round_ = made_round(SERVERS[server], clients=clients, seed=4)
    bounds = [bound_of(round_, form) for form in ("direct", "difference")]
    fused = round_.fused.read("w")
    exact = exact_mean(round_)
    index = int(fused.abs().argmax())
    for factor, expected in ((3.0, Verdict.INCONSISTENT), (0.3, Verdict.CONSISTENT)):
        bound = max(float(b[index]) for b in bounds)
        if factor < 1:
            bound = min(float(b[index]) for b in bounds) - abs(float(fused[index]) - exact[index])
        moved = fused.double()
        moved[index] += factor * bound
        if float(moved.float()[index]) == float(fused[index]):
            moved[index] = torch.nextafter(fused[index], torch.tensor(torch.inf)).double()
        found = replayed(with_fused(round_, moved.float()))
        assert found.verdict is expected, factor
        if expected is Verdict.INCONSISTENT:
            assert [(t.name, t.outside) for t in found.tensors] == [("w", 1)]


def bound_of(round_: Round, form: str) -> Tensor:
    """The bound, restated from the design's formula."""
    count, u, eta = len(round_.clients), 2.0**-24, 2.0**-150
    gamma = {m: m * u / (1 - m * u) for m in (count + 3, count + 5)}
    weights = torch.tensor([c.weight for c in round_.clients], dtype=torch.float64)
    p = (weights / weights.sum())[:, None]
    models = torch.stack([c.model.read("w").double() for c in round_.clients if c.model])
    assert round_.previous is not None
    previous, fused = round_.previous.read("w").double(), round_.fused.read("w").double()
    if form == "direct":
        return gamma[count + 3] * (p * models).abs().sum(0) + (2 * count + 2) * eta + eta * models.abs().sum(0)
    around = (count + 1) * u * (previous.abs() + fused.abs())
    return gamma[count + 5] * (p * (models - previous)).abs().sum(0) + around


def exact_mean(round_: Round) -> list[float]:
    weights = [Fraction(c.weight or 0) for c in round_.clients]
    models = [c.model.read("w").tolist() for c in round_.clients if c.model]
    total = sum(weights)
    return [
        float(sum(w * Fraction(m[i]) for w, m in zip(weights, models, strict=True)) / total)
        for i in range(len(models[0]))
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_worst_ratio_equals_exact_arithmetic(seed: int) -> None:
    round_ = made_round(running_product, clients=6, seed=seed)
    exact, bound = exact_mean(round_), bound_of(round_, "direct")
    fused = round_.fused.read("w").tolist()
    ratios = [abs(f - e) / float(b) for f, e, b in zip(fused, exact, bound, strict=True)]
    assert replayed(round_, form="direct").worst_ratio == pytest.approx(max(ratios), rel=1e-3)


def test_arithmetic_in_bfloat16_is_accepted_where_it_can_be_told() -> None:
    generator = torch.Generator().manual_seed(0)
    for clients, expected in ((4, Verdict.BIT_EXACT), (150, Verdict.INDETERMINATE)):
        models = [torch.rand(300, generator=generator).bfloat16() for _ in range(clients)]
        fused = running_product(models, [1] * clients, models[0])
        assert fused.dtype is torch.bfloat16
        found = replayed(as_round(models[0], models, [1.0] * clients, fused))
        assert found.verdict is expected


def test_narrow_arithmetic_does_not_excuse_float32_files() -> None:
    models = [torch.randn(300, generator=torch.Generator().manual_seed(k)) for k in range(5)]
    fused = running_product([m.half() for m in models], [1] * 5, models[0]).float()
    assert replayed(as_round(models[0], models, [1.0] * 5, fused)).verdict is Verdict.INCONSISTENT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clients_rounded_when_stored(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    models = [torch.randn(500, generator=generator) for _ in range(6)]
    fused = running_product(models, [1] * 6, models[0])
    round_ = as_round(models[0].to(dtype), [m.to(dtype) for m in models], [1.0] * 6, fused.to(dtype))
    found = replayed(round_)
    assert found.verdict is Verdict.CONSISTENT
    assert found.arithmetic == "float32, clients rounded when stored"


@pytest.mark.parametrize(
    ("declared", "uncertainty", "expected"),
    [
        ([1 / 7, 2 / 7, 4 / 7], 0.0, Verdict.BIT_EXACT),
        ([0.143, 0.286, 0.571], 0.0, Verdict.INCONSISTENT),
        ([0.143, 0.286, 0.571], 0.0005, Verdict.CONSISTENT),
        ([0.14, 0.29, 0.57], 0.005, Verdict.CONSISTENT),
        ([0.2, 0.2, 0.6], 0.005, Verdict.INCONSISTENT),
    ],
)
def test_declared_digits_widen_the_bound(declared: list[float], uncertainty: float, expected: Verdict) -> None:
    models = [torch.randn(300, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    fused = running_product(models, [1, 2, 4], models[0])
    assert replayed(as_round(models[0], models, declared, fused, uncertainty=uncertainty)).verdict is expected


@pytest.mark.parametrize("values", ["delta", "negative-delta"])
def test_updates_replay_like_full_models(values: Any) -> None:
    full = made_round(differences, clients=5, seed=6, spread=0.1)
    assert full.previous is not None
    previous = full.previous.read("w")
    sign = 1 if values == "delta" else -1
    clients = tuple(
        ClientModel(c.client, c.weight, StoredModel({"w": sign * (c.model.read("w") - previous)}, c.client))
        for c in full.clients
        if c.model
    )
    updates = [sign * c.model.read("w") for c in clients if c.model]
    counts = [int(c.weight or 0) for c in clients]
    change = running_product(updates, counts, previous)
    round_ = Round(2, full.previous, clients, StoredModel({"w": previous + change}, "global"), values)
    assert replayed(round_).verdict.replays
    assert replayed(with_fused(round_, previous - change)).verdict is Verdict.INCONSISTENT


@pytest.mark.parametrize("rule", ["fedavg", "mean"])
@pytest.mark.parametrize("relative", [False, True])
def test_shares_add_up_to_the_movement(rule: str, relative: bool) -> None:
    generator = torch.Generator().manual_seed(8)
    previous, *stored = (torch.randn(7, generator=generator) for _ in range(5))
    fused = torch.randn(7, generator=generator)
    tensor = RoundTensor("w", previous, fused, 4, lambda k: stored[k], relative)
    coefficients = rule_named(rule).coefficients([1.0, 2.0, 3.0, 4.0], uncertainty=[0.0] * 4)
    weights = (1.0, 2.0, 3.0, 4.0)
    scene = Scene(2, (0, 1, 2, 3), weights, coefficients, ("w",), lambda _: tensor)
    shares = rule_named(rule).shares(tensor, scene)
    total = shares.clients.sum(0) + shares.server + shares.unexplained
    torch.testing.assert_close(total, fused.double() - previous.double(), rtol=1e-14, atol=1e-14)
    for k, p in enumerate(coefficients.values):
        update = stored[k].double() - (0 if relative else previous.double())
        torch.testing.assert_close(shares.clients[k], p * update, rtol=1e-14, atol=0)
    assert sum(coefficients.values) == pytest.approx(1)
    assert rule != "mean" or set(coefficients.values) == {0.25}


def client(weight: float | None, present: bool = True) -> ClientModel:
    return ClientModel("c", weight, StoredModel({}, "c") if present else None)


@pytest.mark.parametrize(
    ("rule", "clients", "positions", "values"),
    [
        ("fedavg", [client(3), client(1)], (0, 1), (0.75, 0.25)),
        ("fedavg", [client(3), client(1, present=False)], (0,), (0.75,)),
        ("fedavg", [client(3), client(None), client(1)], (0, 2), (0.75, 0.25)),
        ("fedavg", [client(3), client(0)], (0, 1), (1.0, 0.0)),
        ("mean", [client(3), client(None), client(1), client(2, present=False)], (0, 1, 2), (0.25, 0.25, 0.25)),
    ],
)
def test_who_took_part(
    rule: str, clients: list[ClientModel], positions: tuple[int, ...], values: tuple[float, ...]
) -> None:
    round_ = Round(1, None, tuple(clients), StoredModel({}, "global"))
    found = surveyed(rule_named(rule), round_)
    assert found.positions == positions
    assert found.coefficients == Coefficients(values, (0.0,) * len(values))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "rule None is not known"),
        ({"rule": "fedavgg"}, "did you mean 'fedavg'"),
        ({"rule": "fedavg", "form": "odd"}, "form 'odd' is not known"),
        ({"rule": "fedavg", "rate": 1}, "no key 'rate' for the rule fedavg"),
    ],
)
def test_a_wrong_table_is_named(table: dict[str, object], message: str) -> None:
    from flforensics.errors import UsageError

    with pytest.raises(UsageError, match=message):
        fusion_specification(table)
