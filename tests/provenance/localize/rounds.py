"""A round of a linear classifier in which one client pushes class 2 where class 1 is true."""

import torch
from torch import Tensor, nn

from flforensics.fusion import rule_named
from flforensics.gradients import Call
from flforensics.models import build_network
from flforensics.provenance.case import Case, Settings
from flforensics.provenance.localize.localizing import Found, Materials, case_of, localize_round
from flforensics.rounds import Round
from tests.provenance.architectures import round_from

FEDAVG = rule_named("fedavg")
CLASSES, FEATURES = 3, 6
FAULTY = 3
WEIGHTS = [400.0, 250.0, 90.0, 120.0, 140.0]

LINEAR = {
    "source": "layers",
    "layers": [{"type": "Linear", "in_features": FEATURES, "out_features": CLASSES, "bias": False}],
}


def linear() -> nn.Module:
    """Logits W x."""
    return build_network(LINEAR)


def inputs(count: int = 12) -> tuple[Tensor, list[int]]:
    """Noisy unit vectors of the classes in turn, and the classes."""
    generator = torch.Generator().manual_seed(2)
    classes = [n % CLASSES for n in range(count)]
    noise = 0.1 * torch.randn(count, FEATURES, generator=generator)
    return torch.eye(FEATURES)[classes] + noise, classes


def faulty_round(*, clients: int = 5, faulty: int | None = FAULTY) -> Round:
    """All start from the identity; honest ones make small changes, the faulty one reads class 1 as class 2."""
    previous = {"0.weight": torch.eye(CLASSES, FEATURES)}
    generator = torch.Generator().manual_seed(3)
    states = [
        {"0.weight": previous["0.weight"] + 0.02 * torch.randn(CLASSES, FEATURES, generator=generator)}
        for _ in range(clients)
    ]
    if faulty is not None:
        states[faulty]["0.weight"][1, 1] -= 6
        states[faulty]["0.weight"][2, 1] += 6
    return round_from(previous, states, WEIGHTS[:clients])


def case(round_: Round, network: nn.Module, call: Call | None = None, **settings: object) -> Case:
    """The round as a localizer sees it, in float64 unless told otherwise."""
    return case_of(round_, FEDAVG, network, call, settings=Settings(**{"precise": True, **settings}))  # type: ignore[arg-type]


def localized(
    round_: Round, *methods: str, materials: Materials | None = None, replays: bool = True, seed: int = 0
) -> Found:
    """What the methods find on the usual inputs of the linear classifier."""
    return localize_round(
        round_,
        FEDAVG,
        linear(),
        usual() if materials is None else materials,
        methods=methods,
        settings=Settings(precise=True, seed=seed),
        replays=replays,
    )


def usual(**changes: object) -> Materials:
    """Random inputs of both kinds, and labelled inputs."""
    values, classes = inputs()
    generator = torch.Generator().manual_seed(4)
    made = {
        "probes": Call((torch.randn(10, FEATURES, generator=generator),)),
        "noise": Call((torch.rand(5, FEATURES, generator=generator),)),
        "calls": (Call((values,)),),
        "true": (tuple(classes),),
    }
    return Materials(**{**made, **changes})  # type: ignore[arg-type]
