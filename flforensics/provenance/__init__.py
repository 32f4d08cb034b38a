"""Who is responsible for a prediction: the methods of the contract, one file each, looked up here.

A method gets a `Case` (one round, one network, one batch of inputs, one target per input) and returns a
`Scores`: a number per input and client, and where the method has a ledger, the lines that make it add up.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodRow:
    """One method: where its implementation is, one line of help, its source, and whether its lines add up.

    `options` are the settings that influence its numbers, in the words of the command line. A share is part of the
    round's movement, or with `softmax` the published method's softmax over clients. `by` is what its scores can be
    split by.
    """

    where: str
    help: str
    paper: str
    adds_up: bool
    options: tuple[str, ...]
    softmax: bool = False
    by: tuple[str, ...] = ()


METHODS: dict[str, MethodRow] = {
    "ledger": MethodRow(
        "flforensics.provenance.ledger:ledger",
        "every client's part of what this round changed, adding up exactly",
        "Aumann and Shapley 1974; Sundararajan et al., ICML 2017 (integrated gradients)",
        True,
        ("target", "nodes", "tolerance", "max_nodes"),
        by=("layer", "neuron"),
    ),
    "tracefl": MethodRow(
        "flforensics.provenance.tracefl:tracefl",
        "the published neuron provenance; always explains the logit",
        "Gill, Anwar and Gulzar, ICSE 2025",
        False,
        ("layer_decay", "scale_clients"),
        softmax=True,
        by=("layer",),
    ),
    "counterfactual": MethodRow(
        "flforensics.provenance.counterfactual:counterfactual",
        "what would be without each client: its share taken out (the score), and the others fused again",
        "leave one out; the removed share is the last marginal contribution of the Shapley game",
        False,
        ("target",),
    ),
    "shapley": MethodRow(
        "flforensics.provenance.shapley:shapley",
        "what each client, or group, adds on average, whoever came before; exact up to 12, sampled beyond",
        "Shapley 1953; antithetic permutations: Mitchell et al., JMLR 2022",
        True,
        ("target", "tolerance", "max_permutations", "seed", "groups"),
    ),
}
