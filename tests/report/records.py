"""Findings to render: one of each kind, with changes."""

from dataclasses import replace

from flforensics.results import (
    CheckOutcome,
    ClientScore,
    ClientTotal,
    ClientWeight,
    Differences,
    Finding,
    Gap,
    InitialModel,
    InputLineage,
    InputTrace,
    Inspection,
    LargestStep,
    Lineage,
    Localization,
    Method,
    Misled,
    Parts,
    Prediction,
    Problem,
    Replay,
    Responsible,
    RoundContents,
    RoundLedger,
    RoundReplay,
    RoundScore,
    Run,
    StandsOut,
    Subject,
    Suspect,
    Target,
    TensorReplay,
    Totals,
    Trace,
    TwoAxes,
    Verdict,
)

LABELS = ("cat", "dog", "eel")


def score(client="hospital-1", value=1.0, *, share=0.5, rank=1, weight=0.5):
    """One client's line."""
    return ClientScore(client, weight, value, share, rank)


def one_input(**changes):
    """The answer for one input: now a cat, before a dog, because of hospital-1."""
    usual = InputTrace(
        subject=Subject("a.png", 0, "ab" * 32, None),
        prediction=Prediction(0, "cat", 0.8),
        target=Target("margin", 0, 1, 2.0),
        clients=(score(), score("hospital-2", -0.5, share=-0.25, rank=2)),
        responsible=Responsible("client", "hospital-1", 0.25, True),
        before=Prediction(1, "dog", 0.7),
        parts=Parts(previous=1.25, server=0.0, unexplained=0.24, residual=0.01),
        round_effect=0.75,
        nodes=8,
        converged=True,
        change=0.002,
    )
    return replace(usual, **changes)


def without_ledger(**changes):
    """The answer of a method whose scores do not add up."""
    nothing = dict.fromkeys(("before", "parts", "round_effect", "nodes", "converged", "change"))
    return one_input(target=Target("logit", 0, None, 5.0), **{**nothing, **changes})


def round_replay(**changes):
    """One round that replays."""
    usual = RoundReplay(
        round=3,
        rule="fedavg",
        verdict=Verdict.CONSISTENT,
        form="direct",
        arithmetic="float32",
        worst_ratio=0.25,
        floor=5e-7,
        clients=(ClientWeight("hospital-1", 0.5), ClientWeight("hospital-2", 0.5)),
        tensors=(
            TensorReplay("0.weight", "float", 12, 0.25, 0),
            TensorReplay("1.num_batches_tracked", "counter", 1, None, 0, "zero"),
        ),
        problems=(),
    )
    return replace(usual, **changes)


def trace(*inputs, **changes):
    """A whole trace, of one input unless told otherwise."""
    usual = Trace(
        run=Run("cpu", "float32", 1, (("torch", "2.15.0"),)),
        archive="archives/a",
        digest="sha256:" + "0" * 64,
        round=3,
        labels=LABELS,
        method=Method("ledger", (("target", "margin"), ("tolerance", 0.01))),
        replay=round_replay(),
        inputs=inputs or (one_input(),),
        untraced=(),
        warnings=(),
    )
    return replace(usual, **changes)


def ledger_of(number, first=0.5, second=-0.25, **changes):
    """One round's ledger, in which hospital-2 may be absent (None)."""
    clients = (RoundScore("hospital-1", 0.5, first),)
    clients += () if second is None else (RoundScore("hospital-2", 0.5, second),)
    effect = first + (second or 0.0)
    after = Prediction(0, "cat", 0.8)
    return replace(
        RoundLedger(number, effect, 1.0, after, clients, 0.0, 0.0, 0.0, 8, True),
        **changes,
    )


def input_lineage(*rounds, **changes):
    """The lineage of one input over two rounds and a gap between them: a dog became a cat."""
    usual = InputLineage(
        subject=Subject("a.png", 0, "ab" * 32, None),
        prediction=Prediction(0, "cat", 0.8),
        target=Target("margin", 0, 1, 2.0),
        initial=InitialModel(0, -1.0, Prediction(1, "dog", 0.7)),
        rounds=rounds or (ledger_of(1), ledger_of(3, 2.0, None, value=2.0)),
        gaps=(Gap(1, 2, 0.75, "the archive holds no clients of round 2"),),
        clients=(
            ClientTotal("hospital-1", 2.5, 0.7, 1, 2, (3, 2.0)),
            ClientTotal("hospital-2", -0.25, -0.07, 2, 1, (1, -0.25)),
        ),
        totals=Totals(0.0, 0.0, 0.0, 0.75),
        responsible=Responsible("client", "hospital-1", 0.5, True),
        largest_step=LargestStep(3, "hospital-1", 2.0, True),
    )
    return replace(usual, **changes)


def lineage(*inputs, **changes):
    """A whole lineage, of one input unless told otherwise."""
    usual = Lineage(
        run=Run("cpu", "float32", 1, (("torch", "2.15.0"),)),
        archive="archives/a",
        digest="sha256:" + "0" * 64,
        round=3,
        labels=LABELS,
        method=Method("ledger", (("target", "margin"), ("tolerance", 0.01))),
        replays=(round_replay(round=1), round_replay()),
        inputs=inputs or (input_lineage(),),
        untraced=(),
        warnings=(),
    )
    return replace(usual, **changes)


def replay(*rounds):
    """A whole replay."""
    return Replay("archives/a", "sha256:" + "0" * 64, rounds or (round_replay(),))


def inspection(**changes):
    """A whole inspection with one finding."""
    usual = Inspection(
        archive="archives/a",
        model="layers",
        input="image L [8, 8]",
        labels=LABELS,
        rule="fedavg",
        weights_kind="examples",
        rounds=(RoundContents(3, True, (("hospital-1", 400.0), ("hospital-2", None)), 16, 6284, 26264),),
        check=CheckOutcome(3, "check.png", 1e-6, 1e-3, True),
        problems=(Problem("a.pt", "NON_FINITE", "a.pt holds non-finite numbers", True),),
        digest="sha256:" + "0" * 64,
    )
    return replace(usual, **changes)


def votes(**changes):
    """FedDebug's finding: hospital-1 differs."""
    usual = Finding(
        Method("feddebug", (("random_inputs", 10), ("threshold", 0.003), ("seed", 0))),
        10,
        (
            Suspect("hospital-1", 0.5, 1, Differences(9, 31.5)),
            Suspect("hospital-2", 0.3, 2, Differences(1, 12.0)),
            Suspect("hospital-3", 0.2, 3, Differences(0, 2.25)),
        ),
        StandsOut("hospital-1", 8.0, chance=0.000125),
        voting=10,
    )
    return replace(usual, **changes)


def axes(**changes):
    """The influence test's finding: hospital-2 is on the suspects' side."""
    usual = Finding(
        Method("influence", (("noise_inputs", 5), ("seed", 0))),
        4,
        (
            Suspect("hospital-2", 0.5, 1, TwoAxes(0.75, 0.125, 5)),
            Suspect("hospital-1", 0.5, 2, TwoAxes(-0.25, 0.5, 0)),
        ),
        StandsOut("hospital-2", 0.01, (0.005, 0.02)),
    )
    return replace(usual, **changes)


def misled(**changes):
    """One client's part in four mispredictions and twelve controls."""
    return replace(Misled(0.625, (0.5, 0.75), 4, 4, 0.125, 3, 3, 1), **changes)


def shares(**changes):
    """The ledger's finding: hospital-1 moved the model towards its mispredictions."""
    usual = Finding(
        Method("mispredictions", (("tolerance", 0.01), ("max_nodes", 128), ("seed", 0))),
        4,
        (Suspect("hospital-1", 0.5, 1, misled()), Suspect("hospital-2", 0.5, 2, misled(share=-0.25, top=0))),
        StandsOut("hospital-1", 0.5, (0.375, 0.625)),
        controls=12,
    )
    return replace(usual, **changes)


def localization(*findings, **changes):
    """A whole localization, by all methods unless told otherwise."""
    usual = Localization(
        run=Run("cpu", "float32", 1, (("torch", "2.15.0"),)),
        archive="archives/a",
        digest="sha256:" + "0" * 64,
        round=3,
        replay=round_replay(),
        findings=findings or (votes(), axes(), shares()),
        silent=(),
        warnings=(),
    )
    return replace(usual, **changes)
