"""One line of JSON for each finished cell: what was asked, the truth, and what every method said."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.bench.accuracy.federations import Federation
from tests.bench.accuracy.measures import spearman
from tests.bench.accuracy.methods import Answer
from tests.bench.accuracy.scenarios import Question

Record = dict[str, Any]
REFERENCES = ("shapley", "re-fusion")
"""The methods that the others' rankings are compared with."""


def record_of(
    question: Question, federation: Federation, predicted: Tensor, answers: Mapping[str, Answer]
) -> Record:
    """A question with its answers as plain values. Clients are given by their number in the federation.

    `held` are the participants' examples of each label; for each method `top` and `named` are per input,
    `together` is the top client of all inputs' scores, each input's scaled to Σ|score| = 1.
    """
    clients = [_number(client.client) for client in question.round.clients]
    held = federation.holdings[clients].tolist()
    return {
        "scenario": question.scenario,
        "accuracy": round(question.accuracy, 4),
        "culprit": None if question.culprit is None else _number(question.culprit),
        "flip": None if question.flip is None else [question.flip.source, question.flip.to],
        "clients": clients,
        "held": held,
        "true": question.inputs.y.tolist(),
        "predicted": predicted.tolist(),
        "methods": {name: _said(answer, answers) for name, answer in answers.items()},
    }


def _said(answer: Answer, answers: Mapping[str, Answer]) -> Record:
    scores = answer.scores
    together = (scores / scores.abs().sum(1, keepdim=True).clamp(min=1e-30)).sum(0)
    said: Record = {
        "seconds": round(answer.seconds, 4),
        "top": [_number(client) for client in answer.top],
        "together": _number(answer.clients[int(together.argmax())]),
    }
    if answer.named is not None:
        said["named"] = [None if client is None else _number(client) for client in answer.named]
    for name in REFERENCES:
        other = answers.get(name)
        if other is not None and other is not answer and other.clients == answer.clients:
            rows = zip(scores.tolist(), other.scores.tolist(), strict=True)
            said[name] = [_rounded(spearman(left, right)) for left, right in rows]
    return said


def finished(path: Path) -> list[Record]:
    """The lines of a results file, plain or compressed; a last line that an interruption cut off is left out."""
    if not path.exists():
        return []
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _number(client: str) -> int:
    return int(client.removeprefix("client-"))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
