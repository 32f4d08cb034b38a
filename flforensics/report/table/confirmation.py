"""How strong the evidence for one input is, for people."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from flforensics.report.table.layout import wrapped
from flforensics.report.words import percent, plural, shown
from flforensics.results import Agreement, Confirmation, Controls, InputTrace, Others, Rate, Repair

_INDENT, _WIDTH = 12, 88
_METHODS = {"ledger": "ledger", "tracefl": "TraceFL", "drop": "drop", "refuse": "re-fusion"}
_FATES = {
    "stays_right": "still right",
    "becomes_right": "now right",
    "becomes_wrong": "now wrong",
    "stays_wrong": "still wrong",
    "keeps": "unchanged",
    "changes": "changed",
}
GRADES = (
    "Grades: A, the methods agree, re-fusion without the file takes the prediction away, and the file is on top of"
    " noise less often; B, the methods agree and one of the other two holds; C, the methods disagree; D, not"
    " distinguishable. The reasons: --format csv or --format json."
)
"""What the grades of many inputs mean."""


def confirmation_lines(one: InputTrace) -> Iterator[str]:
    """The grade and its reason first, then a line for each thing that was tried; nothing where nobody asked."""
    if one.confirmation is None:
        return
    confirmation = one.confirmation
    yield wrapped(f"Evidence: grade {confirmation.grade}: {confirmation.reason}. {_about(confirmation, one)}")
    yield ""
    rows = [
        ("methods", _agreement(confirmation.agreement)),
        ("orders", _orders(confirmation.agreement)),
        ("stability", _stability(confirmation)),
        ("controls", _controls(confirmation.controls)),
        ("repair", _repair(confirmation.repair, one)),
    ]
    for name, text in rows:
        yield textwrap.indent(wrapped(text, width=_WIDTH), " " * _INDENT).replace(
            " " * _INDENT, f"{name:<{_INDENT}}", 1
        )
    yield ""


def repair_lines(inputs: Sequence[InputTrace]) -> Iterator[str]:
    """For each client that is named: what a fusion without it does to all inputs."""
    named = {one.responsible.client: one for one in reversed(inputs) if one.responsible.client is not None}
    for client, one in sorted(named.items()):
        if one.confirmation is None or one.confirmation.repair is None:
            continue
        repair = one.confirmation.repair
        counts = _counted(repair.others)
        counts[_FATES[_own_fate(repair, one)]] += 1
        yield wrapped(
            f"Fused again without the file labelled {shown(client)}: of {plural(len(inputs), 'input')},"
            f" {_fates(counts)}."
        )


def _own_fate(repair: Repair, one: InputTrace) -> str:
    """What becomes of the input itself, in the words of `Others`."""
    true = one.subject.true
    if true is None:
        return "changes" if repair.changes else "keeps"
    if repair.index == true:
        return "stays_right" if one.prediction.index == true else "becomes_right"
    return "becomes_wrong" if one.prediction.index == true else "stays_wrong"


def _about(confirmation: Confirmation, one: InputTrace) -> str:
    """Whom everything below is about."""
    if one.responsible.kind == "client":
        return f"About the file labelled {shown(confirmation.client)}:"
    return f"Nobody is named; about the file with the best score, {shown(confirmation.client)}:"


def _agreement(agreement: Agreement) -> str:
    """Who is first for whom."""
    found: dict[str, list[str]] = {}
    for method, client in agreement.first:
        found.setdefault(client, []).append(_METHODS[method])
    firsts = "; ".join(f"{shown(client)} is first for {_listed(methods)}" for client, methods in found.items())
    return (
        f"{firsts}. Were the other {agreement.of - 1} to point at random, as many or more would agree with"
        f" {percent(agreement.at_random)} probability; they share their data."
    )


def _orders(agreement: Agreement) -> str:
    """The rank correlations."""
    pairs = [
        f"{_METHODS[a]}/{_METHODS[b]} {'none' if value is None else f'{value:+.2f}'}"
        for a, b, value in agreement.spearman
    ]
    return f"Spearman over the clients: {', '.join(pairs)}."


def _stability(confirmation: Confirmation) -> str:
    """What keeps the first file, and what does not."""
    stability, own = confirmation.stability, dict(confirmation.agreement.first)
    ledger = _firsts("in", stability.dtype, own["ledger"]), _firsts("for the", stability.target, own["ledger"])
    return f"{'; '.join(ledger)}; TraceFL: {_firsts('with layer decay', stability.layer_decay, own['tracefl'])}."


def _firsts(where: str, tops: Sequence[tuple[str, str]], own: str) -> str:
    """`own is first in x and y`, and who is where it is not."""
    firsts = dict.fromkeys([own, *(first for _, first in tops)])
    names = {first: [name for name, found in tops if found == first] for first in firsts}
    return ", ".join(
        f"{shown(first)} is first {where} {_listed(which)}" for first, which in names.items() if which
    )


def _controls(controls: Controls) -> str:
    return (
        f"first for {_rate(controls.neighbours)} neighbours of the input, {_rate(controls.other_classes)} other"
        f" classes, {_rate(controls.noise)} noise inputs (seed {controls.seed}). Neighbours against noise: p ="
        f" {controls.p_value:.2g} (Fisher's exact test)."
    )


def _rate(rate: Rate) -> str:
    return f"{rate.on_top} of {rate.of}"


def _repair(repair: Repair | None, one: InputTrace) -> str:
    """What a fusion of the other files would do, here and elsewhere."""
    if repair is None:
        return "the rule has no value without it."
    stays = repair.removed is not None and not repair.changes
    removed = f", and {percent(repair.removed or 0.0)} of the margin is gone" if stays else ""
    others = _others(repair.others)
    return f"fused again without it, the model says {shown(repair.label)}{_verdict(repair, one)}{removed}.{others}"


def _verdict(repair: Repair, one: InputTrace) -> str:
    if one.subject.true is not None:
        return ", which is right" if repair.index == one.subject.true else ", which is wrong"
    return "" if repair.changes else " as before"


def _others(others: Others) -> str:
    counts = _counted(others)
    total = sum(counts.values())
    return f" Of {plural(total, 'other input')}: {_fates(counts)}." if total else ""


def _counted(others: Others) -> dict[str, int]:
    return {words: getattr(others, name) for name, words in _FATES.items()}


def _fates(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {words}" for words, count in counts.items() if count)


def _listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
