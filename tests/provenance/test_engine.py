"""The same numbers however much memory there is, in whatever blocks, and after allocations that failed."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flforensics.errors import NotComputableError
from flforensics.fusion import rule_named
from flforensics.gradients import Call, laid_out
from flforensics.provenance import ledger, tracefl
from flforensics.provenance.case import Settings
from flforensics.provenance.chunks import in_chunks
from flforensics.provenance.hands import HANDS, Hands
from flforensics.provenance.profile import Profile
from flforensics.provenance.trace import Answers, Questions, trace_round
from flforensics.results import Subject
from flforensics.rounds import Round, StoredModel
from tests.provenance.architectures import ARCHITECTURES, make_round
from tests.provenance.test_oracle import matrix, traced

WEIGHTS = (400.0, 250.0, 90.0, 0.0, 120.0)
LITTLE = 5_000
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_method = pytest.mark.parametrize("method", ["ledger", "tracefl"])


def close(left: Tensor, right: Tensor, tolerance: float = 1e-10) -> None:
    assert (left - right).abs().max() <= tolerance * right.abs().max()


@every_architecture
@every_method
def test_little_memory_gives_the_same(name: str, method: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    few, many = Profile(), Profile()
    little = traced(architecture, round_, method=method, memory=LITTLE, profile=many)
    plenty = traced(architecture, round_, method=method, memory=1 << 30, profile=few)
    close(matrix(little, round_), matrix(plenty, round_))
    assert few.passes == 1
    assert many.passes > 1 or (name, method) == ("one logit", "tracefl")  # which keeps next to nothing
    for one, other in zip(little.inputs, plenty.inputs, strict=True):
        assert (one.nodes, one.converged) == (other.nodes, other.converged)
        assert (one.tamper_margin is None) == (other.tamper_margin is None)
        assert (one.tamper_margin or 0) == pytest.approx(other.tamper_margin or 0, rel=1e-8)


@pytest.mark.parametrize("name", ["cnn", "batch norm", "small maps"])
def test_many_inputs_are_as_right_with_the_channels_last(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, laid = ARCHITECTURES[name], []

    def counted(state: Mapping[str, Tensor], names: frozenset[str]) -> Mapping[str, Tensor]:
        laid.append(names)
        return laid_out(state, names)

    monkeypatch.setattr("flforensics.provenance.case.laid_out", counted)
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    few, many, precise = (
        traced(architecture, round_, count=count, nodes=4, precise=precise)
        for count, precise in ((15, False), (16, False), (16, True))
    )
    assert len(laid) == 2  # the two globals, of many inputs in float32
    assert laid[0] == laid[1] != frozenset()
    close(matrix(many, round_), matrix(precise, round_), 1e-4)
    close(matrix(few, round_), matrix(precise, round_)[:15], 1e-4)


@every_architecture
def test_levels_that_meet_together_are_the_levels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    together = traced(architecture, round_, tolerance=0.001)
    monkeypatch.setattr(ledger, "_TOGETHER", (1,))
    apart = traced(architecture, round_, tolerance=0.001)
    close(matrix(together, round_), matrix(apart, round_))
    assert [one.nodes for one in together.inputs] == [one.nodes for one in apart.inputs]
    for n, one in enumerate(together.inputs):
        fixed = traced(architecture, round_, nodes=one.nodes)
        close(matrix(together, round_)[n], matrix(fixed, round_)[n])


@pytest.mark.parametrize(
    ("most", "expected"), [(1, {1}), (2, {1, 2}), (3, {1, 2}), (4, {1, 2, 4}), (9, {2, 4, 8})]
)
def test_no_more_nodes_than_allowed(most: int, expected: set[int]) -> None:
    architecture = ARCHITECTURES["bert"]
    round_ = make_round(architecture.network())
    found = traced(architecture, round_, tolerance=1e-9, max_nodes=most)
    assert {one.nodes for one in found.inputs} <= expected
    assert max(one.nodes or 0 for one in found.inputs) == max(expected)


def narrow(round_: Round, dtype: torch.dtype) -> Round:
    """The round with its clients stored in another type."""
    clients = tuple(
        replace(client, model=StoredModel({k: v.to(dtype) for k, v in client.model.tensors.items()}, "narrow"))
        for client in round_.clients
        if client.model
    )
    return replace(round_, clients=clients)


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_clients_of_other_types_are_widened(dtype: torch.dtype, method: str) -> None:
    architecture = ARCHITECTURES["cnn"]
    round_ = narrow(make_round(architecture.network(), weights=WEIGHTS), dtype)
    options: dict[str, Any] = {"method": method} | ({"nodes": 4} if method == "ledger" else {})
    plain = matrix(traced(architecture, round_, precise=False, **options), round_)
    close(plain, matrix(traced(architecture, round_, **options), round_), 1e-4)


@every_method
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("not enough memory")])
def test_a_failed_allocation_halves_the_inputs(
    method: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = ARCHITECTURES["cnn"]
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    truth = matrix(traced(architecture, round_, method=method), round_)
    module = {"ledger": ledger, "tracefl": tracefl}[method]
    name = {"ledger": "gradients_at", "tracefl": "record"}[method]
    monkeypatch.setattr(module, name, failing(getattr(module, name), error))
    close(matrix(traced(architecture, round_, method=method), round_), truth)


def failing(function: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The function on a device with room for one sample."""

    def limited(network: object, state: object, call: Call, **options: Any) -> Any:
        if call.count > 1:
            raise error
        return function(network, state, call, **options)

    return limited


def test_inputs_stay_in_order_and_what_does_not_fit_at_all_is_said() -> None:
    sizes: list[int] = []

    def work(case: Any) -> list[int]:
        sizes.append(case.call.count)
        if case.call.count > 3:
            raise MemoryError
        return case.call.arguments[0].tolist()  # type: ignore[no-any-return]

    case = counting(10)
    assert [n for part in in_chunks(case, work, size=8) for n in part] == list(range(10))
    assert sizes == [8, 4, 2, 2, 2, 2, 2]

    def hopeless(_case: Any) -> None:
        raise MemoryError

    with pytest.raises(NotComputableError, match="more memory for one input"):
        in_chunks(counting(2), hopeless, size=2)

    def wrong(_case: Any) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_chunks(counting(2), wrong, size=2)


def counting(count: int) -> Any:
    """As much of a case as chunks need, whose inputs are 0, 1, 2, ..."""
    from flforensics.provenance.case import Case
    from flforensics.provenance.targets import ClassTarget
    from flforensics.results import no_progress

    classes = torch.zeros(count, dtype=torch.long)
    round_ = make_round(ARCHITECTURES["one logit"].network())
    nothing: Any = None
    call, target = Call((torch.arange(count),)), ClassTarget("logit", classes, classes)
    return Case(round_, nothing, nothing, nothing, {}, None, call, target, Settings(), no_progress)


def test_one_block_is_read_ahead_and_no_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for n in range(1, 6):
            made.append(n)
            yield n

    with Hands() as hands:
        reading = hands.ahead(items())
        assert next(reading) == 1
        assert next(reading) == 2
        deadline = threading.Event()
        deadline.wait(0.05)
        assert made == [1, 2, 3]
        reading.close()
        assert list(hands.ahead(items())) == [1, 2, 3, 4, 5]


def test_an_error_of_the_reader_comes_through() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    with Hands() as hands, pytest.raises(ValueError, match="damaged"):
        list(hands.ahead(items()))


def test_hands_share_lines_and_their_errors() -> None:
    def read(hand: int, portion: slice) -> tuple[int, list[int]]:
        return hand, list(range(portion.start, portion.stop))

    def damaged(hand: int, _: slice) -> None:
        if hand:
            raise ValueError("damaged")

    with Hands() as hands:
        for start, stop in ((0, 1), (3, 5), (2, 9), (10, 20)):
            shared = hands.share(read, slice(start, stop))
            assert [hand for hand, _ in shared] == list(range(min(HANDS, stop - start)))
            assert [line for _, lines in shared for line in lines] == list(range(start, stop))
        with pytest.raises(ValueError, match="damaged"):
            hands.share(damaged, slice(0, 4))


def test_a_client_without_weight_is_not_read() -> None:
    """What its file holds cannot matter, so that numbers that are not finite do no harm."""
    architecture = ARCHITECTURES["cnn"]
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    idle = round_.clients[3]
    assert idle.model is not None
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in idle.model.tensors.items()}
    clients = (*round_.clients[:3], replace(idle, model=StoredModel(broken, "broken")), *round_.clients[4:])
    close(matrix(answers(replace(round_, clients=clients)), round_), matrix(answers(round_), round_))


def answers(round_: Round) -> Answers:
    architecture = ARCHITECTURES["cnn"]
    call = architecture.call()
    subjects = tuple(Subject(f"input {n}", n, "", None) for n in range(call.count))
    return trace_round(
        round_,
        rule_named("fedavg"),
        architecture.network(),
        Questions(call, subjects),
        settings=Settings(nodes=2),
        labels=(),
        replays=True,
    )
