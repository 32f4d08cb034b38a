"""Grades on rounds of a linear network, whose answers are known by construction; repair and controls by loops."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from flforensics.fusion import rule_named
from flforensics.gradients import Call
from flforensics.models import build_network, class_logits
from flforensics.provenance import controls
from flforensics.provenance.case import Settings
from flforensics.provenance.confirm import MOST_CLASSES, Inquiry, confirmed
from flforensics.provenance.trace import Answers, Questions
from flforensics.results import Confirmation, InputTrace, Others, Rate, Repair, Subject
from flforensics.rounds import Round
from tests.provenance.architectures import ARCHITECTURES, make_round, mean_state, round_from

FOUR = (1.0, 1.0, 1.0, 1.0)
X = torch.tensor([[4.0, 0.0, 0.0, 0.0]])


def linear(classes: int = 3) -> dict[str, object]:
    return {"source": "layers", "layers": [{"type": "Linear", "in_features": 4, "out_features": classes}]}


def state(weight: dict[tuple[int, int], float], bias: dict[int, float], classes: int = 3) -> dict[str, Tensor]:
    """A linear network's state: {(class, feature): value} and {class: value}, zero elsewhere."""
    tensors = {"0.weight": torch.zeros(classes, 4), "0.bias": torch.zeros(classes)}
    for place, value in weight.items():
        tensors["0.weight"][place] = value
    for index, value in bias.items():
        tensors["0.bias"][index] = value
    return tensors


@dataclass(frozen=True)
class Scenario:
    """A previous global and the clients' updates to it, each as (weights, biases)."""

    previous: tuple[dict[tuple[int, int], float], dict[int, float]]
    updates: tuple[tuple[dict[tuple[int, int], float], dict[int, float]], ...]
    weights: tuple[float, ...] = FOUR

    def round(self) -> Round:
        previous = state(*self.previous)
        clients = [
            {name: previous[name] + change for name, change in state(*update).items()} for update in self.updates
        ]
        return round_from(previous, clients, list(self.weights))


# The others write about features that the input lacks and noise has.
ELSEWHERE = tuple(({(2, feature): 12.0, (0, feature): -6.0}, {}) for feature in (1, 2, 3))

# Who teaches that feature 0 means class 1, which the model did not believe.
CULPRIT = Scenario(({(0, 0): 0.25}, {}), (({(1, 0): 4.0}, {}), *ELSEWHERE))
# The same, where the model was sure of class 1 before.
STOOD = Scenario(({(1, 0): 3.0}, {}), (({(1, 0): 4.0}, {}), *ELSEWHERE))
# Who writes class 1 over everything.
EVERYWHERE = Scenario(({(0, 0): 0.25}, {}), (({}, {1: 400.0}), *ELSEWHERE))
# The same, and it makes no difference here.
EVERYWHERE_STOOD = Scenario(({(1, 0): 100.0}, {}), (({}, {1: 400.0}), *ELSEWHERE))
# A large client with a small update, small ones with large updates: score 2 against 1.5, re-fusion -2.5 against
# 0.8; TraceFL, which credits history, has -8 against -1.
DISAGREEING = Scenario(
    ({}, {0: -14.0, 1: -20.0, 2: -30.0}),
    (({}, {1: 4.0}), ({}, {1: 12.0}), ({}, {1: 8.0}), ({}, {1: 8.0})),
    (0.5, 0.125, 0.1875, 0.1875),
)
# Two that did the same.
TWINS = Scenario(({(0, 0): 0.25}, {}), (({(1, 0): 4.0}, {}), ({(1, 0): 4.0}, {}), *ELSEWHERE[:2]))


def inquiry(round_: Round, table: dict[str, object] | None = None, *, replays: bool = True) -> Inquiry:
    return Inquiry(round_, rule_named("fedavg"), build_network(table or linear()), (), replays)


def subjects(count: int, true: dict[int, int] | None = None) -> tuple[Subject, ...]:
    return tuple(Subject(f"input {n}", 0, f"{n:064x}", (true or {}).get(n)) for n in range(count))


def asked(
    about: Inquiry, call: Call, *, true: dict[int, int] | None = None, settings: Settings | None = None
) -> tuple[InputTrace, ...]:
    """The ledger's answers with their confirmations."""
    settings = settings or Settings()
    questions = Questions(call, subjects(call.count, true))
    found = about.ask(questions, settings).inputs
    return confirmed(about, [questions], [range(call.count)], found, settings)


def confirmation(about: Inquiry, call: Call | None = None, **options: object) -> Confirmation:
    """The first input's."""
    found = asked(about, call or Call((X,)), **options)[0].confirmation  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("scenario", "grade", "words"),
    [
        (CULPRIT, "A", "re-fusion without the file takes the prediction away"),
        (STOOD, "B", "the methods agree and beat chance"),
        (EVERYWHERE, "B", "on top for noise as well: it drives this model"),
        (EVERYWHERE_STOOD, "D", "on top for noise as well and the prediction survives"),
        (DISAGREEING, "C", "the methods disagree"),
        (TWINS, "D", "the two largest effects are closer together than the numerical error"),
    ],
    ids=["culprit", "stood", "everywhere", "everywhere, stood", "disagreeing", "twins"],
)
def test_the_grade(scenario: Scenario, grade: str, words: str) -> None:
    found = confirmation(inquiry(scenario.round()))
    assert (found.grade, found.client) == (grade, "client-0")
    assert words in found.reason


def test_a_round_that_does_not_replay_is_not_graded_higher() -> None:
    found = confirmation(inquiry(CULPRIT.round(), replays=False))
    assert (found.grade, found.reason) == ("D", "not distinguishable: this round does not replay")


def test_an_effect_of_the_server_is_nobodys() -> None:
    round_ = CULPRIT.round()
    fused = {name: tensor.clone() for name, tensor in round_.fused.tensors.items()}
    fused["0.bias"][1] += 50
    edited = replace(round_, fused=replace(round_.fused, tensors=fused))
    found = confirmation(inquiry(edited))
    assert (found.grade, found.reason) == (
        "D",
        "not distinguishable: the largest effect is not explained by the stored clients",
    )


@dataclass(frozen=True)
class _Torn(Inquiry):
    """In float64 the ledger puts another client first."""

    def ask(self, questions: Questions, settings: Settings) -> Answers:
        found = super().ask(questions, settings)
        if settings.method != "ledger" or not settings.precise:
            return found
        return replace(
            found, inputs=tuple(replace(one, clients=tuple(reversed(one.clients))) for one in found.inputs)
        )


def test_a_first_client_that_depends_on_the_precision_is_not_distinguishable() -> None:
    about = inquiry(CULPRIT.round())
    torn = _Torn(about.round, about.rule, about.network, about.labels, True)
    found = confirmation(torn)
    assert found.grade == "D"
    assert "float32 and float64 put different files first" in found.reason
    assert dict(found.stability.dtype)["float32"] != dict(found.stability.dtype)["float64"]


def test_without_a_second_client_nothing_can_be_told_apart() -> None:
    only = Scenario(CULPRIT.previous, CULPRIT.updates[:1], (1.0,))
    found = confirmation(inquiry(only.round()))
    assert (found.grade, found.repair) == ("D", None)
    assert found.agreement.of == 3
    assert found.agreement.at_random == 1
    assert all(value is None for *_, value in found.agreement.spearman)


def test_another_class_is_not_taken_away_by_any_removal() -> None:
    """Without client 0 the prediction changes and class 2 loses, but class 2 was not predicted."""
    lifting = Scenario(CULPRIT.previous, (({(1, 0): 4.0, (2, 0): 3.0}, {}), *ELSEWHERE))
    about = inquiry(lifting.round())
    assert confirmation(about).grade == "A"
    found = confirmation(about, settings=Settings(chosen=2, target="logit"))
    assert (found.grade, found.client) == ("B", "client-0")
    assert found.repair is not None
    assert found.repair.changes
    assert found.repair.removed is None


def test_who_is_first_for_whom() -> None:
    agreement = confirmation(inquiry(DISAGREEING.round())).agreement
    assert dict(agreement.first) == {
        "ledger": "client-0",
        "tracefl": "client-1",
        "drop": "client-0",
        "refuse": "client-1",
    }
    assert (agreement.agreeing, agreement.of) == (2, 4)
    assert agreement.at_random == pytest.approx(1 - 0.75**3)
    table = {(a, b): value for a, b, value in agreement.spearman}
    assert len(table) == 6
    assert table["ledger", "drop"] == pytest.approx(1)
    assert (table["tracefl", "refuse"] or 0) > 0 > (table["ledger", "refuse"] or 0)


def test_stability_names_everything_that_was_tried() -> None:
    stability = confirmation(inquiry(CULPRIT.round()), settings=Settings(layer_decay=0.5)).stability
    assert dict(stability.dtype) == dict.fromkeys(("float32", "float64"), "client-0")
    assert dict(stability.target) == dict.fromkeys(("margin", "logit", "logprob"), "client-0")
    assert dict(stability.layer_decay) == dict.fromkeys(("1.0", "0.9", "0.8", "0.5"), "client-0")


@pytest.mark.parametrize("settings", [Settings(precise=True), Settings(target="logprob"), Settings(nodes=2)])
def test_the_grade_is_the_same_from_another_start(settings: Settings) -> None:
    assert confirmation(inquiry(CULPRIT.round()), settings=settings).grade == "A"


def network_round(name: str = "cnn") -> tuple[Inquiry, Call]:
    """A real network with random clients, and random inputs; or the culprit's round."""
    if name == "culprit":
        return inquiry(CULPRIT.round()), Call((X,))
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network(), weights=(400.0, 250.0, 90.0, 120.0))
    return inquiry(round_, architecture.table), architecture.call(5)


def predicted(about: Inquiry, tensors: dict[str, Tensor], call: Call) -> list[int]:
    """Each input's class, one by one."""
    network = build_network(ARCHITECTURES["cnn"].table).eval()
    logits = [
        class_logits(functional_call(network, tensors, call[n : n + 1].arguments)) for n in range(call.count)
    ]
    return [int(one.argmax()) for one in logits]


def test_repair_is_a_fusion_of_the_others_counted_by_hand() -> None:
    about, call = network_round()
    now = predicted(about, dict(about.round.fused.tensors), call)
    true = {0: now[0], 1: (now[1] + 1) % 3, 2: (now[2] + 2) % 3, 3: now[3]}
    for n, one in enumerate(asked(about, call, true=true)):
        assert one.confirmation is not None
        others = [client for client in about.round.clients if client.client != one.confirmation.client]
        states = [dict(client.model.tensors) for client in others if client.model is not None]
        without = predicted(about, mean_state(states, [client.weight or 0 for client in others]), call)
        counts = dict.fromkeys(vars(Others()), 0)
        for m in set(range(call.count)) - {n}:
            before, after = now[m] == true.get(m), without[m] == true.get(m)
            word = {
                (True, True): "stays_right",
                (True, False): "becomes_wrong",
                (False, True): "becomes_right",
                (False, False): "stays_wrong",
            }[before, after]
            counts["keeps" if now[m] == without[m] else "changes" if m not in true else word] += m not in true
            counts[word] += m in true
        repair = one.confirmation.repair
        assert repair is not None
        assert repair.others == Others(**counts)
        assert (repair.index, repair.changes) == (without[n], without[n] != now[n])
        fixes = repair.changes if n not in true else without[n] == true[n]
        assert repair.fixes == (None if true.get(n) == now[n] else fixes)


def test_what_is_gone_of_the_margin() -> None:
    """New margin of class 1 over the zero of class 2: 4·(3 + 4/4) = 16; without client 0, 12: a quarter goes."""
    repair = confirmation(inquiry(STOOD.round())).repair
    assert repair == Repair(1, "1", False, False, pytest.approx(0.25), Others())


@pytest.mark.parametrize("name", ["culprit", "cnn", "bert"])
def test_controls_are_what_single_questions_about_them_find(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "COUNT", 10)
    about, call = network_round(name)
    call = call[: 2 if name == "cnn" else 1]
    settings = Settings(seed=3, nodes=2)
    for n, one in enumerate(asked(about, call, settings=settings)):
        assert one.confirmation is not None
        digest = f"{one.subject.sha256} {one.subject.index}"

        def on_top(many: Call, chosen: int | None, client: str = one.clients[0].client) -> int:
            found = [
                about.ask(Questions(many[m : m + 1], subjects(1)), replace(settings, chosen=chosen)).inputs[0]
                for m in range(many.count)
            ]
            return sum(answer.clients[0].client == client for answer in found)

        row, own = call[n : n + 1], one.target.index
        near = on_top(controls.neighbours(row, seed=3, digest=digest), own)
        far = on_top(controls.noise(row, seed=3, digest=digest), None)
        others = sum(on_top(row, chosen) for chosen in range(3) if chosen != own)
        found = one.confirmation.controls
        assert found.seed == 3
        assert found.neighbours == Rate(near, controls.COUNT)
        assert found.noise == Rate(far, controls.COUNT)
        assert found.other_classes == Rate(others, 2)


def test_an_input_has_the_same_confirmation_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair apart, which counts the others; however many controls are kept at once."""
    about, call = network_round()
    together = asked(about, call)
    monkeypatch.setattr("flforensics.provenance.confirm._BUDGET", 1)
    apart = asked(about, call)
    assert [one.confirmation for one in apart] == [one.confirmation for one in together]
    alone = asked(about, call[:1])[0].confirmation
    first = together[0].confirmation
    assert alone is not None
    assert first is not None
    assert (alone.grade, alone.agreement, alone.stability, alone.controls) == (
        first.grade,
        first.agreement,
        first.stability,
        first.controls,
    )


def test_batches_of_different_shapes_are_judged_together() -> None:
    about, call = network_round("bert")
    shorter = call[3:].map(lambda tensor: tensor[:, :6])
    parts = [Questions(call[:3], subjects(5)[:3]), Questions(shorter, subjects(5)[3:])]
    positions, settings = [(0, 2, 4), (1, 3)], Settings(nodes=1)
    found = [answer for part in parts for answer in about.ask(part, settings).inputs]
    placed = [found[0], found[3], found[1], found[4], found[2]]
    answers = confirmed(about, parts, positions, placed, settings)
    assert [one.subject.source for one in answers] == ["input 0", "input 3", "input 1", "input 4", "input 2"]
    assert all(one.confirmation and one.confirmation.repair for one in answers)
    assert {
        one.confirmation.repair.others.keeps + one.confirmation.repair.others.changes
        for one in answers
        if one.confirmation and one.confirmation.repair
    } == {4}


def test_of_many_classes_a_seeded_sample_is_asked() -> None:
    classes = 40
    previous = state({(0, 0): 0.25}, {}, classes)
    clients = [
        {name: previous[name] + change for name, change in state({(1, 0): value}, {}, classes).items()}
        for value in (4.0, 1.0)
    ]
    about = inquiry(round_from(previous, clients, [1.0, 1.0]), linear(classes))
    chosen: list[int | None] = []

    @dataclass(frozen=True)
    class Listening(Inquiry):
        def ask(self, questions: Questions, settings: Settings) -> Answers:
            chosen.append(settings.chosen)
            return super().ask(questions, settings)

    listening = Listening(about.round, about.rule, about.network, (), True)
    found = confirmation(listening)
    assert found.controls.other_classes.of == MOST_CLASSES
    first = [one for one in chosen if one is not None]
    assert len(set(first) - {1}) == MOST_CLASSES
    chosen.clear()
    confirmation(listening)
    assert [one for one in chosen if one is not None] == first


def test_the_methods_run_once_over_all_inputs() -> None:
    calls: list[tuple[str, int]] = []

    @dataclass(frozen=True)
    class Counting(Inquiry):
        def ask(self, questions: Questions, settings: Settings) -> Answers:
            calls.append((settings.method, questions.call.count))
            return super().ask(questions, settings)

    about, call = network_round()
    asked(Counting(about.round, about.rule, about.network, (), True), call)
    assert [count for method, count in calls if method == "counterfactual"] == [5]
    assert [count for method, count in calls if method == "tracefl"] == [5] * 3
    assert len([count for method, count in calls if method == "ledger"]) <= 1 + 3 + 1 + 3
