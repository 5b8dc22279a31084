"""How networks are told the timestep, the class and the augmentation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.conditions import rows_of
from inkdrop.errors import InkdropError
from inkdrop.networks.embedding import (
    Condition,
    ConditionEmbedding,
    condition_of,
    sinusoidal,
    without,
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


# Told nothing


VECTORS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.0]])


def test_a_null_class_is_looked_up_as_one_more_class():
    network = embedding(classes=3, null=True)
    assert network.class_embedding.num_embeddings == 4
    at = T[:1]
    base = network(at, torch.tensor([-1])) - network.class_embedding.weight[3]
    torch.testing.assert_close(
        network(at, torch.tensor([2])), base + network.class_embedding.weight[2]
    )
    both = network(T, torch.tensor([-1, 1]))
    torch.testing.assert_close(both[:1], network(at, torch.tensor([-1])))


def test_the_null_condition_tells_nothing_and_keeps_shape_and_type():
    network = embedding(classes=3, null=True)
    for dtype in (torch.int64, torch.int32):
        null = network.null_condition(CLASSES.to(dtype))
        assert (null.dtype, null.tolist()) == (dtype, [-1, -1])
    null = embedding(vector=3, null=True).null_condition(VECTORS)
    assert null.shape == VECTORS.shape
    assert null.isnan().all()
    told = network.null_condition(Condition(CLASSES, labels(2, 9)))
    assert told.classes.tolist() == [-1, -1]
    assert torch.equal(told.augmentation, labels(2, 9))
    assert told.vectors is None


def test_a_network_that_cannot_be_told_nothing_says_how_to_train_one_that_can():
    for network in (embedding(classes=3), embedding(vector=3)):
        with pytest.raises(InkdropError, match=r"train one with --label-dropout 0\.1"):
            network.null_condition(CLASSES)
    with pytest.raises(InkdropError, match="takes no condition"):
        embedding(null=True).null_condition(CLASSES)


@pytest.mark.parametrize("changes", [{"classes": 3}, {"vector": 3}])
def test_what_stands_for_nothing_gets_a_gradient_even_where_all_is_told(changes):
    network = embedding(**changes, null=True)
    told = CLASSES if "classes" in changes else VECTORS
    network(T, told).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.zero_grad()
    network(T, without(told, torch.tensor([True, False]))).sum().backward()
    learnt = (
        network.class_embedding.weight.grad[3]
        if network.null_vector is None
        else network.null_vector.grad
    )
    torch.testing.assert_close(learnt, torch.ones(6))
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_a_vector_left_out_is_the_learnt_one_whatever_the_others_are():
    network = embedding(vector=3, null=True)
    with torch.no_grad():
        network.null_vector.add_(torch.arange(6.0))
    untold = network(T, torch.full((2, 3), math.nan))
    torch.testing.assert_close(
        untold, network.mlp(sinusoidal(T, 8)) + torch.arange(6.0).expand(2, 6)
    )
    mixed = network(T, without(VECTORS, torch.tensor([True, False])))
    torch.testing.assert_close(mixed[0], untold[0])
    torch.testing.assert_close(mixed[1], network(T, VECTORS)[1])
    assert not torch.allclose(mixed[1], untold[1])


def test_vectors_are_told_alone_or_in_a_condition():
    network = embedding(vector=3, augmentations=9)
    assert torch.equal(network(T, VECTORS), network(T, Condition(None, None, VECTORS)))
    assert torch.equal(network(T, VECTORS.double()), network(T, VECTORS))
    assert not torch.allclose(network(T, VECTORS), network(T, VECTORS + 1))
    told = condition_of(VECTORS, labels(2, 9))
    assert not torch.allclose(network(T, told), network(T, VECTORS))
    assert condition_of(VECTORS, None) is VECTORS
    assert condition_of(CLASSES, labels(2, 9)).classes is CLASSES
    assert torch.equal(rows_of(told, slice(1, 2)).vectors, VECTORS[1:])


def test_a_compiled_network_is_told_nothing_the_same():
    for changes, told in (({"classes": 3}, CLASSES), ({"vector": 3}, VECTORS)):
        network = embedding(**changes, null=True)
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        for condition in (told, network.null_condition(told)):
            assert torch.equal(compiled(T, condition), network(T, condition))


@pytest.mark.parametrize(
    ("changes", "condition", "message"),
    [
        ({"vector": 3}, None, "conditional on vectors: give condition, 3 floats for each"),
        ({"vector": 3}, CLASSES, r"3 floats each, got shape \(2,\) of torch.int64"),
        ({"vector": 3}, VECTORS[:, :2], r"got shape \(2, 2\)"),
        ({"vector": 3}, VECTORS[:1], r"got shape \(1, 3\)"),
        ({"vector": 3}, VECTORS * math.inf, "vectors must be finite, but .* example 0"),
        ({"vector": 3}, VECTORS * math.nan, "vectors must be finite, but"),
        ({"vector": 3, "null": True}, VECTORS / VECTORS, "or all NaN for none, .* example 1"),
        ({"vector": 3}, Condition(CLASSES, None, VECTORS), "give one, not both"),
        ({"classes": 3}, VECTORS, "one integer for each example"),
        ({"classes": 3, "null": True}, CLASSES - 3, "0 … 2 and -1 for none, but .* -2 … -1"),
        ({}, VECTORS, "takes no condition"),
    ],
)
def test_what_cannot_be_told_is_an_error_of_one_line(changes, condition, message):
    with pytest.raises(InkdropError, match=message) as error:
        embedding(**changes)(T, condition)
    assert "\n" not in str(error.value)
