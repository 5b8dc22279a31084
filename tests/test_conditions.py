"""Conditions of several parts, taken apart and moved together."""

import pytest
import torch

from inkdrop.conditions import count_of, mapped, rows_of, tensors_of, to_device
from inkdrop.errors import InkdropError
from inkdrop.networks.embedding import Condition

CLASSES = torch.tensor([1, 2])


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([3, 0])], ids=["slice", "index"])
def test_rows_of_a_condition_are_taken_from_all_of_it(rows):
    classes, augmentation = torch.arange(4), torch.rand(4, 9)
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
    both = to_device(Condition(CLASSES, torch.rand(2, 9), torch.rand(2, 3)), "meta")
    assert isinstance(both, Condition)
    assert {part.device.type for part in both} == {"meta"}
    assert to_device(Condition(CLASSES), "meta").augmentation is None


def test_all_tensors_of_a_condition_have_a_row_for_each_example():
    both = Condition(CLASSES, torch.rand(2, 9))
    assert count_of(both) == count_of(CLASSES) == 2
    assert count_of(None) is count_of(Condition()) is None
    assert [part.shape for part in tensors_of(both)] == [(2,), (2, 9)]
    with pytest.raises(InkdropError, match="a row for each example in all of its parts"):
        count_of(Condition(CLASSES, torch.rand(3, 9)))
    with pytest.raises(InkdropError, match="a row for each example"):
        count_of(torch.tensor(1))


def test_only_conditions_that_are_alike_are_joined():
    def joined(a, b):
        return mapped(lambda *parts: torch.cat(parts), a, b)

    assert joined(Condition(CLASSES), Condition(CLASSES)).classes.tolist() == [1, 2, 1, 2]
    with pytest.raises(InkdropError, match="must be alike to stand in one batch, got None and"):
        joined(None, CLASSES)
    with pytest.raises(InkdropError, match="must be alike"):
        joined(Condition(CLASSES), CLASSES)
    with pytest.raises(InkdropError, match="got list"):
        tensors_of([1, 2])
