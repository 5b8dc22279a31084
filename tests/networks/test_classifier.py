"""The classifier's network."""

import pytest
import torch

from inkdrop.errors import InkdropError
from inkdrop.networks.classifier import FEATURES, Classifier

SHAPES = [(1, 1, 1), (1, 3, 5), (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (4, 17, 40)]


def made(shape: tuple[int, ...], classes: int = 10) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(shape, classes).eval()


def images(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_any_size_become_features_and_logits(shape):
    network, x = made(shape, classes=7), images(2, shape)
    assert network.features(x).shape == (2, FEATURES)
    assert network(x).shape == (2, 7)


def test_the_logits_are_a_linear_function_of_the_features():
    network, x = made((1, 8, 8)), images(3, (1, 8, 8))
    assert torch.equal(network(x), network.head(network.features(x)))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64)], ids=str)
def test_an_image_reaches_its_last_stage_at_four_pixels_with_all_channels(shape):
    last = made(shape).body(images(1, shape))
    assert last.shape == (1, FEATURES, 4, 4)


def test_an_image_s_features_do_not_depend_on_the_batch_it_is_in():
    network, x = made((1, 28, 28)).double(), images(7, (1, 28, 28)).double()
    together = network.features(x)
    apart = torch.cat([network.features(part) for part in x.split([1, 4, 2])])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


def test_a_gradient_reaches_every_pixel():
    x = images(1, (1, 28, 28)).requires_grad_()
    made((1, 28, 28))(x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_images_of_another_shape_are_refused():
    with pytest.raises(InkdropError, match=r"shape \(1, 8, 8\), got \(1, 28, 28\)"):
        made((1, 8, 8))(images(1, (1, 28, 28)))


def test_what_is_no_image_and_one_class_are_refused():
    with pytest.raises(InkdropError, match=r"images \(C, H, W\), not examples of \(2,\)"):
        Classifier((2,), 10)
    with pytest.raises(InkdropError, match="at least two classes, got 1"):
        Classifier((1, 8, 8), 1)
