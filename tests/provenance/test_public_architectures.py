"""The ledger on public architectures: every floating tensor counts, and the scores are the slow oracle's."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from flforensics.fusion import rule_named
from flforensics.models import class_logits
from flforensics.provenance.case import Settings
from flforensics.provenance.trace import Answers, Questions, trace_round
from flforensics.results import Subject, Target
from flforensics.rounds import Round, StoredModel
from tests import oracle
from tests.provenance.public import PUBLIC, PublicArchitecture
from tests.provenance.test_oracle import double, matrix

_NODES = 2


@dataclass(frozen=True)
class _Bench:
    """An architecture with its network and its round; both ways to the scores."""

    architecture: PublicArchitecture
    network: nn.Module
    round: Round

    def answers(self, *, precise: bool) -> Answers:
        """The package's."""
        call = self.architecture.call()
        return trace_round(
            self.round,
            rule_named("fedavg"),
            copy.deepcopy(self.network),
            Questions(call, tuple(Subject(f"input {n}", n, "", None) for n in range(call.count))),
            settings=Settings(nodes=_NODES, precise=precise),
            labels=(),
            replays=True,
        )

    def truth(self, targets: list[Target]) -> Tensor:
        """By plain loops in float64, one input at a time, [N, K]."""
        weights = [client.weight or 0 for client in self.round.clients]
        previous, new = _state(self.round.previous), _state(self.round.fused)
        shares = []
        for client, weight in zip(self.round.clients, weights, strict=True):
            state = _state(client.model)
            shares.append({name: weight / sum(weights) * (state[name] - previous[name]) for name in state})

        def margin(n: int, logits: Tensor) -> Tensor:
            against = targets[n].against
            assert against is not None
            return logits[0, targets[n].index] - logits[0, against]

        call = self.architecture.call()
        ones = [call[n : n + 1].to(torch.device("cpu"), torch.float64) for n in range(call.count)]
        return oracle.ledger(
            self.network,
            previous,
            new,
            shares,
            [(one.arguments, dict(one.keywords)) for one in ones],
            target=margin,
            logits=class_logits,
            nodes=_NODES,
        )


def _state(model: StoredModel | None) -> dict[str, Tensor]:
    assert model is not None
    return double(model.tensors)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_floating_tensor_counts_as_in_the_oracle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = PUBLIC[name].network()
    bench = _Bench(PUBLIC[name], network, PUBLIC[name].round_of(network))
    double_, single = bench.answers(precise=True), bench.answers(precise=False)
    monkeypatch.setattr("flforensics.provenance.case._MANY", 1)
    laid_out = bench.answers(precise=False)
    targets = [one.target for one in double_.inputs]
    truth = bench.truth(targets)
    assert double_.untraced == single.untraced == laid_out.untraced == ()
    assert float(truth.abs().max()) > 1e-3
    torch.testing.assert_close(matrix(double_, bench.round), truth, rtol=0, atol=1e-8 * float(truth.abs().max()))
    for found in (single, laid_out):
        assert [one.target.index for one in found.inputs] == [target.index for target in targets]
        assert bool(((matrix(found, bench.round) - truth).abs().amax(1) <= 1e-4 * truth.abs().sum(1)).all())
