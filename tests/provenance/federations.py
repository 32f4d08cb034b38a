"""Runs of several rounds, made by hand, as the steps of a lineage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flforensics.fusion import rule_named
from flforensics.fusion.rule import Rule, surveyed
from flforensics.provenance.case import Settings
from flforensics.provenance.lineage import LineageAnswers, Step, trace_lineage
from flforensics.provenance.trace import Questions
from flforensics.results import InputLineage, Subject, Verdict
from flforensics.rounds import ClientModel, Round, StoredModel
from tests.provenance.architectures import Architecture, mean_state, random_state

State = dict[str, Tensor]
WEIGHTS = {"a": 400.0, "b": 250.0, "c": 90.0}


def first_step(state: State, number: int = 0) -> Step:
    """The initial model."""
    return Step(number, StoredModel(state, f"global-{number}"))


def next_step(before: Step, clients: Mapping[str, State], *, fused: State | None = None) -> Step:
    """The round in which these clients are fused, honestly unless told otherwise."""
    number, weights = before.number + 1, [WEIGHTS.get(label, 100.0) for label in clients]
    models = tuple(
        ClientModel(label, weight, StoredModel(state, f"{number}/{label}"))
        for (label, state), weight in zip(clients.items(), weights, strict=True)
    )
    assert before.fused is not None
    new = StoredModel(mean_state(list(clients.values()), weights) if fused is None else fused, f"global-{number}")
    return Step(number, new, Round(number, before.fused, models, new))


def federation(
    architecture: Architecture, *, takes_part: Sequence[str] = ("abc", "ab", "abc", "bc")
) -> list[Step]:
    """An initial model and a round for each text of `takes_part`, whose letters are the clients."""
    network = architecture.network()
    steps = [first_step(random_state(network, seed=1))]
    for number, labels in enumerate(takes_part, start=1):
        here = dict(_global(steps[-1]))
        states = {one: random_state(network, seed=10 * number + ord(one), near=here) for one in labels}
        steps.append(next_step(steps[-1], states))
    return steps


def ruled(architecture: Architecture, rule: Rule, *, rounds: int = 3) -> list[Step]:
    """The same with a rule whose shares make the global, such as server momentum."""
    network = architecture.network()
    steps = [first_step(random_state(network, seed=1))]
    earlier: tuple[Round, ...] = ()
    for number in range(1, rounds + 1):
        here = dict(_global(steps[-1]))
        states = {one: random_state(network, seed=10 * number + ord(one), near=here) for one in WEIGHTS}
        step = next_step(steps[-1], states)
        assert step.round is not None
        scene = surveyed(rule, step.round, earlier=earlier)
        fused = {name: _fused(rule, scene.read(name).fused, name, here, scene) for name in scene.names}
        step = replace(next_step(steps[-1], states, fused=fused), earlier=earlier)
        assert step.round is not None
        earlier = (*earlier, step.round)
        steps.append(step)
    return steps


def lineage(
    steps: Sequence[Step],
    architecture: Architecture,
    *,
    verdicts: Mapping[int, Verdict] | None = None,
    batches: Callable[[Questions], list[Questions]] = lambda questions: [questions],
    rule: Rule | None = None,
    **settings: object,
) -> LineageAnswers:
    """The package's answers in float64 on four random inputs; every round replays unless told otherwise."""
    call = architecture.call()
    subjects = tuple(Subject(f"input {n}", n, "", None) for n in range(call.count))
    return trace_lineage(
        steps,
        rule_named("fedavg") if rule is None else rule,
        architecture.network(),
        batches(Questions(call, subjects)),
        settings=Settings(**{"precise": True, **settings}),  # type: ignore[arg-type]
        labels=(),
        verdicts={step.number: Verdict.BIT_EXACT for step in steps if step.round} | dict(verdicts or {}),
    )


def added_up(one: InputLineage) -> float:
    """Every line of a lineage, from the initial value on."""
    rounds = sum(
        sum(client.score for client in round_.clients) + round_.server + round_.unexplained + round_.residual
        for round_ in one.rounds
    )
    return one.initial.value + rounds + sum(gap.movement for gap in one.gaps)


def scores(one: InputLineage) -> dict[tuple[int, str], float]:
    """By round and client."""
    return {(round_.round, client.client): client.score for round_ in one.rounds for client in round_.clients}


def _global(step: Step) -> Mapping[str, Tensor]:
    assert step.fused is not None
    return step.fused.tensors


def _fused(rule: Rule, mean: Tensor, name: str, here: State, scene: object) -> Tensor:
    """previous + Σ shares + the server's, for floating tensors."""
    if not mean.is_floating_point():
        return mean
    shares = rule.shares(scene.read(name), scene)  # type: ignore[attr-defined, arg-type]
    return (here[name].double() + shares.clients.sum(0) + shares.server).to(torch.float32)
