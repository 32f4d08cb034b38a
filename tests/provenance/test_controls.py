"""Control inputs: seeded by the input, near it or nothing like it, and still what the network takes."""

import pytest
import torch
from torch import Tensor

from flforensics.gradients import Call
from flforensics.provenance import controls

KINDS = {"neighbours": controls.neighbours, "noise": controls.noise}
every_kind = pytest.mark.parametrize("kind", KINDS)

IMAGE = Call((torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),))
FEATURES = Call((torch.tensor([[4.0, 0.0, -1.0, 2.0]]),))
MASKED = Call(
    (),
    {
        "input_ids": torch.tensor([[2, 14, 15, 16, 17, 3, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]),
    },
)
BARE = Call((torch.tensor([[2, 14, 15, 16, 17, 3, 0, 0]]),))
EVERYTHING = {"image": IMAGE, "features": FEATURES, "masked text": MASKED, "bare text": BARE}


def ids(call: Call) -> Tensor:
    return call.keywords["input_ids"] if call.keywords else call.arguments[0]


@every_kind
@pytest.mark.parametrize("what", EVERYTHING)
def test_controls_are_as_many_as_stated_and_of_the_same_shape(kind: str, what: str) -> None:
    one = EVERYTHING[what]
    many = KINDS[kind](one, seed=0, digest="ab")
    assert many.count == controls.COUNT
    pairs = [*zip(one.arguments, many.arguments, strict=True)]
    pairs += [(one.keywords[name], many.keywords[name]) for name in one.keywords]
    for original, changed in pairs:
        assert changed.shape == (controls.COUNT, *original.shape[1:])
        assert changed.dtype == original.dtype


@every_kind
@pytest.mark.parametrize("what", EVERYTHING)
def test_the_seed_and_the_input_fix_them(kind: str, what: str) -> None:
    def drawn(seed: int, digest: str) -> Tensor:
        call = KINDS[kind](EVERYTHING[what], seed=seed, digest=digest)
        return torch.cat([tensor.flatten() for tensor in (*call.arguments, *call.keywords.values())])

    assert torch.equal(drawn(0, "ab"), drawn(0, "ab"))
    assert not torch.equal(drawn(0, "ab"), drawn(1, "ab"))
    assert not torch.equal(drawn(0, "ab"), drawn(0, "cd"))


def test_an_image_is_moved_by_one_pixel_in_every_direction() -> None:
    image = IMAGE.arguments[0][0]
    (near,) = controls.neighbours(IMAGE, seed=0, digest="").arguments
    moved = [
        [
            image[:, min(max(row - down, 0), 5), min(max(column - right, 0), 5)]
            for row in range(6)
            for column in range(6)
        ]
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        if (down, right) != (0, 0)
    ]
    for found, expected in zip(near, moved, strict=False):
        assert torch.equal(found.flatten(1), torch.stack(expected, 1))


@pytest.mark.parametrize("call", [IMAGE, FEATURES], ids=["image", "features"])
def test_neighbours_are_nearer_than_noise(call: Call) -> None:
    near = controls.neighbours(call, seed=0, digest="").arguments[0][len(controls._MOVES) :]
    far = controls.noise(call, seed=0, digest="").arguments[0]
    spread = call.arguments[0].std(correction=0)
    assert ((near - call.arguments[0]).std() / spread).item() == pytest.approx(0.1, rel=0.2)
    assert (far.std() / spread).item() == pytest.approx(1, rel=0.2)
    assert abs((far.mean() - call.arguments[0].mean()) / spread).item() < 0.3


@every_kind
def test_an_input_without_any_spread_is_changed_too(kind: str) -> None:
    changed = KINDS[kind](Call((torch.zeros(1, 4),)), seed=0, digest="").arguments[0]
    assert changed.std() > 0.05
    assert torch.isfinite(changed).all()


@pytest.mark.parametrize("call", [MASKED, BARE], ids=["masked", "bare"])
def test_a_neighbour_of_a_text_differs_in_one_of_its_tokens(call: Call) -> None:
    near = ids(controls.neighbours(call, seed=0, digest=""))
    differing = near != ids(call)
    assert differing.sum(1).max() == 1
    assert differing.any(0).tolist() == [False, True, True, True, True, False, False, False]
    assert ((near >= 0) & (near <= 17)).all()


@pytest.mark.parametrize("call", [MASKED, BARE], ids=["masked", "bare"])
def test_noise_replaces_all_of_a_texts_tokens(call: Call) -> None:
    far = ids(controls.noise(call, seed=0, digest=""))
    assert (far[:, [0, 5, 6, 7]] == ids(call)[:, [0, 5, 6, 7]]).all()
    assert (far[:, 1:5] != ids(call)[:, 1:5]).float().mean() > 0.8


@every_kind
def test_a_mask_stays_as_it_is(kind: str) -> None:
    mask = KINDS[kind](MASKED, seed=0, digest="").keywords["attention_mask"]
    assert torch.equal(mask, MASKED.keywords["attention_mask"].expand(controls.COUNT, -1))


@every_kind
def test_a_text_of_one_token_is_changed(kind: str) -> None:
    changed = KINDS[kind](Call((torch.tensor([[9]]),)), seed=0, digest="").arguments[0]
    assert len(changed.unique()) > 2
