"""What is proposed follows from what images are, and what is asked for goes first."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.config import FITS, DataConfig
from inkdrop.data.checked import Check, Flag, Part
from inkdrop.data.facts import Bad
from inkdrop.data.proposal import Proposal, converted, propose
from inkdrop.errors import InkdropError


def part(*sizes: tuple[int, int], grey: int = 0, bad: int = 0, **facts: object) -> Part:
    """What a check says of images of these (width, height), `grey` of them without colour."""
    counts: dict[str, int] = {}
    sides: dict[int, int] = {}
    for width, height in sizes:
        counts[f"{width}×{height}"] = counts.get(f"{width}×{height}", 0) + 1
        sides[min(width, height)] = sides.get(min(width, height), 0) + 1
    aspects = sorted(width / height for width, height in sizes)
    known = {
        "name": "photos",
        "count": len(sizes) + bad,
        "bad": tuple(Bad(i, f"{i}.png", "truncated", "cut off") for i in range(bad)),
        "sizes": counts,
        "distinct_sizes": len(counts),
        "shorter_sides": sides,
        "aspect": (aspects[0], aspects[len(aspects) // 2], aspects[-1]) if sizes else (0, 0, 0),
        "smallest": None,
        "largest": None,
        "modes": {"RGB": len(sizes)},
        "formats": {"PNG": len(sizes)},
        "depths": {8: len(sizes)},
        "flags": {},
        "coloured": len(sizes) - grey,
        "classes": None,
        "class_names": (),
        "duplicates": 0,
        "duplicate_groups": (),
        "averages": None,
        "visible_luma": None,
        "content": "",
    }
    return Part(**(known | facts))


def flags(**counts: int) -> dict[str, Flag]:
    return {name: Flag(count, ()) for name, count in counts.items()}


def proposed(train: Part, test: Part | None = None, **asked: object) -> Proposal:
    return propose(checked(train, test), DataConfig(source="files", **asked))


def checked(train: Part, test: Part | None = None) -> Check:
    return Check(1, "photos", "a folder", (), train, test, 0, (), 0.0)


def size(*sizes: tuple[int, int], **asked: object) -> tuple[int, int]:
    transform = proposed(part(*sizes), **asked).transform
    return transform.height, transform.width


def said(proposal: Proposal) -> str:
    return "; ".join(proposal.reasons)


# Size


@pytest.mark.parametrize(("width", "height"), [(28, 28), (64, 48), (1, 1), (7, 64)])
def test_images_of_one_small_size_stay_as_they_are(width: int, height: int) -> None:
    assert size((width, height), (width, height)) == (height, width)
    assert "as they are" in said(proposed(part((width, height))))


def test_large_images_of_one_shape_keep_it() -> None:
    assert size((640, 480)) == (48, 64)
    assert size((480, 640)) == (64, 48)
    assert size((640, 480), (320, 240)) == (48, 64)
    assert size((65, 65)) == (64, 64)


def test_images_of_many_shapes_become_squares_that_half_of_them_reach() -> None:
    assert size((640, 480), (30, 50), (40, 33)) == (32, 32)
    assert size((10, 30), (11, 12), (100, 90)) == (8, 8)
    assert size((3, 2), (5, 9), (4, 4)) == (4, 4)


def test_a_size_asked_for_goes_first_and_one_number_is_both_sides() -> None:
    assert size((28, 28), size=(20,)) == (20, 20)
    assert size((28, 28), size=(48, 64)) == (48, 64)
    assert said(proposed(part((28, 28)), size=(20,))).startswith("size 20×20, as asked")


@pytest.mark.parametrize("fit", FITS)
def test_other_shapes_are_said_to_be_changed_also_where_only_test_images_have_them(
    fit: str,
) -> None:
    alike, other = part((28, 28), (28, 28)), part((28, 28), (30, 20))
    assert "other shapes" not in said(proposed(alike, alike, fit=fit))
    for parts in ((other, alike), (alike, other)):
        assert "other shapes" in said(proposed(*parts, size=(28,), fit=fit))


def test_what_padding_is_made_of_is_said() -> None:
    wide = part((40, 20))
    assert "padded with white" in said(proposed(wide, size=(16,), fit="pad"))
    red = proposed(wide, size=(16,), fit="pad", background="red")
    assert "padded with #ff0000" in said(red)
    assert "padded with nothing" in said(proposed(wide, size=(16,), fit="pad", channels=4))


def test_images_that_are_enlarged_are_counted_in_both_parts() -> None:
    small, large = part((10, 10), (64, 64)), part((20, 60))
    assert "1 smaller image enlarged" in said(proposed(small, size=(16,)))
    assert "2 smaller images enlarged" in said(proposed(small, large, size=(32,)))


def test_an_image_is_enlarged_where_one_side_has_to_be() -> None:
    square = part((28, 28))
    assert "1 smaller image enlarged" in said(proposed(square, size=(17, 31)))
    assert "enlarged" not in said(proposed(square, size=(17, 31), fit="pad"))
    assert "1 smaller image enlarged" in said(proposed(square, size=(29, 31), fit="pad"))
    many = part((10, 90), distinct_sizes=51)  # more than are listed
    assert "1 smaller image enlarged" in said(proposed(many, size=(16,)))


# Colour


def test_channels_follow_from_colours_not_from_how_they_are_stored() -> None:
    grey = part((8, 8), (8, 8), grey=2)
    assert proposed(grey).transform.channels == 1
    assert "2 of 2 images are stored as colour, but have none" in said(proposed(grey))
    assert "stored as" not in said(proposed(part((8, 8), grey=1, modes={"L": 1})))
    mixed = part((8, 8), (8, 8), grey=1)
    assert proposed(mixed).transform.channels == 3
    assert "colour (1 of 2 images have none)" in said(proposed(mixed))


def test_one_coloured_test_image_makes_all_of_them_coloured() -> None:
    assert proposed(part((8, 8), grey=1), part((8, 8))).transform.channels == 3


def test_channels_asked_for_go_first_and_lost_colour_is_said() -> None:
    assert proposed(part((8, 8), grey=1), channels=3).transform.channels == 3
    assert "grey, as asked (2 images had colour)" in said(
        proposed(part((8, 8), (8, 8)), channels=1)
    )
    assert proposed(part((8, 8)), channels=4).transform.channels == 4


# Background


def test_transparent_images_are_shown_on_what_they_stand_out_from() -> None:
    dark = part((8, 8), flags=flags(transparent=1), visible_luma=0.2)
    light = part((8, 8), flags=flags(transparent=1), visible_luma=0.9)
    assert proposed(dark).transform.background == (255, 255, 255)
    assert "1 transparent image on white" in said(proposed(dark))
    assert proposed(light).transform.background == (0, 0, 0)
    assert "on black, since they are light" in said(proposed(light))
    assert proposed(light, background="#010203").transform.background == (1, 2, 3)
    assert "on #010203, as asked" in said(proposed(light, background="#010203"))
    assert "transparent image" not in said(proposed(dark, channels=4))


def test_a_background_that_is_no_colour_is_refused() -> None:
    with pytest.raises(InkdropError, match="unknown colour 'nocolour'"):
        proposed(part((8, 8)), background="nocolour")


# What cannot be used, and what is done to all


def test_a_part_without_a_usable_image_is_refused_and_the_first_is_named() -> None:
    usable, bad = part((8, 8)), part(bad=3)
    for parts in ((bad,), (usable, bad)):
        with pytest.raises(InkdropError, match=r"not one of 3 .*0\.png: cut off"):
            proposed(*parts)


def test_what_happens_to_odd_images_is_said_with_how_many() -> None:
    assert converted(checked(part((8, 8)))) == []
    odd = part((8, 8), bad=2, flags=flags(rotated=1, animated=3))
    test = part((8, 8), bad=1, flags=flags(animated=4))
    first, *others = converted(checked(odd, test))
    assert first.startswith("3 left out")
    assert others == [
        "1 turned upright, as EXIF says",
        "7 of several frames: the first is used",
    ]


sides = st.integers(1, 5000)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=20))
def test_a_proposed_size_is_no_larger_than_a_network_trains_on(
    sizes: Sequence[tuple[int, int]],
) -> None:
    transform = proposed(part(*sizes)).transform
    assert min(transform.height, transform.width) >= 1
    assert max(transform.height, transform.width) <= 64
    shorter = sorted(min(one) for one in sizes)
    if len(set(sizes)) > 1:  # half of the images need not be enlarged
        assert min(transform.height, transform.width) <= shorter[(len(shorter) - 1) // 2]


def test_the_same_check_gives_the_same_proposal() -> None:
    assert proposed(part((8, 9), (20, 30))) == proposed(part((8, 9), (20, 30)))
