"""How networks are told the timestep, the class and the augmentation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.errors import InkdropError
from inkdrop.networks.embedding import (
    Condition,
    ConditionEmbedding,
    rows_of,
    sinusoidal,
    to_device,
)
from inkdrop.randomness import torch_seeded

T = torch.tensor([4, 5])
CLASSES = torch.tensor([1, 2])


@given(st.integers(0, 4000), st.integers(2, 64).map(lambda half: 2 * half))
def test_the_timestep_is_told_by_all_sines_then_all_cosines(t, dimensions):
    half = dimensions // 2
    row = sinusoidal(torch.tensor([t]), dimensions)[0]
    assert row.dtype == torch.float32
    assert row.shape == (dimensions,)
    for i in (0, half // 2, half - 1):
        angle = t * 10_000 ** (-i / (half - 1))
        # An angle of 4000 in float32 is known to 2e-4.
        assert row[i].item() == pytest.approx(math.sin(angle), abs=1e-3)
        assert row[half + i].item() == pytest.approx(math.cos(angle), abs=1e-3)


def test_no_two_timesteps_are_told_alike():
    told = sinusoidal(torch.arange(4000), 64).double()
    distances = torch.cdist(told, told) + 10 * torch.eye(4000)
    assert distances.min() > 0.1


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5, 7, 64])
def test_any_number_of_dimensions_will_do(dimensions):
    embedding = ConditionEmbedding(dimensions, 6)
    out = embedding(torch.tensor([0, 5, 999]), None)
    assert out.shape == (3, 6)
    assert out.isfinite().all()
    assert embedding.dimensions >= dimensions


def test_time_and_class_are_told_together():
    embedding = ConditionEmbedding(8, 6, classes=3)
    t = torch.tensor([4, 4, 4, 5])
    out = embedding(t, torch.tensor([0, 1, 0, 0]))
    assert torch.equal(out[0], out[2])
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out[0], out[3])
    assert torch.equal(out, embedding(t, torch.tensor([0, 1, 0, 0], dtype=torch.int32)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_embedding_is_in_the_precision_of_its_weights(dtype):
    embedding = ConditionEmbedding(8, 6, classes=3).to(dtype)
    assert embedding(torch.tensor([4]), torch.tensor([2])).dtype == dtype


def test_a_condition_for_a_network_without_classes_is_an_error():
    with pytest.raises(InkdropError, match=r"takes no condition.*network.classes"):
        ConditionEmbedding(8, 6)(torch.tensor([4]), torch.tensor([2]))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "conditional on 3 classes: give condition"),
        (torch.tensor([0, 3]), "classes are 0 … 2, but condition holds 0 … 3"),
        (torch.tensor([-1, 1]), "classes are 0 … 2, but condition holds -1 … 1"),
        (torch.tensor([1]), r"2 class indices, .* got shape \(1,\)"),
        (torch.tensor(1), r"2 class indices, .* got shape \(\)"),
        (torch.tensor([[1], [2]]), r"got shape \(2, 1\)"),
        (torch.tensor([1.0, 2.0]), "one integer for each example, .* torch.float32"),
    ],
)
def test_a_condition_that_is_no_class_for_each_example_is_an_error(condition, message):
    with pytest.raises(InkdropError, match=message) as error:
        ConditionEmbedding(8, 6, classes=3)(torch.tensor([4, 5]), condition)
    assert "\n" not in str(error.value)


def embedding(**given):
    with torch_seeded(0, "test"):
        return ConditionEmbedding(8, 6, **given)


def labels(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("classes", [None, 3])
def test_classes_in_a_condition_are_classes(classes):
    network = embedding(classes=classes)
    told = None if classes is None else CLASSES
    assert torch.equal(network(T, Condition(told)), network(T, told))


@pytest.mark.parametrize("classes", [None, 3])
def test_no_augmentation_is_told_by_zeros_exactly(classes):
    network = embedding(classes=classes, augmentations=9)
    told = None if classes is None else CLASSES
    as_they_are = network(T, told)
    assert torch.equal(network(T, Condition(told)), as_they_are)
    assert torch.equal(network(T, Condition(told, torch.zeros(2, 9))), as_they_are)
    assert not torch.allclose(network(T, Condition(told, labels(2, 9))), as_they_are)


def test_each_label_of_an_augmentation_is_told_to_its_own_example():
    network = embedding(classes=3, augmentations=9)
    t, classes = torch.full((10,), 4), torch.ones(10, dtype=torch.int64)
    told = torch.cat([torch.zeros(1, 9), torch.eye(9)])
    change = network(t, Condition(classes, told)) - network(t, classes)
    assert (change[0] == 0).all()
    expected = network.augmentation_embedding.weight.T
    torch.testing.assert_close(change[1:], expected, rtol=1e-4, atol=1e-5)
    assert (expected != 0).all()


def test_other_initial_weights_do_not_depend_on_augmentation():
    without, told = embedding(classes=3), embedding(classes=3, augmentations=9)
    assert without.augmentation_embedding is None
    extra = set(told.state_dict()) - set(without.state_dict())
    assert extra == {"augmentation_embedding.weight"}
    for name, weight in without.state_dict().items():
        assert torch.equal(weight, told.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_augmentation_is_told_in_the_precision_of_the_weights(dtype):
    network = embedding(augmentations=9).to(dtype)
    assert network(T, Condition(None, labels(2, 9))).dtype == dtype


def test_a_compiled_network_is_told_the_same():
    network = embedding(classes=3, augmentations=9)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for condition in (CLASSES, Condition(CLASSES), Condition(CLASSES, labels(2, 9))):
        assert torch.equal(compiled(T, condition), network(T, condition))


def test_augmentation_for_a_network_that_is_not_told_is_an_error():
    for classes, told in ((None, None), (3, CLASSES)):
        with pytest.raises(InkdropError, match=r"not told of augmentation.*build it") as error:
            embedding(classes=classes)(T, Condition(told, torch.zeros(2, 9)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (torch.zeros(2, 8), r"9 floats for each of 2 examples, got shape \(2, 8\)"),
        (torch.zeros(1, 9), r"got shape \(1, 9\)"),
        (torch.zeros(9), r"got shape \(9,\)"),
        (torch.zeros(2, 9, dtype=torch.int64), r"9 floats .* torch.int64"),
    ],
)
def test_an_augmentation_of_another_shape_or_type_is_an_error(augmentation, message):
    with pytest.raises(InkdropError, match=message) as error:
        embedding(augmentations=9)(T, Condition(None, augmentation))
    assert "\n" not in str(error.value)


def test_classes_are_wanted_and_refused_in_a_condition_as_without_one():
    with pytest.raises(InkdropError, match="conditional on 3 classes"):
        embedding(classes=3, augmentations=9)(T, Condition(None, torch.zeros(2, 9)))
    with pytest.raises(InkdropError, match="takes no condition"):
        embedding(augmentations=9)(T, Condition(CLASSES, torch.zeros(2, 9)))
    with pytest.raises(InkdropError, match="takes no condition"):
        embedding(augmentations=9)(T, CLASSES)
    with pytest.raises(InkdropError, match="classes are 0 … 2"):
        embedding(classes=3)(T, Condition(CLASSES + 1))


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([3, 0])], ids=["slice", "index"])
def test_rows_of_a_condition_are_taken_from_all_of_it(rows):
    classes, augmentation = torch.arange(4), labels(4, 9)
    assert rows_of(None, rows) is None
    assert torch.equal(rows_of(classes, rows), classes[rows])
    both = rows_of(Condition(classes, augmentation), rows)
    assert isinstance(both, Condition)
    assert torch.equal(both.classes, classes[rows])
    assert torch.equal(both.augmentation, augmentation[rows])
    assert rows_of(Condition(classes), rows).augmentation is None
    assert rows_of(Condition(None, augmentation), rows).classes is None


def test_a_condition_is_moved_as_a_whole():
    assert to_device(None, "meta") is None
    assert to_device(CLASSES, "meta").device.type == "meta"
    both = to_device(Condition(CLASSES, labels(2, 9)), "meta")
    assert isinstance(both, Condition)
    assert {part.device.type for part in both} == {"meta"}
    assert to_device(Condition(CLASSES), "meta").augmentation is None
