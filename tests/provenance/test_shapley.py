"""Shapley values: against all permutations, reference values, the laws, and the promise of the intervals."""

from dataclasses import replace
from itertools import pairwise, permutations

import pytest
import torch
from scipy.stats import t as students_t
from torch import Tensor
from torch.func import functional_call

from flforensics.errors import UsageError
from flforensics.models import class_logits
from flforensics.provenance import shapley
from flforensics.provenance.games import Ends, Game, enumerated, sampled, student_t
from flforensics.provenance.trace import Answers
from flforensics.results import no_progress
from flforensics.rounds import Round
from tests import oracle
from tests.provenance import reference
from tests.provenance.architectures import ARCHITECTURES, Architecture, make_round
from tests.provenance.test_counterfactual import floating, rearranged, shares_of, target_value
from tests.provenance.test_laws import HIDDEN, close, every_architecture
from tests.provenance.test_oracle import double, matrix, single_calls, traced
from tests.provenance.test_rules import fused_round

WEIGHTS = (400.0, 250.0, 90.0, 120.0)
MANY = tuple(100.0 + 10 * k for k in range(14))


def slow(architecture: Architecture, round_: Round, found: Answers, groups: list[list[int]]) -> Tensor:
    """Every player's mean contribution over all orders, [N, P]: every model of every order is run."""
    network = oracle.written_out(architecture.network())
    new = double(round_.fused.tensors)
    previous, shares = shares_of(round_)
    unexplained = {key: new[key] - previous[key] - sum(share[key] for share in shares) for key in floating(new)}
    start = {key: previous[key] + unexplained[key] for key in unexplained}
    orders = list(permutations(range(len(groups))))
    scores = torch.zeros(len(found.inputs), len(groups), dtype=torch.float64)
    for n, (arguments, keywords) in enumerate(single_calls(architecture)):
        for order in orders:
            state = dict(start)
            before = _value(network, found, n, {**new, **state}, arguments, keywords)
            for player in order:
                for k in groups[player]:
                    state = {key: state[key] + shares[k][key] for key in state}
                after = _value(network, found, n, {**new, **state}, arguments, keywords)
                scores[n, player] += (after - before) / len(orders)
                before = after
    return scores


def _value(
    network: torch.nn.Module,
    found: Answers,
    n: int,
    state: dict[str, Tensor],
    arguments: tuple[Tensor, ...],
    keywords: dict[str, Tensor],
) -> Tensor:
    logits = class_logits(functional_call(network, state, arguments, keywords)).detach()[0]
    return target_value(found, n, logits)


@every_architecture
@pytest.mark.parametrize("function", ["margin", "logprob"])
def test_all_orders(name: str, function: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    found = traced(architecture, round_, method="shapley", target=function)
    truth = slow(architecture, round_, found, [[k] for k in range(4)])
    torch.testing.assert_close(matrix(found, round_), truth, rtol=1e-9, atol=1e-10)


@reference.needed
@pytest.mark.parametrize("case", reference.CASES)
def test_the_reference_archives(case: str) -> None:
    truth = torch.tensor(reference.expected(case)["ledger"]["shapley"], dtype=torch.float64)
    round_ = reference.exact_mean(case)
    found = reference.answers(case, round_=round_, method="shapley", target="logit", precise=True)
    assert (reference.scores(found, case) - truth).abs().max() < 1e-6
    plain = reference.answers(case, method="shapley", target="logit")
    assert (reference.scores(plain, case) - truth).abs().max() < 1e-4


@every_architecture
@pytest.mark.parametrize("precise", [True, False])
@pytest.mark.parametrize("function", ["margin", "logit", "logprob"])
def test_the_lines_add_up(name: str, function: str, precise: bool) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    found = traced(architecture, round_, method="shapley", target=function, precise=precise)
    for one in found.inputs:
        assert one.parts is not None
        lines = one.parts.previous + one.parts.server + one.parts.unexplained
        total = lines + sum(client.score for client in one.clients)
        rounding = 1e-12 if precise else 1e-5
        assert total == pytest.approx(one.target.value, abs=rounding)
        assert abs(one.parts.residual) <= rounding
        assert one.round_effect == pytest.approx(one.target.value - one.parts.previous)
        assert (one.nodes, one.converged, one.permutations, one.change) == (None,) * 4


def test_an_edit_has_a_line_of_its_own() -> None:
    """An edit of the global is what f does before anybody comes; a mean's server does nothing."""
    architecture = ARCHITECTURES["one logit"]
    round_ = fused_round(architecture, "fedavg")
    edit = torch.zeros(1, 144)
    edit[0, 70] = 0.25
    tensors = {**round_.fused.tensors, "1.weight": round_.fused.read("1.weight") + edit}
    edited = replace(round_, fused=replace(round_.fused, tensors=tensors))
    before, after = (traced(architecture, r, method="shapley", target="logit") for r in (round_, edited))
    pixels = architecture.call().arguments[0].flatten(1)[:, 70].tolist()
    checked = 0
    for pixel, one, other in zip(pixels, before.inputs, after.inputs, strict=True):
        assert one.parts is not None
        assert other.parts is not None
        assert one.parts.server == other.parts.server == 0
        if one.target.index == other.target.index == 1:  # class 0's logit is 0 by convention
            checked += 1
            assert other.parts.unexplained - one.parts.unexplained == pytest.approx(0.25 * pixel, abs=1e-6)
            assert [c.client for c in one.clients] == [c.client for c in other.clients]
    assert checked


@every_architecture
def test_a_client_equal_to_the_previous_global_scores_nothing(name: str) -> None:
    def idle(clients: list[dict[str, Tensor]], previous: dict[str, Tensor]) -> None:
        clients[1] = {key: tensor.clone() for key, tensor in previous.items()}

    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network(), change=idle)
    scores = matrix(traced(architecture, round_, method="shapley"), round_)
    assert scores[:, 1].abs().max() <= 1e-14 * scores.abs().max()
    assert scores[:, 0].abs().min() > 0


@every_architecture
def test_all_weights_doubled_changes_nothing(name: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    doubled = replace(round_, clients=tuple(replace(c, weight=2 * (c.weight or 0)) for c in round_.clients))
    one, two = (traced(architecture, r, method="shapley") for r in (round_, doubled))
    close(matrix(two, doubled), matrix(one, round_))


@every_architecture
def test_renaming_and_reordering_changes_nothing(name: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    renamed = tuple(replace(client, client=f"site {9 - k}") for k, client in enumerate(round_.clients))
    other = replace(round_, clients=renamed[::-1])
    one, two = (traced(architecture, r, method="shapley") for r in (round_, other))
    close(matrix(two, other).flip(1), matrix(one, round_), 1e-6)


@pytest.mark.parametrize("name", HIDDEN)
def test_a_permutation_of_neurons_applied_to_everybody_changes_nothing(name: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    other = rearranged(round_, name)
    one, two = (traced(architecture, r, method="shapley") for r in (round_, other))
    close(matrix(two, other), matrix(one, round_), 1e-8)


def test_reading_the_shares_again_gives_the_same() -> None:
    """With no memory to keep them, every state is made from the files."""
    architecture = ARCHITECTURES["cnn"]
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    one, two = (traced(architecture, round_, method="shapley", memory=m) for m in (1 << 30, 1))
    close(matrix(one, round_), matrix(two, round_), 1e-12)


# ----------------------------------------------------------------- groups


def test_groups_are_players() -> None:
    architecture = ARCHITECTURES["cnn"]
    round_ = make_round(architecture.network(), weights=(*WEIGHTS, 60.0))
    groups = ("south=client-4,client-0", "north=client-1,client-3")
    found = traced(architecture, round_, method="shapley", groups=groups)
    truth = slow(architecture, round_, found, [[0, 4], [1, 3], [2]])
    total = sum((*WEIGHTS, 60.0))
    expected = {
        "south": (("client-4", "client-0"), 460.0 / total),
        "north": (("client-1", "client-3"), 370.0 / total),
        "client-2": (None, 90.0 / total),
    }
    for row, one in zip(truth, found.inputs, strict=True):
        assert {c.client: (c.members, pytest.approx(c.weight)) for c in one.clients} == expected
        scores = {client.client: client.score for client in one.clients}
        assert [scores[name] for name in expected] == pytest.approx(row.tolist(), rel=1e-9, abs=1e-10)


def test_a_group_of_one_is_its_client() -> None:
    architecture = ARCHITECTURES["cnn"]
    round_ = make_round(architecture.network())
    plain = traced(architecture, round_, method="shapley")
    named = traced(architecture, round_, method="shapley", groups=("alone=client-1",))
    for one, other in zip(plain.inputs, named.inputs, strict=True):
        (group,) = (client for client in other.clients if client.client == "alone")
        assert group.members == ("client-1",)
        assert group.score == pytest.approx({client.client: client.score for client in one.clients}["client-1"])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (("north",), "north is no group"),
        (("=client-0",), "is no group"),
        (("north=",), "is no group"),
        (("north=client-0,client-9",), "client-9 did not take part in round 3"),
        (("north=client-0,client-0",), "client-0 is named twice"),
        (("north=client-0", "south=client-0"), "client-0 is named twice"),
        (("north=client-0", "north=client-1"), "two players named north"),
        (("client-2=client-0",), "two players named client-2"),
    ],
)
def test_what_is_no_group(groups: tuple[str, ...], words: str) -> None:
    architecture = ARCHITECTURES["one logit"]
    with pytest.raises(UsageError, match=words):
        traced(architecture, make_round(architecture.network()), method="shapley", groups=groups)


# --------------------------------------------------------------- sampling


def test_many_clients_are_sampled() -> None:
    """14 players of a linear network under a target that is not linear, against all 16,384 coalitions."""
    architecture = ARCHITECTURES["one logit"]
    round_ = make_round(architecture.network(), weights=MANY)
    found = traced(architecture, round_, method="shapley", target="logprob")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapley, "EXACT", 14)
        truth = traced(architecture, round_, method="shapley", target="logprob")
    covered = []
    for one, exact in zip(found.inputs, truth.inputs, strict=True):
        values = {client.client: client.score for client in exact.clients}
        assert exact.permutations is None
        assert one.permutations is not None
        assert one.permutations >= 64
        assert one.converged
        assert one.parts is not None
        assert one.parts.residual == pytest.approx(0, abs=1e-12)
        movement = sum(abs(client.score) for client in one.clients) + abs(one.parts.unexplained)
        for client in one.clients:
            assert client.interval is not None
            low, high = client.interval
            assert (low + high) / 2 == pytest.approx(client.score)
            assert (high - low) / 2 <= 0.01 * movement
            covered.append(low - 1e-12 <= values[client.client] <= high + 1e-12)
    assert sum(covered) >= 0.8 * len(covered)


def test_the_seed_decides_and_nothing_else() -> None:
    architecture = ARCHITECTURES["one logit"]
    round_ = make_round(architecture.network(), weights=MANY)
    one, same, other = (
        matrix(traced(architecture, round_, method="shapley", target="logprob", seed=seed), round_)
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_cap_that_is_too_low_is_said() -> None:
    architecture = ARCHITECTURES["one logit"]
    round_ = make_round(architecture.network(), weights=MANY)
    settings = {"method": "shapley", "target": "logprob", "tolerance": 1e-9, "max_permutations": 41}
    found = traced(architecture, round_, **settings)
    assert {one.permutations for one in found.inputs} == {40}
    assert {one.converged for one in found.inputs} == {False}
    (warning,) = found.warnings
    assert "did not converge within 41 permutations: raise --max-permutations" in warning


def test_overlapping_intervals_name_nobody() -> None:
    """Two clients with the same update and weight cannot be told apart, however they come out."""

    def twins(clients: list[dict[str, Tensor]], _previous: dict[str, Tensor]) -> None:
        clients[0]["8.bias"] = clients[0]["8.bias"] + torch.tensor([0.0, 20.0, 0.0])
        clients[1] = dict(clients[0])

    architecture = ARCHITECTURES["cnn"]
    round_ = make_round(architecture.network(), weights=(5000.0, 5000.0, *MANY[:12]), change=twins)
    found = traced(architecture, round_, method="shapley", tolerance=0.2, max_permutations=32)
    for one in found.inputs:
        assert {client.client for client in one.clients[:2]} == {"client-0", "client-1"}
        assert one.clients[0].score != one.clients[1].score
        assert one.responsible.kind != "client"


def games(count: int, players: int, *, seed: int) -> Tensor:
    """Random games [N, 2^P]: single players, pairs, a product of all, and a kink, as networks have them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    members = torch.tensor([[code >> k & 1 for k in range(players)] for code in range(1 << players)]).double()
    single, pair = random(count, players), 0.3 * random(count, players, players)
    table = single @ members.T + torch.einsum("ck,nkl,cl->nc", members, pair, members)
    for strength in (1.0, 2.0):
        table = table + strength * (random(count, players) @ members.T + random(count, 1)).relu()
    return table + 0.5 * (random(count, players) @ members.T).tanh()


def playing(table: Tensor, calls: list[int] | None = None) -> Game:
    """The table as a game, which counts its calls."""

    def value(coalition: int, rows: Tensor) -> Tensor:
        if calls is not None:
            calls.append(len(rows))
        return table[rows, coalition]

    return value


def ends(table: Tensor) -> Ends:
    return Ends(table[:, 0], table[:, -1])


def by_all_orders(table: Tensor, players: int) -> Tensor:
    """The definition: the mean contribution over all orders."""
    scores = torch.zeros(len(table), players, dtype=torch.float64)
    orders = list(permutations(range(players)))
    for order in orders:
        coalition = 0
        for player in order:
            scores[:, player] += table[:, coalition | 1 << player] - table[:, coalition]
            coalition |= 1 << player
    return scores / len(orders)


@pytest.mark.parametrize("players", [1, 2, 3, 6])
def test_enumeration_is_the_definition(players: int) -> None:
    table, calls = games(5, players, seed=players), list[int]()
    found = enumerated(playing(table, calls), players, ends=ends(table), progress=no_progress)
    torch.testing.assert_close(found, by_all_orders(table, players), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(1), table[:, -1] - table[:, 0], rtol=1e-12, atol=1e-12)
    assert len(calls) == (1 << players) - 2, "every coalition but the two that are known, once"


def test_coalitions_come_in_gray_code_order() -> None:
    seen: list[int] = []

    def value(coalition: int, rows: Tensor) -> Tensor:
        seen.append(coalition)
        return torch.zeros(len(rows), dtype=torch.float64)

    zero = torch.zeros(1, dtype=torch.float64)
    enumerated(value, 6, ends=Ends(zero, zero), progress=no_progress)
    assert sorted([0, *seen, 63]) == list(range(64))
    steps = [(one ^ other).bit_count() for one, other in pairwise(seen)]
    assert steps.count(1) >= len(steps) - 1
    assert max(steps) <= 2, "the only longer step is over the coalition of everybody"


@pytest.mark.parametrize("freedom", [7, 15, 31, 63, 127, 499])
def test_students_quantile(freedom: int) -> None:
    truth = students_t.ppf(0.975, freedom)
    assert float(student_t(torch.tensor([freedom]))) == pytest.approx(truth, abs=1e-4 if freedom < 15 else 2e-6)


@pytest.mark.parametrize("tolerance", [0.02, 1e-9], ids=["stopped by the rule", "stopped by the cap"])
def test_intervals_cover_the_exact_values_in_95_of_100_cases(tolerance: float) -> None:
    """10 players, 40 runs of 20 games with seeds of their own: 8,000 intervals."""
    inside, lengths = [], []
    for seed in range(40):
        table = games(20, 10, seed=seed)
        exact = enumerated(playing(table), 10, ends=ends(table), progress=no_progress)
        found = sampled(
            playing(table),
            10,
            ends=ends(table),
            tolerance=tolerance,
            other_movement=torch.zeros(20, dtype=torch.float64),
            limit=256,
            seed=seed,
            progress=no_progress,
        )
        inside.append((found.scores - exact).abs() <= found.half_widths)
        lengths.append(found.permutations)
        torch.testing.assert_close(found.scores.sum(1), table[:, -1] - table[:, 0], rtol=1e-12, atol=1e-12)
        assert torch.equal(found.converged, _reached(found.half_widths, found.scores, tolerance))
    coverage = float(torch.cat(inside).double().mean())
    assert 0.93 <= coverage <= 0.97
    assert len(torch.cat(lengths).unique()) == (1 if tolerance < 0.01 else 3)


def _reached(half_widths: Tensor, scores: Tensor, tolerance: float) -> Tensor:
    return half_widths.amax(1) <= tolerance * scores.abs().sum(1)


def test_a_pair_of_walks_cancels_what_two_players_do_together() -> None:
    """A game of singles and pairs is exact after one pair; inputs that have converged are not played on."""
    generator = torch.Generator().manual_seed(1)
    members = torch.tensor([[code >> k & 1 for k in range(8)] for code in range(256)]).double()
    pair = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    quadratic = torch.einsum("ck,kl,cl->c", members, pair, members)
    table = torch.stack([quadratic, games(1, 8, seed=2)[0]])
    calls: list[int] = []
    found = sampled(
        playing(table, calls),
        8,
        ends=ends(table),
        tolerance=1e-3,
        other_movement=torch.zeros(2, dtype=torch.float64),
        limit=200,
        seed=0,
        progress=no_progress,
    )
    exact = enumerated(playing(table), 8, ends=ends(table), progress=no_progress)
    torch.testing.assert_close(found.scores[0], exact[0], rtol=1e-10, atol=1e-12)
    assert found.permutations.tolist() == [64, 200]
    assert found.converged.tolist() == [True, False]
    assert calls == [2] * (64 * 7) + [1] * (136 * 7)
