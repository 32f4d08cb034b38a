"""What each localizer's tensors say: a ranking, and whether anybody stands out in it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from flforensics.provenance.localize.chance import FEWEST, chance_of, interval, lead_over, resampled
from flforensics.provenance.localize.departure import EARLIER, Departures, departure, habits, replaced
from flforensics.provenance.localize.feddebug import feddebug
from flforensics.provenance.localize.influence import Influences, influence
from flforensics.provenance.localize.localizing import Batch, Scene
from flforensics.provenance.localize.mispredictions import Blame, joined, mispredictions
from flforensics.results import Departed, Differences, Finding, Method, Misled, StandsOut, Suspect, TwoAxes

_LEAST_LIKELY = 0.05
_FAR = 1.5
"""How far, the median client being 1, the one that is named must depart: few honest ones do (README)."""

_NO_REPLAY = "this round does not replay"
_ALONE = "there is only one client"
_PAIR = "of two clients, either is the odd one out"
_SILENT = "no random input tells one client from all others"
_CHANCE = "clients that differ in nothing give such votes too"
_FEW = f"fewer than {FEWEST} mispredictions say nothing about others"
_AGAINST = "nobody's update moves these inputs towards their wrong classes"
_BEHIND = "the largest part is the server's or unexplained"
_OVERLAP = "the lead does not hold in 95 % of resamplings of the inputs"
_AS_USUAL = "the most suspect update is hardly further from its usual one than others are"
_STRANGER = "nothing earlier is known of the most suspect client"
_AWAY = "the most suspect departure moves these inputs away from their wrong classes"
_FEW_KNOWN = "of fewer than three clients with earlier rounds, any may be the odd one out"
_ON_NOISE = "the update with the most influence raises these classes on noise as well"


def votes(scene: Scene) -> Finding:
    """FedDebug: the most accused client stands out if equal clients would hardly get so many votes."""
    case, threshold = scene.case, scene.materials.threshold
    silences = feddebug(case, threshold=threshold)
    counts, silent = silences.votes.tolist(), silences.counts.double().mean(0).tolist()
    order = sorted(range(len(counts)), key=lambda k: (-counts[k], -silent[k]))
    parameters = (("random_inputs", case.call.count), ("threshold", threshold), ("seed", case.settings.seed))
    figures = [Differences(counts[k], silent[k]) for k in range(len(counts))]
    return Finding(
        Method("feddebug", parameters),
        case.call.count,
        _suspects(scene, order, figures),
        _most_votes(scene, counts, order),
        voting=sum(counts),
    )


def _most_votes(scene: Scene, counts: Sequence[int], order: Sequence[int]) -> StandsOut:
    if len(counts) < 3:
        return StandsOut(None, reason=_ALONE if len(counts) == 1 else _PAIR)
    if not sum(counts):
        return StandsOut(None, reason=_SILENT)
    chance = chance_of(counts[order[0]], voting=sum(counts), clients=len(counts))
    lead = float(counts[order[0]] - counts[order[1]])
    reason = _CHANCE if chance >= _LEAST_LIKELY or lead == 0 else ""
    return _named(scene, order[0], StandsOut(None, lead, chance=chance, reason=reason))


def axes(scene: Scene) -> Finding:
    """The influence test: who is ahead on the mispredictions stands out if every noise input agrees."""
    noise, seed = scene.materials.noise, scene.case.settings.seed
    assert noise is not None
    noise = noise.to(torch.device(scene.case.settings.device), scene.case.settings.dtype)
    cases = [batch.mispredicted() for batch in scene.batches if batch.wrong.any()]
    found = _pooled([influence(case, noise) for case in cases])
    mean, order, flags = found.target.mean(0), found.order, found.flags.tolist()
    target, on_noise = _scaled(mean), _scaled(found.noise.mean(0))
    figures = [TwoAxes(float(target[k]), float(on_noise[k]), flags[k]) for k in range(len(order))]
    leader = int(mean.argmax())
    stands = _ahead(scene, found.target, leader)
    if stands.client is not None and flags[leader] < noise.count:
        stands = replace(stands, client=None, reason=_ON_NOISE)
    method = Method("influence", (("noise_inputs", noise.count), ("seed", seed)))
    return Finding(method, len(found.target), _suspects(scene, order, figures), stands)


def _pooled(parts: Sequence[Influences]) -> Influences:
    """Several batches as one."""
    sizes = torch.tensor([len(part.target) for part in parts], dtype=torch.float64)
    noise = torch.stack([part.noise.cpu() for part in parts])
    return Influences(
        torch.cat([part.target.cpu() for part in parts]),
        torch.einsum("p,pmk->mk", sizes / sizes.sum(), noise),
    )


def _scaled(values: Tensor) -> Tensor:
    """Divided by their range, as published; 0 where that is 0."""
    span = values.max() - values.min()
    return values / span if span > 0 else torch.zeros_like(values)


def shares(scene: Scene) -> Finding:
    """The ledger's shares: whose mean share of the movement towards the wrong classes is the largest."""
    settings = scene.case.settings
    blame = joined([mispredictions(batch.case) for batch in scene.batches])
    inputs = _Inputs.of(scene.batches, blame)
    wrong = blame.shares[inputs.wrong]
    clients = len(scene.case.clients)
    bounds = _bounds(wrong, seed=settings.seed)
    order = wrong[:, :clients].mean(0).argsort(descending=True, stable=True).tolist()
    figures = [inputs.figures(k, bounds[k]) for k in range(clients)]
    parameters = (
        ("tolerance", settings.tolerance),
        ("max_nodes", settings.max_nodes),
        ("seed", settings.seed),
    )
    return Finding(
        Method("mispredictions", parameters),
        len(wrong),
        _suspects(scene, order, figures),
        _ahead(scene, wrong, order[0]),
        controls=len(blame.shares) - len(wrong),
        rough=blame.rough,
    )


def departures(scene: Scene) -> Finding:
    """Departures from usual updates: the most suspect client stands out if it departs far, towards the error."""
    settings, count = scene.case.settings, len(scene.case.clients)
    known = habits(scene.case, scene.materials.before)
    parts = [departure(batch.case, known) for batch in scene.batches]
    classes = [replaced(batch.case, known) for batch in scene.batches]
    blame = joined([Blame(part.shares, said, part.rough) for part, said in zip(parts, classes, strict=True)])
    usual, distances = torch.cat([part.usual for part in parts]), parts[0].distances.tolist()
    moved = _Inputs.of(scene.batches, blame)
    suspected = replace(moved, blame=replace(blame, shares=_suspected(parts)))
    wrong = suspected.blame.shares[moved.wrong, :count]
    bounds = _bounds(wrong, seed=settings.seed)
    order = wrong.mean(0).argsort(descending=True, stable=True).tolist()
    figures = [
        _departed(
            moved.figures(k, None),
            suspected.figures(k, bounds[k]),
            usual=float(usual[moved.wrong, k].mean()),
            distance=distances[k],
            rounds=len(known[k].before),
        )
        for k in range(count)
    ]
    doubt = _doubt(figures, order[0], blame.shares[moved.wrong].mean(0))
    stands = _ahead(scene, wrong, order[0])
    if doubt and (stands.client is not None or not wrong.any()):
        stands = replace(stands, client=None, reason=doubt)
    parameters = (
        ("earlier_rounds", EARLIER),
        ("tolerance", settings.tolerance),
        ("max_nodes", settings.max_nodes),
        ("seed", settings.seed),
    )
    return Finding(
        Method("departure", parameters),
        len(wrong),
        _suspects(scene, order, figures),
        stands,
        controls=len(blame.shares) - len(wrong),
        rough=blame.rough,
    )


def _suspected(parts: Sequence[Departures]) -> Tensor:
    """The clients' shares of each input's suspicion, 0 where nobody is suspect; the other two lines have none."""
    suspicion = torch.cat([part.suspicion for part in parts])
    total = suspicion.sum(1, keepdim=True)
    return nn.functional.pad(torch.where(total > 0, suspicion / total, 0.0), (0, 2))


def _departed(moved: Misled, suspected: Misled, *, usual: float, distance: float, rounds: int) -> Departed:
    """What the departure moved, and how suspect it is."""
    ranked = {"interval": suspected.interval, "top": suspected.top, "control_top": suspected.control_top}
    return Departed(
        **{**asdict(moved), **ranked}, suspicion=suspected.share, usual=usual, distance=distance, rounds=rounds
    )


def _doubt(figures: Sequence[Departed], leader: int, lines: Tensor) -> str:
    """What speaks against naming a client; `lines` [K + 2] are the mean shares of the movement."""
    if sum(one.rounds > 0 for one in figures) < 3:
        return _FEW_KNOWN
    if not figures[leader].rounds:
        return _STRANGER
    if figures[leader].distance < _FAR:
        return _AS_USUAL
    if lines[leader] <= 0:
        return _AWAY
    return _BEHIND if lines[leader] < lines[-2:].max() else ""


@dataclass(frozen=True)
class _Inputs:
    """All given inputs of a finding: `wrong` [N], true and predicted classes [N], and what the ledger says."""

    blame: Blame
    wrong: Tensor
    true: Tensor
    predicted: Tensor

    @classmethod
    def of(cls, batches: Sequence[Batch], blame: Blame) -> "_Inputs":
        """Several batches as one; the target's class of a misprediction is the predicted one."""
        wrong, true, classes = (
            torch.cat([one.cpu() for one in column])
            for column in zip(*((one.wrong, one.true, one.case.target.classes) for one in batches), strict=True)
        )
        return cls(blame, wrong, true, classes)

    def figures(self, k: int, bounds: tuple[float, float] | None) -> Misled:
        """The record of client k; `bounds` are of its mean share."""
        shares, wrong, right = self.blame.shares[:, :-2], self.wrong, self.wrong.logical_not()
        top = (shares.argmax(1) == k) & (shares[:, k] > 0)
        refused = self.blame.refused[:, k].cpu()
        # without a true class, an input counts as right once it is no longer said to be what it was
        repaired = torch.where(self.true >= 0, refused == self.true, refused != self.predicted)
        exists, controls = bool((refused >= 0).all()), bool(right.any())
        return Misled(
            share=float(shares[wrong, k].mean()),
            interval=bounds,
            top=int(top[wrong].sum()),
            towards=int((shares[wrong, k] > 0).sum()),
            control_share=float(shares[right, k].mean()) if controls else None,
            control_top=int(top[right].sum()) if controls else None,
            fixed=int(repaired[wrong].sum()) if exists else None,
            broken=int((~repaired[right]).sum()) if exists and controls else None,
        )


def _bounds(values: Tensor, *, seed: int) -> list[tuple[float, float] | None]:
    """The interval of every column's mean over the choice of rows; None with too few of them."""
    if len(values) < FEWEST:
        return [None] * values.shape[1]
    return [interval(column) for column in resampled(values, seed=seed).T]


def _ahead(scene: Scene, values: Tensor, column: int) -> StandsOut:
    """Whether a column of `values` [N, L] is ahead of the others whichever inputs are drawn; clients are first."""
    mean = values.mean(0, keepdim=True).cpu()
    if mean.shape[1] == 1:
        return StandsOut(None, reason=_ALONE)
    lead = float(lead_over(mean, column))
    if len(values) < FEWEST:
        return StandsOut(None, lead, reason=_FEW)
    bounds = interval(lead_over(resampled(values, seed=scene.case.settings.seed), column))
    reason = ""
    if float(mean[0, column]) <= 0:
        reason = _AGAINST
    elif int(mean.argmax()) >= len(scene.case.clients):
        reason = _BEHIND
    elif bounds[0] <= 0:
        reason = _OVERLAP
    return _named(scene, column, StandsOut(None, lead, bounds, reason=reason))


def _named(scene: Scene, column: int, stands: StandsOut) -> StandsOut:
    """With the client's name, if nothing speaks against naming one."""
    if not scene.replays:
        return replace(stands, reason=_NO_REPLAY)
    return stands if stands.reason else replace(stands, client=scene.case.clients[column].client)


def _suspects(
    scene: Scene, order: Sequence[int], figures: Sequence[Differences | TwoAxes | Misled]
) -> tuple[Suspect, ...]:
    """The clients in the ranking's order."""
    weights = scene.case.scene.coefficients.values
    return tuple(
        Suspect(scene.case.clients[k].client, weights[k], rank + 1, figures[k]) for rank, k in enumerate(order)
    )
