import pytest
import torch
import torch.nn.functional as F

from inkdrop.networks import attention
from inkdrop.networks.attention import attend


def three(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def by_definition(q, k, v):
    scores = torch.einsum("bhci,bhcj->bhij", q, k) / q.shape[2] ** 0.5
    return torch.einsum("bhij,bhcj->bhci", scores.softmax(-1), v)


@pytest.mark.parametrize("at_once", [1, 2, 4, 100])
@pytest.mark.parametrize("shape", [(2, 3, 4, 15), (5, 1, 8, 1), (1, 1, 2, 7)])
def test_attention_and_its_gradient_are_those_of_the_definition(shape, at_once, monkeypatch):
    monkeypatch.setattr(attention, "_SCORES", at_once * shape[-1] ** 2)
    q, k, v = three(*shape)
    out, expected = attend(q, k, v), by_definition(q, k, v)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    gradient = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(shape)
    found = torch.autograd.grad(out, (q, k, v), gradient)
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, (q, k, v), gradient), rtol=1e-11, atol=1e-12
    )


def test_it_can_be_derived_twice():
    assert torch.autograd.gradgradcheck(attend, three(2, 1, 3, 4))


@pytest.mark.parametrize("way", ["long", "bfloat16"])
def test_what_products_are_not_for_is_left_to_pytorch(way, monkeypatch):
    q, k, v = three(2, 2, 4, 9, dtype=torch.float32)
    expected = attend(q, k, v)
    if way == "long":
        monkeypatch.setattr(attention, "_POSITIONS", 8)
    else:
        q, k, v = (z.bfloat16() for z in (q, k, v))
    called = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a: called.append(1) or original(*a)
    )
    out = attend(q, k, v)
    assert called
    assert out.dtype == q.dtype
    tolerance = 1e-5 if way == "long" else 0.05
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


def test_an_image_is_told_the_same_whatever_stands_beside_it():
    q, k, v = three(6, 2, 4, 30, dtype=torch.float32)
    together = attend(q, k, v)
    alone = torch.cat([attend(*(z[i : i + 1] for z in (q, k, v))) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
