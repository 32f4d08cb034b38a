"""The margin over a class that was chosen: `--against`."""

import pytest
import torch

from flforensics.errors import UsageError
from flforensics.fusion import rule_named
from flforensics.models import class_logits
from flforensics.provenance.case import Settings
from flforensics.provenance.targets import class_target
from flforensics.provenance.trace import Questions, trace_round
from flforensics.results import Subject
from tests import oracle
from tests.provenance.architectures import ARCHITECTURES, make_round
from tests.provenance.test_anatomy import shares_of
from tests.provenance.test_oracle import double, matrix, single_calls, traced

LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0], [1.0, 2.0, 7.0]])


def test_the_class_below_is_the_chosen_one() -> None:
    target = class_target("margin", LOGITS, versus=[1, 1, 1])
    assert target.classes.tolist() == [0, 1, 2]
    assert target.against.tolist() == [1, 2, 1], "who is predicted as class 1 keeps the best other class"
    assert target(LOGITS).tolist() == [2.0, 1.0, 5.0]


def test_every_sample_may_have_a_class_of_its_own() -> None:
    target = class_target("margin", LOGITS, versus=[1, None, 2])
    assert target.against.tolist() == [1, 2, 1], "without a class, or with the explained one, the best other"


def test_both_classes_may_be_chosen() -> None:
    target = class_target("margin", LOGITS, chosen=2, versus=[0, 0, 0])
    assert target(LOGITS).tolist() == [-1.0, 4.0, 6.0]


@pytest.mark.parametrize("method", ["ledger", "shapley", "counterfactual"])
def test_the_margin_is_the_difference_of_the_two_logits(method: str) -> None:
    architecture = ARCHITECTURES["cnn"]
    round_ = make_round(architecture.network())
    found = traced(architecture, round_, method=method, chosen=0, versus=1, nodes=2)
    network = oracle.written_out(architecture.network())
    assert round_.previous is not None
    for one, (arguments, keywords) in zip(found.inputs, single_calls(architecture), strict=True):
        values = []
        for state in (round_.previous.tensors, round_.fused.tensors):
            output = torch.func.functional_call(network, double(state), arguments, keywords)
            logits = class_logits(output)[0]
            values.append(float(logits[0] - logits[1]))
        assert (one.target.index, one.target.against) == (0, 1)
        assert one.target.value == pytest.approx(values[1], rel=1e-9)
        if one.parts is not None:
            assert one.parts.previous == pytest.approx(values[0], rel=1e-9)


def test_scores_are_those_of_that_margin() -> None:
    architecture = ARCHITECTURES["cnn"]
    round_ = make_round(architecture.network())
    found = traced(architecture, round_, chosen=1, versus=2, nodes=2)
    assert round_.previous is not None
    truth = oracle.ledger(
        architecture.network(),
        double(round_.previous.tensors),
        double(round_.fused.tensors),
        shares_of(round_),
        single_calls(architecture),
        target=lambda _n, logits: logits[0, 1] - logits[0, 2],
        logits=class_logits,
        nodes=2,
    )
    torch.testing.assert_close(matrix(found, round_), truth, rtol=1e-9, atol=1e-10)


def test_a_class_that_does_not_exist() -> None:
    architecture = ARCHITECTURES["cnn"]
    with pytest.raises(UsageError, match="--against 3 does not exist"):
        traced(architecture, make_round(architecture.network()), versus=3)


def test_a_true_class_that_does_not_exist() -> None:
    architecture = ARCHITECTURES["cnn"]
    round_, call = make_round(architecture.network()), architecture.call(2)
    with pytest.raises(UsageError, match="an input has the true class 3 and the model has 3 classes"):
        trace_round(
            round_,
            rule_named("fedavg"),
            architecture.network(),
            Questions(call, (Subject("a", 0, "", 1), Subject("b", 0, "", 3))),
            settings=Settings(versus="true"),
            labels=(),
            replays=True,
        )
