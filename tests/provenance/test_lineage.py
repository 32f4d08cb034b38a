"""The lineage: it adds up whatever the archive lacks, equals the ledger of each round, and finds who is gone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flforensics.errors import EvidenceError, NotComputableError
from flforensics.fusion import rule_named
from flforensics.models import class_logits
from flforensics.provenance.lineage import Step
from flforensics.provenance.trace import Questions
from flforensics.results import Verdict
from flforensics.rounds import StoredModel
from tests import oracle
from tests.provenance.architectures import ARCHITECTURES, Architecture
from tests.provenance.federations import (
    WEIGHTS,
    added_up,
    federation,
    first_step,
    lineage,
    next_step,
    ruled,
    scores,
)
from tests.provenance.test_oracle import double, single_calls, traced

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
CNN, NORM, LINEAR = (ARCHITECTURES[name] for name in ("cnn", "batch norm", "one logit"))
Steps = list[Step]


def margins(architecture: Architecture, state: object, found: object) -> list[float]:
    """The margin of every input under one state, by running the network."""
    network = architecture.network().double()
    values = []
    for one, (arguments, keywords) in zip(found.inputs, single_calls(architecture), strict=True):  # type: ignore[attr-defined]
        logits = class_logits(functional_call(network, double(state), arguments, dict(keywords)))[0]
        values.append(float(logits[one.target.index] - logits[one.target.against]))
    return values


def tensors(step: Step) -> dict[str, Tensor]:
    assert step.fused is not None
    return dict(step.fused.tensors)


@every_architecture
def test_the_lines_add_up(name: str) -> None:
    architecture = ARCHITECTURES[name]
    steps = federation(architecture, takes_part=("abc", "bc"))
    found = lineage(steps, architecture, tolerance=0.05)
    firsts, lasts = (margins(architecture, tensors(steps[k]), found) for k in (0, -1))
    for one, first, last in zip(found.inputs, firsts, lasts, strict=True):
        assert (one.initial.round, [round_.round for round_ in one.rounds], one.gaps) == (0, [1, 2], ())
        assert one.initial.value == pytest.approx(first, abs=1e-9)
        assert one.target.value == pytest.approx(last, abs=1e-9)
        assert added_up(one) == pytest.approx(one.target.value, abs=1e-12)
        totals = one.totals.server + one.totals.unexplained + one.totals.residual
        by_client = one.initial.value + sum(client.score for client in one.clients) + totals
        assert by_client == pytest.approx(one.target.value, abs=1e-12)
        for round_ in one.rounds:
            movement = sum(abs(client.score) for client in round_.clients)
            assert round_.converged
            assert abs(round_.residual) <= 0.05 * movement
            assert abs(round_.unexplained) <= 1e-4 * movement


@every_architecture
def test_every_round_against_the_slow_definition(name: str) -> None:
    architecture = ARCHITECTURES[name]
    steps = federation(architecture, takes_part=("abc", "ac"))
    found = lineage(steps, architecture, nodes=2)

    def target(n: int, logits: Tensor) -> Tensor:
        one = found.inputs[n].target
        assert one.against is not None
        return logits[0, one.index] - logits[0, one.against]

    for step in steps[1:]:
        assert step.round is not None
        assert step.round.previous is not None
        previous = double(step.round.previous.tensors)
        total = sum(client.weight or 0 for client in step.round.clients)
        shares = []
        for client in step.round.clients:
            assert client.model is not None
            state = double(client.model.tensors)
            shares.append({k: (client.weight or 0) / total * (state[k] - previous[k]) for k in state})
        truth = oracle.ledger(
            architecture.network(),
            previous,
            double(tensors(step)),
            shares,
            single_calls(architecture),
            target=target,
            logits=class_logits,
            nodes=2,
        )
        mine = [[scores(one)[step.number, client.client] for client in step.round.clients] for one in found.inputs]
        torch.testing.assert_close(torch.tensor(mine, dtype=torch.float64), truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("function", ["margin", "logit", "logprob"])
@pytest.mark.parametrize("name", ["cnn", "batch norm", "one logit"])
def test_one_round_is_what_trace_says(name: str, function: str) -> None:
    architecture = ARCHITECTURES[name]
    steps = federation(architecture, takes_part=("abc",))
    assert steps[1].round is not None
    for mine, its in zip(
        lineage(steps, architecture, target=function).inputs,
        traced(architecture, steps[1].round, target=function).inputs,
        strict=True,
    ):
        assert its.parts is not None
        assert (mine.target, mine.prediction) == (its.target, its.prediction)
        named = [(one.responsible.kind, one.responsible.client, one.responsible.resolved) for one in (mine, its)]
        assert named[0] == named[1]
        assert mine.initial.prediction == its.before
        assert mine.initial.value == pytest.approx(its.parts.previous, abs=1e-12)
        assert mine.totals.residual == pytest.approx(its.parts.residual, abs=1e-12)
        for left, right in zip(mine.clients, its.clients, strict=True):
            assert (left.client, left.rank, left.rounds) == (right.client, right.rank, 1)
            assert (left.score, left.share) == pytest.approx((right.score, right.share), abs=1e-12)


def test_renaming_and_reordering_changes_nothing() -> None:
    steps = federation(CNN)

    def renamed(step: Step) -> Step:
        if step.round is None:
            return step
        clients = tuple(replace(client, client=f"site {client.client}") for client in step.round.clients)
        return replace(step, round=replace(step.round, clients=clients[::-1]))

    others = lineage([renamed(step) for step in steps], CNN, nodes=2).inputs
    for one, other in zip(lineage(steps, CNN, nodes=2).inputs, others, strict=True):
        assert [f"site {client.client}" for client in one.clients] == [client.client for client in other.clients]
        for left, right in zip(one.clients, other.clients, strict=True):
            assert left.score == pytest.approx(right.score, abs=1e-9)


def test_inputs_are_independent() -> None:
    def alone(questions: Questions) -> list[Questions]:
        rows = [slice(n, n + 1) for n in range(questions.call.count)]
        return [Questions(questions.call[row], questions.subjects[row]) for row in rows]

    steps = federation(NORM)
    together, apart = lineage(steps, NORM, nodes=2), lineage(steps, NORM, nodes=2, batches=alone)
    for one, other in zip(together.inputs, apart.inputs, strict=True):
        assert one.subject == other.subject
        assert scores(one) == pytest.approx(scores(other), abs=1e-9)


def without_global(steps: Steps) -> Steps:
    """Round 2's global is lost, and with it where round 3 started."""
    assert steps[3].round is not None
    after = replace(steps[3], round=replace(steps[3].round, previous=None))
    return [*steps[:2], Step(2, None, reason="it is lost"), after, *steps[4:]]


def without_clients(steps: Steps) -> Steps:
    return [*steps[:2], Step(2, steps[2].fused, reason="nobody is stored"), *steps[3:]]


def without_files(steps: Steps) -> Steps:
    assert steps[2].round is not None
    clients = tuple(replace(client, model=None) for client in steps[2].round.clients)
    return [*steps[:2], replace(steps[2], round=replace(steps[2].round, clients=clients)), *steps[3:]]


def with_another_start(steps: Steps) -> Steps:
    """Round 3 did not start from the global of round 2."""
    other = StoredModel({name: 1.01 * tensor for name, tensor in tensors(steps[2]).items()}, "another")
    assert steps[3].round is not None
    return [*steps[:3], replace(steps[3], round=replace(steps[3].round, previous=other)), *steps[4:]]


def with_a_variance_of_zero(steps: Steps) -> Steps:
    return with_global(steps, "1.running_var", lambda tensor: 0 * tensor)


def with_a_nan(steps: Steps) -> Steps:
    return with_global(steps, "5.bias", lambda tensor: tensor * torch.nan)


def with_a_strange_shape(steps: Steps) -> Steps:
    assert steps[2].round is not None
    first, *others = steps[2].round.clients
    assert first.model is not None
    odd = StoredModel({**first.model.tensors, "5.bias": torch.zeros(7)}, "2/a")
    clients = (replace(first, model=odd), *others)
    return [*steps[:2], replace(steps[2], round=replace(steps[2].round, clients=clients)), *steps[3:]]


def with_global(steps: Steps, name: str, change: Callable[[Tensor], Tensor]) -> Steps:
    """Round 2's global changed, as round 3 finds it."""
    fused = StoredModel({**tensors(steps[2]), name: change(tensors(steps[2])[name])}, "global-2")
    assert steps[2].round is not None
    assert steps[3].round is not None
    second = replace(steps[2], fused=fused, round=replace(steps[2].round, fused=fused))
    return [*steps[:2], second, replace(steps[3], round=replace(steps[3].round, previous=fused)), *steps[4:]]


GAPS: dict[str, tuple[Callable[[Steps], Steps], list[tuple[int, int, str]], list[int]]] = {
    "no global": (without_global, [(1, 3, "it is lost; round 3 has no previous global")], [1, 4]),
    "no clients": (without_clients, [(1, 2, "nobody is stored")], [1, 3, 4]),
    "no files": (without_files, [(1, 2, "round 2 has no client with both a file and a weight")], [1, 3, 4]),
    "another start": (
        with_another_start,
        [(2, 2, "the model that round 3 started from is not the global of round 2")],
        [1, 2, 3, 4],
    ),
    "variance": (
        with_a_variance_of_zero,
        [(1, 2, "the ledger of round 2 is not computable"), (2, 3, "the ledger of round 3 is not computable")],
        [1, 4],
    ),
    "not finite": (with_a_nan, [(1, 3, "the target is not finite under global-2")], [1, 4]),
    "strange shape": (with_a_strange_shape, [(1, 2, "2/a: tensor '5.bias' has shape (7,)")], [1, 3, 4]),
}


@pytest.mark.parametrize("case", GAPS)
def test_gaps_are_stated_and_everything_still_adds_up(case: str) -> None:
    change, gaps, rounds = GAPS[case]
    steps = federation(NORM)
    whole = lineage(steps, NORM, nodes=2).inputs
    for one, other in zip(lineage(change(steps), NORM, nodes=2).inputs, whole, strict=True):
        assert [(gap.start, gap.end) for gap in one.gaps] == [(start, end) for start, end, _ in gaps]
        for gap, (_, _, reason) in zip(one.gaps, gaps, strict=True):
            assert gap.reason.startswith(reason)
        assert [round_.round for round_ in one.rounds] == rounds
        assert one.target == other.target
        assert added_up(one) == pytest.approx(one.target.value, abs=1e-12)
        assert one.totals.gaps == pytest.approx(sum(gap.movement for gap in one.gaps))
        same = {key: score for key, score in scores(other).items() if key[0] in rounds and key[0] != 3}
        assert {key: score for key, score in scores(one).items() if key[0] != 3} == pytest.approx(same, abs=1e-9)


def test_a_start_in_another_file_that_is_the_same_model_is_no_gap() -> None:
    steps = federation(NORM)
    assert steps[3].round is not None
    copy = StoredModel(tensors(steps[2]), "a copy")
    copied = [*steps[:3], replace(steps[3], round=replace(steps[3].round, previous=copy)), steps[4]]
    assert lineage(copied, NORM, nodes=2).inputs == lineage(steps, NORM, nodes=2).inputs


def test_where_nothing_is_known_of_the_beginning() -> None:
    steps = federation(CNN)
    assert steps[1].round is not None
    headless = [replace(steps[1], round=replace(steps[1].round, previous=None)), *steps[2:]]
    found = lineage(headless, CNN, nodes=2)
    assert {one.initial.round for one in found.inputs} == {1}
    assert "the lineage begins with the global of round 1: round 1 has no previous global" in found.warnings
    for one in found.inputs:
        assert added_up(one) == pytest.approx(one.target.value, abs=1e-12)


def test_nothing_before_the_last_round_is_no_lineage() -> None:
    steps = federation(CNN)
    with pytest.raises(NotComputableError) as caught:
        lineage(steps[:1], CNN)
    assert caught.value.reason == "PREVIOUS"
    with pytest.raises(EvidenceError, match="it is lost"):
        lineage([*steps[:2], Step(2, None, reason="it is lost")], CNN)
    broken = StoredModel({name: tensor * torch.nan for name, tensor in tensors(steps[1]).items()}, "global-1")
    with pytest.raises(NotComputableError, match="not finite under the global of round 1"):
        lineage([steps[0], replace(steps[1], fused=broken)], CNN)


def test_server_momentum_is_the_servers_line() -> None:
    rule = rule_named("fedavgm", {"learning_rate": 1.0, "momentum": 0.7})
    for one in lineage(ruled(CNN, rule), CNN, rule=rule, nodes=2).inputs:
        assert [round_.server != 0 for round_ in one.rounds] == [False, True, True]
        assert added_up(one) == pytest.approx(one.target.value, abs=1e-12)
        for round_ in one.rounds:
            assert abs(round_.unexplained) <= 1e-4 * sum(abs(client.score) for client in round_.clients)


def test_a_lost_round_takes_the_ledgers_of_a_rule_with_memory() -> None:
    rule = rule_named("fedadagrad", {"learning_rate": 0.01, "tau": 0.001, "initial_v": 0.0})
    steps = ruled(CNN, rule)
    assert steps[1].round is not None
    steps[1] = Step(1, steps[1].fused, reason="nobody is stored")
    steps[2:] = [replace(step, earlier=step.earlier[1:]) for step in steps[2:]]
    for one in lineage(steps, CNN, rule=rule).inputs:
        assert one.rounds == ()
        assert [gap.reason.partition(":")[0] for gap in one.gaps] == [
            "nobody is stored",
            "server state unknown at round 2",
            "server state unknown at round 3",
        ]
        assert added_up(one) == pytest.approx(one.target.value, abs=1e-12)
        assert one.responsible.kind == "gaps"


# ----------------------------------------------------------------- who is named


def linear_run() -> tuple[Steps, Tensor]:
    """Four rounds of a linear network, moved along one direction, most by c, which is there in rounds 1 and 2."""
    direction = CNN.call().arguments[0][0].flatten()
    zero = {"1.weight": torch.zeros(1, 144), "1.bias": torch.zeros(1)}
    steps = [first_step(zero)]
    for labels in ("abc", "abc", "ab", "ab"):
        here = tensors(steps[-1])
        step = {"a": -0.001, "b": 0.0005, "c": 0.02}
        states = {one: {**here, "1.weight": here["1.weight"] + step[one] * direction} for one in labels}
        steps.append(next_step(steps[-1], states))
    return steps, direction


def test_a_client_that_is_gone_is_found() -> None:
    steps, _ = linear_run()
    one = lineage(steps, LINEAR).inputs[0]
    assert one.responsible.client == "c"
    assert (one.clients[0].rounds, one.clients[0].strongest[0]) == (2, 2)
    assert steps[-1].round is not None
    last = traced(LINEAR, steps[-1].round).inputs[0]
    assert "c" not in {client.client for client in last.clients}
    assert last.responsible.kind != "client"


def test_the_largest_step_is_found_though_many_small_ones_sum_higher() -> None:
    """a pushes every round; c did more in one round than a in any, and was then pushed back by b."""
    direction = CNN.call().arguments[0][0].flatten()
    steps = [first_step({"1.weight": torch.zeros(1, 144), "1.bias": torch.zeros(1)})]
    pushes = ({"a": 0.004, "c": 0.03}, {"a": 0.004, "b": -0.002}, {"a": 0.004, "b": -0.002})
    for push in pushes:
        here = tensors(steps[-1])
        states = {one: {**here, "1.weight": here["1.weight"] + step * direction} for one, step in push.items()}
        steps.append(next_step(steps[-1], states))
    one = lineage(steps, LINEAR).inputs[0]
    cells = {(round_.round, client.client): client.score for round_ in one.rounds for client in round_.clients}
    assert one.responsible.client == "a"
    assert one.largest_step is not None
    assert (one.largest_step.round, one.largest_step.client, one.largest_step.replays) == (1, "c", True)
    assert one.largest_step.score == max(cells.values())
    doubtful = lineage(steps, LINEAR, verdicts={1: Verdict.INCONSISTENT}).inputs[0].largest_step
    assert doubtful is not None
    assert not doubtful.replays


def test_a_departure_is_what_a_client_had_not_done_before() -> None:
    """By arithmetic: a pushes hard in every round, once harder, b and c a little, and once c does not."""
    direction = CNN.call().arguments[0][0].flatten()
    steps = [first_step({"1.weight": torch.zeros(1, 144), "1.bias": torch.zeros(1)})]
    pushes = {"a": (0.050, 0.065, 0.050), "b": (0.010, 0.009, 0.010), "c": (0.010, 0.010, 0.060)}
    for number in range(3):
        here = tensors(steps[-1])
        states = {
            one: {**here, "1.weight": here["1.weight"] + push[number] * direction} for one, push in pushes.items()
        }
        steps.append(next_step(steps[-1], states))
    rounds = [step.round for step in steps[1:] if step.round is not None]
    steps = [steps[0], *(replace(step, before=tuple(rounds[:n])) for n, step in enumerate(steps[1:]))]
    one = lineage(steps, LINEAR).inputs[0]
    assert one.responsible.client == "a"
    assert one.largest_step is not None
    assert one.largest_step.client == "a"
    assert all(client.departure is None for client in one.rounds[0].clients)
    last = {client.client: client for client in one.rounds[2].clients}
    now = {name: push[2] for name, push in pushes.items()}
    usual = {name: (push[0] + push[1]) / 2 for name, push in pushes.items()}
    sizes = {name: (push[0] ** 2 + push[1] ** 2) / 2 * (1 + 1 / 2) for name, push in pushes.items()}
    ratios = {name: (now[name] - usual[name]) ** 2 / sizes[name] for name in pushes}
    median = sorted(ratios.values())[1]
    effects = {name: client.score * (now[name] - usual[name]) / now[name] for name, client in last.items()}
    noise = 1.4826 * sorted(abs(effect) for effect in effects.values())[1]
    for name, client in last.items():
        assert client.departure == pytest.approx(effects[name], rel=1e-4, abs=1e-6)
        excess = max(0.0, ratios[name] / median - 1)
        assert client.suspicion == pytest.approx(
            excess * (1 + max(0.0, effects[name]) / noise), rel=1e-3, abs=1e-6
        )
    assert one.most_suspect is not None
    assert (one.most_suspect.round, one.most_suspect.client) == (3, "c")
    assert one.most_suspect.score == last["c"].departure
    assert one.most_suspect.replays
    doubtful = lineage(steps, LINEAR, verdicts={1: Verdict.INCONSISTENT}).inputs[0].most_suspect
    assert doubtful is not None
    assert not doubtful.replays, "the first round is a part of what was usual"


def test_a_client_that_is_new_has_no_departure() -> None:
    steps = [first_step({"1.weight": torch.zeros(1, 144), "1.bias": torch.zeros(1)})]
    for members in ("ab", "ab", "abc"):
        here = tensors(steps[-1])
        states = {name: {**here, "1.weight": here["1.weight"] + 0.01 * (1 + ord(name) % 5)} for name in members}
        steps.append(next_step(steps[-1], states))
    rounds = [step.round for step in steps[1:] if step.round is not None]
    steps[-1] = replace(steps[-1], before=tuple(rounds[:-1]))
    last = lineage(steps, LINEAR).inputs[0].rounds[-1]
    assert all((client.departure is None) == (client.suspicion is None) for client in last.clients)
    assert {client.client: client.departure is None for client in last.clients} == {
        "a": False,
        "b": False,
        "c": True,
    }


def test_a_rule_without_factors_has_no_departures_and_says_so() -> None:
    steps = [first_step({"1.weight": torch.zeros(1, 144), "1.bias": torch.zeros(1)})]
    for _ in range(2):
        here = tensors(steps[-1])
        states = {name: {**here, "1.weight": here["1.weight"] + 0.01 * k} for k, name in enumerate("abc", 1)}
        steps.append(next_step(steps[-1], states))
    rounds = [step.round for step in steps[1:] if step.round is not None]
    steps[-1] = replace(steps[-1], before=(rounds[0],))
    found = lineage(steps, LINEAR, rule=rule_named("median"))
    assert found.inputs[0].most_suspect is None
    assert any("round 2: no departures: the rule of round 2" in warning for warning in found.warnings)


def test_an_edit_of_a_global_stands_in_unexplained_and_spoils_the_next_round() -> None:
    """On a linear network: the edit's part of the margin, which the next round's clients undo."""
    steps, direction = linear_run()
    edited = StoredModel(
        {**tensors(steps[2]), "1.weight": tensors(steps[2])["1.weight"] + 0.001 * direction}, "edited"
    )
    assert steps[2].round is not None
    assert steps[3].round is not None
    steps[2] = replace(steps[2], fused=edited, round=replace(steps[2].round, fused=edited))
    steps[3] = replace(steps[3], round=replace(steps[3].round, previous=edited))
    found = lineage(steps, LINEAR, verdicts={2: Verdict.INCONSISTENT})
    one = found.inputs[0]
    assert one.rounds[1].unexplained == pytest.approx(0.001 * float(direction.double().square().sum()), rel=1e-5)
    assert one.responsible.kind == "none"
    assert one.responsible.reason.startswith("the largest total rests on round 2, and that does not replay")
    assert added_up(one) == pytest.approx(one.target.value, abs=1e-12)
    assert (
        "no client with a part in rounds 2-3 is named; --from 3 leaves out what does not replay" in found.warnings
    )


def test_a_round_that_cannot_be_judged_spoils_only_itself() -> None:
    steps, _ = linear_run()
    one = lineage(steps, LINEAR, verdicts={4: Verdict.INDETERMINATE}).inputs[0]
    assert one.responsible.client == "c"
    one = lineage(steps, LINEAR, verdicts={1: Verdict.INDETERMINATE}).inputs[0]
    assert "rests on round 1," in one.responsible.reason


def test_what_moved_in_doubtful_rounds_could_be_anybodys() -> None:
    steps, direction = linear_run()
    here = tensors(steps[-1])
    far = {"a": 0.004, "b": -0.006}
    states = {one: {**here, "1.weight": here["1.weight"] + step * direction} for one, step in far.items()}
    steps.append(next_step(steps[-1], states))
    assert lineage(steps, LINEAR).inputs[0].responsible.client == "c"
    one = lineage(steps, LINEAR, verdicts={5: Verdict.INCONSISTENT}).inputs[0]
    assert one.responsible.kind == "none"
    assert one.responsible.reason.endswith("closer together than what moved in rounds that do not replay")


def test_a_seeded_federation_with_flipped_labels() -> None:
    """A linear network, really trained: the culprit shifts its labels in round 3 and is gone in 4 and 5."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(3, 144, generator=generator) / 6

    def data(count: int) -> tuple[Tensor, Tensor]:
        classes = torch.randint(0, 3, (count,), generator=generator)
        return centres[classes] + torch.randn(count, 144, generator=generator) / 3, classes

    def trained(
        state: dict[str, Tensor], xs: Tensor, ys: Tensor, *, rate: float, epochs: int
    ) -> dict[str, Tensor]:
        network = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
        network.load_state_dict(state)
        optimizer = torch.optim.SGD(network.parameters(), lr=rate)
        for _ in range(epochs):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(xs), ys).backward()
            optimizer.step()
        return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    held = {label: data(60) for label in WEIGHTS}
    table = {"type": "Linear", "in_features": 144, "out_features": 3}
    architecture = Architecture({"source": "layers", "layers": [{"type": "Flatten"}, table]}, False, ("1",))
    steps = [first_step({"1.weight": torch.zeros(3, 144), "1.bias": torch.zeros(3)})]
    for number in range(1, 6):
        here, states = tensors(steps[-1]), {}
        for label, (xs, ys) in held.items():
            if label == "a" and number == 3:
                states[label] = trained(here, xs, (ys + 1) % 3, rate=1.0, epochs=60)
            elif label != "a" or number < 3:
                states[label] = trained(here, xs, ys, rate=0.2 if number < 3 else 0.01, epochs=2)
        steps.append(next_step(steps[-1], states))
    found = lineage(steps, architecture, batches=lambda questions: [_flipped(questions, centres)])
    assert [one.prediction.index for one in found.inputs] == [1, 2, 0]
    assert [one.responsible.client for one in found.inputs] == ["a"] * 3
    assert {one.clients[0].strongest[0] for one in found.inputs} == {3}
    assert steps[-1].round is not None
    assert "a" not in {client.client for client in steps[-1].round.clients}


def _flipped(questions: Questions, centres: Tensor) -> Questions:
    """The three centres as inputs, instead of random ones."""
    return Questions(replace(questions.call, arguments=(centres.reshape(3, 1, 12, 12),)), questions.subjects[:3])
