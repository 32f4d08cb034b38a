"""Every method against its definition as plain slow loops, on every architecture."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flforensics.fusion import rule_named
from flforensics.models import class_logits
from flforensics.provenance.case import Settings
from flforensics.provenance.trace import Answers, Questions, trace_round
from flforensics.results import Subject
from flforensics.rounds import Round, StoredModel
from tests import oracle
from tests.provenance.architectures import ARCHITECTURES, Architecture, make_round


def traced(architecture: Architecture, round_: Round, *, count: int = 4, **settings: object) -> Answers:
    """The package's answers in float64 on some random inputs."""
    call = architecture.call(count)
    subjects = tuple(Subject(f"input {n}", n, "", None) for n in range(call.count))
    return trace_round(
        round_,
        rule_named("fedavg"),
        architecture.network(),
        Questions(call, subjects),
        settings=Settings(**{"precise": True, **settings}),  # type: ignore[arg-type]
        labels=(),
        replays=True,
    )


def matrix(found: Answers, round_: Round) -> Tensor:
    """Scores [N, K] in the round's order of clients."""
    rows = [{client.client: client.score for client in one.clients} for one in found.inputs]
    return torch.tensor([[row[c.client] for c in round_.clients] for row in rows], dtype=torch.float64)


def double(state: object) -> dict[str, Tensor]:
    assert isinstance(state, dict)
    return {name: t.double() if t.is_floating_point() else t for name, t in state.items()}


def single_calls(architecture: Architecture) -> list[tuple[tuple[Tensor, ...], dict[str, Tensor]]]:
    call = architecture.call()
    ones = [call[n : n + 1].to(torch.device("cpu"), torch.float64) for n in range(call.count)]
    return [(one.arguments, dict(one.keywords)) for one in ones]


@pytest.mark.parametrize("function", ["margin", "logit", "logprob"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ledger(name: str, function: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    found = traced(architecture, round_, target=function, nodes=3)
    assert round_.previous is not None
    previous, new = double(round_.previous.tensors), double(round_.fused.tensors)
    total = sum(client.weight or 0 for client in round_.clients)
    shares = []
    for client in round_.clients:
        assert client.model is not None
        state = double(client.model.tensors)
        shares.append({k: (client.weight or 0) / total * (state[k] - previous[k]) for k in state})

    def target(n: int, logits: Tensor) -> Tensor:
        chosen, against = found.inputs[n].target.index, found.inputs[n].target.against
        if function == "margin":
            assert against is not None
            return logits[0, chosen] - logits[0, against]
        return logits[0, chosen] if function == "logit" else logits[0].log_softmax(0)[chosen]

    truth = oracle.ledger(
        architecture.network(),
        previous,
        new,
        shares,
        single_calls(architecture),
        target=target,
        logits=class_logits,
        nodes=3,
    )
    torch.testing.assert_close(matrix(found, round_), truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("decay", [0.9, 1.0])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tracefl(name: str, decay: float, scale: bool) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    found = traced(architecture, round_, method="tracefl", layer_decay=decay, scale_clients=scale)
    weights = [client.weight or 0 for client in round_.clients]
    truth = oracle.tracefl(
        architecture.network(),
        double(round_.fused.tensors),
        [double(client.model.tensors) for client in round_.clients if client.model],
        single_calls(architecture),
        layers=architecture.traced,
        factors=[weight / sum(weights) if scale else 1.0 for weight in weights],
        decay=decay,
        logits=class_logits,
        classes=[one.target.index for one in found.inputs],
    )
    torch.testing.assert_close(matrix(found, round_), truth, rtol=1e-9, atol=1e-10)
    assert {one.target.function for one in found.inputs} == {"logit"}


@pytest.mark.parametrize("method", ["ledger", "tracefl"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_clients_stored_as_updates_answer_as_models_do(name: str, method: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    assert round_.previous is not None
    previous = double(round_.previous.tensors)
    clients = []
    for client in round_.clients:
        assert client.model is not None
        update = {k: t - previous[k] for k, t in double(client.model.tensors).items()}
        clients.append(replace(client, model=StoredModel(update, client.model.source)))
    stored = replace(round_, clients=tuple(clients), values="delta")
    models, updates = (matrix(traced(architecture, one, method=method), one) for one in (round_, stored))
    torch.testing.assert_close(updates, models, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_tracefl_leaves_out_is_listed(name: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    left_out = {one.name for one in traced(architecture, round_, method="tracefl").untraced}
    state = architecture.network().state_dict()
    floating = {tensor for tensor in state if state[tensor].is_floating_point()}
    covered = {t for t in floating if any(t.startswith(f"{layer}.") for layer in architecture.traced)}
    assert left_out == floating - covered
