"""Parts by layer and by neuron, and edits that were found, as people and programs read them."""

import csv
import io

from flforensics.report import render
from flforensics.results import LayerPart, Neurons, UnitPart
from tests.report import records

NAMES = tuple(f"a-client-with-a-name-{k}" for k in range(7))


def layered(layers=15):
    """Seven clients; layer k has parts k, -k, 0, ...; a name that a terminal would obey."""
    parts = tuple(
        LayerPart(
            f"block.{k}.\x1b[31m" if k == 14 else f"block.{k}",
            tuple((name, (k, -k, 0, 0, 0, 0, 1)[i]) for i, name in enumerate(NAMES)),
            0.25,
            0.5,
        )
        for k in range(layers)
    )
    clients = tuple(records.score(name, 1.0, rank=rank) for rank, name in enumerate(NAMES, start=1))
    return records.trace(records.one_input(clients=clients, layers=parts))


def matrix(text):
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("layer"))
    return lines[start : next(k for k in range(start, len(lines)) if not lines[k])]


def test_the_layers_that_matter_most_in_the_networks_order():
    lines = matrix(render(layered(), "table"))
    assert [line.split()[0] for line in lines[2:]] == [
        *(f"block.{k}" for k in range(3, 14)),
        "block.14.\\u001b[31m",
        "3",
        "=",
    ]
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[1:] == [NAMES[0], NAMES[1], "5", "more", "(no", "client)"]


def test_the_matrix_adds_up_both_ways():
    lines = matrix(render(layered(), "table", top=2))
    cells = [[float(cell) for cell in line.split()[-4:]] for line in lines[2:]]
    for place, total in enumerate(cells[-1]):
        assert sum(row[place] for row in cells[:-1]) == total
    assert cells[-1] == [105, -105, 15, 15 * 0.75]


def test_all_clients_fit_where_names_are_short():
    layers = (LayerPart("0", (("hospital-1", 1.0), ("hospital-2", -0.5)), 0.0, 0.0),)
    (header, _, row, total) = matrix(render(records.trace(records.one_input(layers=layers)), "table"))
    assert header.split() == ["layer", "hospital-1", "hospital-2", "(no", "client)"]
    assert row.split() == ["0", "+1.00", "-0.50", "+0"]
    assert total.split()[2:] == ["+1.00", "-0.50", "+0"]


def test_tracefl_has_no_line_for_nobody():
    layers = (LayerPart("0", (("hospital-1", 1.0), ("hospital-2", -0.5))),)
    result = records.trace(records.without_ledger(layers=layers))
    assert matrix(render(result, "table"))[0].split() == ["layer", "hospital-1", "hospital-2"]


NEURONS = Neurons(
    "hospital-1",
    2.0,
    (
        UnitPart("head", "neuron", 3, None, 1.5, 0.75),
        UnitPart("attention", "tensor", None, "attention.in_proj_weight", -0.5, -0.25),
        UnitPart("tokens", "row", 2043, None, 0.25, None),
    ),
    4000,
    0.75,
)


def test_neurons_for_people():
    text = render(records.trace(records.one_input(neurons=NEURONS)), "table")
    assert (
        "What carries hospital-1's score of +2.00, and its share of it (4,000 others carry +0.75 together):"
        in text
    )
    rows = [line.split() for line in text.splitlines() if line.startswith(" ")]
    assert ["1", "head", "neuron", "3", "+1.50", "75", "%", "█" * 15] in rows
    assert ["2", "attention", "in_proj_weight", "-0.50", "-25", "%", "░" * 5] in rows
    assert ["3", "tokens", "row", "2043", "+0.25"] in rows


def test_neurons_for_programs():
    result = records.trace(records.one_input(neurons=NEURONS))
    found = list(csv.DictReader(io.StringIO(render(result, "csv"))))
    assert [(row["client"], row["unit.layer"], row["unit.unit"], row["unit.tensor"]) for row in found] == [
        ("hospital-1", "head", "3", ""),
        ("hospital-1", "attention", "", "attention.in_proj_weight"),
        ("hospital-1", "tokens", "2043", ""),
    ]
    assert found[2]["unit.share"] == ""
    text = render(result, "json")
    assert '"others": {' in text
    assert '"share": null' in text


def test_nothing_of_it_where_it_was_not_asked_for():
    for form in ("table", "json", "csv"):
        text = render(records.trace(), form)
        assert "layers" not in text
        assert "neurons" not in text


def test_an_edit_that_was_found_is_rounded_up():
    result = records.trace(records.without_ledger(tamper_bound=0.2901))
    text = " ".join(render(result, "table").split())
    assert "An edit of at most 30 % of the updates involved that cancels in the fusion was found" in text
    assert '"kind": "upper bound"' in render(result, "json")
