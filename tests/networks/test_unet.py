"""The U-Net of DDPM."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from inkdrop.config import UNetConfig
from inkdrop.errors import InkdropError
from inkdrop.networks.embedding import Condition
from inkdrop.networks.unet import Attention, Block, UNet
from inkdrop.randomness import torch_seeded

SMALL = {"channels": 8, "multipliers": (1, 2), "blocks": 1}
HO_CIFAR10 = {
    "channels": 128,
    "multipliers": (1, 2, 2, 2),
    "blocks": 2,
    "attention_resolutions": (16,),
    "dropout": 0.1,
}


def awake(image_channels=1, image_size=(8, 8), augmentation_labels=0, **config):
    """A network past its first step: no weight is zero."""
    with torch_seeded(0, "test"):
        network = UNet(
            UNetConfig(**{**SMALL, **config}),
            image_channels,
            image_size,
            augmentation_labels=augmentation_labels,
        )
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return network


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_paper(image_channels, image_size, **config):
    """A network whose weights are not there, to count and to look at."""
    with torch.device("meta"):
        return UNet(UNetConfig(**config), image_channels, image_size)


# Structure ---------------------------------------------------------------------------------------


def test_it_has_as_many_parameters_as_hos_network_for_cifar10():
    network = on_paper(3, (32, 32), **HO_CIFAR10)
    assert sum(p.numel() for p in network.parameters()) == 35_746_307


def test_hos_normalisation_has_32_groups():
    network = on_paper(3, (32, 32), **HO_CIFAR10)
    assert {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)} == {32}


@pytest.mark.parametrize("channels", [1, 2, 6, 8, 12, 16, 30, 32, 64, 96, 130])
def test_no_group_of_the_normalisation_is_a_single_channel(channels):
    """It would undo the timestep, which a block adds to whole channels."""
    network = on_paper(1, (8, 8), channels=channels, multipliers=(1, 2), blocks=1)
    for norm in network.modules():
        if isinstance(norm, nn.GroupNorm) and channels > 1:
            assert norm.num_channels // norm.num_groups >= min(4, channels)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "sides"),
    [((32, 32), 1, (32, 16, 8)), ((28, 20), 1, (28, 14, 7)), ((32, 16), 2, (16, 8, 4))],
)
def test_attention_is_at_the_chosen_resolutions_only(image_size, patch_size, sides):
    config = {"channels": 8, "multipliers": (1, 2, 3), "blocks": 2, "patch_size": patch_size}
    network = on_paper(
        1, image_size, attention_resolutions=sides[1:2], attention_in_bottleneck=False, **config
    )
    attending = [m for m in network.modules() if isinstance(m, Attention)]
    assert [m.norm.num_channels for m in attending] == [16] * 5  # two on the way down, three up

    network = on_paper(1, image_size, **config)
    attending = [m for m in network.modules() if isinstance(m, Attention)]
    assert len(attending) == 1
    assert network.middle[0].attention is attending[0]

    network = on_paper(1, image_size, attention_resolutions=sides, **config)
    attending = [m for m in network.modules() if isinstance(m, Attention)]
    assert len(attending) == 3 * 5 + 1


def test_attention_looks_at_every_position():
    attention = awake(image_size=(8, 8)).middle[0].attention
    x = images(1, 16, 4, 4).requires_grad_()
    attention(x)[0, :, 0, 0].sum().backward()
    assert (x.grad[0] != 0).all()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_softmax_of_queries_and_keys(heads):
    with torch_seeded(0, "test"):
        attention = Attention(16, UNetConfig(head_channels=16 // heads)).double()
    nn.init.normal_(attention.out.weight, std=0.2)
    x = images(2, 16, 3, 5).double()
    qkv = attention.qkv(attention.norm(x)).flatten(2)  # (2, 48, 15)
    q, k, v = qkv.split(16, dim=1)
    parts = []
    for head in range(heads):
        mine = slice(head * 16 // heads, (head + 1) * 16 // heads)
        scores = torch.einsum("bci,bcj->bij", q[:, mine], k[:, mine]) / (16 // heads) ** 0.5
        parts.append(torch.einsum("bij,bcj->bci", scores.softmax(-1), v[:, mine]))
    expected = x + attention.out(torch.cat(parts, 1).reshape(2, 16, 3, 5))
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-10)


@given(
    st.integers(1, 4),
    st.integers(1, 13),
    st.integers(1, 13),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([2, 6, 8]),
)
@settings(max_examples=25)
@example(1, 1, 1, 3, 1, 8)
@example(3, 1, 1, 1, 1, 32)
@example(2, 7, 12, 2, 2, 8)
def test_images_of_any_shape_in_and_out(image_channels, height, width, levels, patch, channels):
    config = UNetConfig(
        channels=channels, multipliers=(1, 2, 2)[:levels], blocks=1, patch_size=patch
    )
    network = UNet(config, image_channels, (height, width))
    nn.init.normal_(network.head[-1].weight, std=0.1)
    out = network(images(1, image_channels, height, width), torch.tensor([5]))
    assert out.shape == (1, image_channels, height, width)
    assert out.isfinite().all()


def test_another_size_than_it_was_made_for_will_do():
    network = awake(attention_resolutions=(4,))
    assert network(images(2, 1, 13, 6), torch.tensor([1, 2])).shape == (2, 1, 13, 6)


def test_an_untrained_network_answers_zero():
    network = UNet(UNetConfig(**SMALL), 3, (8, 8))
    assert (network(images(2, 3, 8, 8), torch.tensor([0, 999])) == 0).all()


def test_an_untrained_block_is_its_shortcut():
    config = UNetConfig(channels=8)
    block = Block(8, 8, 32, attention=True, config=config)
    x = images(2, 8, 4, 4)
    assert torch.equal(block(x, images(2, 32)), x)


def test_there_is_nothing_in_it_that_averaging_weights_could_spoil():
    network = awake(classes=3, attention_resolutions=(4,))
    assert list(network.buffers()) == []
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


# Behaviour ---------------------------------------------------------------------------------------

VARIATIONS = [
    {},
    {"time_injection": "scale-shift"},
    {"patch_size": 2},
    {"attention_resolutions": (8, 4), "head_channels": 4},
    {"attention_in_bottleneck": False},
    {"multipliers": (1, 1, 2), "blocks": 2},
    {"channels": 4, "multipliers": (1,)},
    {"channels": 32, "multipliers": (1,), "attention_in_bottleneck": False},
]


@pytest.mark.parametrize("variation", VARIATIONS, ids=str)
def test_every_weight_receives_a_gradient(variation):
    if "attention_resolutions" in variation:
        variation = {**variation, "image_size": (8, 8)}
    network = awake(classes=3, **variation).double()
    x, t = images(4, 1, 8, 8).double(), torch.arange(4) * 250
    network(x, t, torch.arange(4) % 3).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_an_untrained_network_learns_from_its_first_step():
    network = UNet(UNetConfig(**SMALL), 1, (8, 8))
    x = images(2, 1, 8, 8)
    loss = (network(x, torch.tensor([1, 500])) - x).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0.1 * parameter.grad
        assert (network(x, torch.tensor([1, 500])) - x).square().mean() < loss


@pytest.mark.parametrize("variation", VARIATIONS, ids=str)
def test_image_time_and_class_each_change_the_answer(variation):
    network = awake(classes=3, **variation)
    x, t, condition = images(1, 1, 8, 8), torch.tensor([10]), torch.tensor([1])
    before = network(x, t, condition)
    scale = before.std()
    for other in ((x.flip(-1), t, condition), (x, t + 300, condition), (x, t, condition + 1)):
        assert (network(*other) - before).abs().max() > 1e-2 * scale


def test_augmentation_changes_the_answer_and_zeros_do_not():
    network = awake(augmentation_labels=9, classes=3)
    x, t, classes = images(2, 1, 8, 8), torch.tensor([10, 20]), torch.tensor([1, 2])
    before = network(x, t, classes)
    assert torch.equal(network(x, t, Condition(classes, torch.zeros(2, 9))), before)
    told = network(x, t, Condition(classes, torch.eye(9)[:2]))
    assert ((told - before).abs().amax((1, 2, 3)) > 1e-2 * before.std()).all()


def test_every_weight_receives_a_gradient_where_augmentation_is_told():
    network = awake(augmentation_labels=9).double()
    x, t = images(4, 1, 8, 8).double(), torch.arange(4) * 250
    network(x, t, Condition(None, images(4, 9))).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("injection", ["additive", "scale-shift"])
@pytest.mark.parametrize("channels", [8, 32, 64])
def test_every_block_is_told_the_timestep(injection, channels):
    with torch_seeded(0, "test"):
        config = UNetConfig(channels=channels, time_injection=injection)
        block = Block(channels, channels, 32, attention=False, config=config).eval()
        nn.init.normal_(block.conv2.weight, std=0.1)
    x = images(1, channels, 6, 6)
    with torch.no_grad():
        difference = block(x, images(1, 32)) - block(x, images(1, 32, seed=1))
        assert difference.std() > 0.1 * (block(x, images(1, 32)) - x).std()


def test_scale_shift_scales_and_shifts_after_the_normalisation():
    with torch_seeded(0, "test"):
        config = UNetConfig(channels=8, time_injection="scale-shift")
        block = Block(8, 8, 4, attention=False, config=config)
        nn.init.normal_(block.conv2.weight, std=0.1)
    x, embedding = images(2, 8, 3, 3), images(2, 4)
    scale, shift = block.project(embedding)[..., None, None].split(8, dim=1)
    h = block.conv1(nn.functional.silu(block.norm1(x)))
    h = block.norm2(h) * (1 + scale) + shift
    expected = x + block.conv2(nn.functional.silu(h))
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variation", VARIATIONS, ids=str)
def test_an_examples_answer_does_not_depend_on_the_others(variation):
    network = awake(**variation).double()
    x, t = images(4, 1, 8, 8).double(), torch.arange(4) * 250
    together = network(x, t)
    for i in range(4):
        alone = network(x[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_padding_repeats_the_edges(patch_size):
    network = awake(patch_size=patch_size).double()
    x, t = images(1, 1, 5, 7).double(), torch.tensor([3])
    bottom, right = -5 % network.multiple, -7 % network.multiple
    padded = x
    for _ in range(bottom):
        padded = torch.cat([padded, padded[..., -1:, :]], dim=-2)
    for _ in range(right):
        padded = torch.cat([padded, padded[..., -1:]], dim=-1)
    torch.testing.assert_close(network(x, t), network(padded, t)[..., :5, :7])


def test_every_pixel_of_a_patched_image_has_its_own_answer():
    network = awake(patch_size=2)
    x, t = images(1, 1, 8, 8), torch.tensor([3])
    out = network(x, t)[0, 0]
    # A pixel moved within its patch moves the answer within the patch: no pixel is a copy.
    assert len(out.flatten().unique()) == 64
    moved = x.clone()
    moved[0, 0, 0, 0] += 1
    assert (network(moved, t)[0, 0] - out)[:2, :2].abs().min() > 0


def test_dropout_is_for_training_only():
    network, x = awake(dropout=0.5), images(2, 1, 8, 8)
    t = torch.tensor([1, 2])
    with torch_seeded(0, "dropout"):
        assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_works_in_the_precision_of_its_weights(dtype):
    network = awake(classes=3).to(dtype)
    out = network(images(2, 1, 7, 7).to(dtype), torch.tensor([1, 2]), torch.tensor([0, 1]))
    assert out.dtype == dtype
    assert out.isfinite().all()


# Mistakes ----------------------------------------------------------------------------------------


def test_an_attention_resolution_that_no_level_has_is_an_error_that_lists_the_levels():
    with pytest.raises(InkdropError, match=r"asks for 14 pixels.*have 32, 16, 8"):
        UNet(UNetConfig(attention_resolutions=(16, 14)), 3, (32, 20))
    with pytest.raises(InkdropError, match="have 16, 8, 4"):
        UNet(UNetConfig(attention_resolutions=(32,), patch_size=2), 3, (32, 32))


def test_heads_that_do_not_divide_the_channels_are_an_error():
    with pytest.raises(InkdropError, match="head_channels 5 does not divide the 128 channels"):
        UNet(UNetConfig(head_channels=5), 3, (32, 32))


def test_a_class_too_many_or_too_few_is_an_error():
    x, t = images(2, 1, 8, 8), torch.tensor([1, 2])
    with pytest.raises(InkdropError, match="conditional on 3 classes"):
        awake(classes=3)(x, t)
    with pytest.raises(InkdropError, match="classes are 0 … 2, but condition holds 1 … 3"):
        awake(classes=3)(x, t, torch.tensor([1, 3]))
    with pytest.raises(InkdropError, match="takes no condition"):
        awake()(x, t, torch.tensor([1, 2]))
    with pytest.raises(InkdropError, match="not told of augmentation"):
        awake()(x, t, Condition(None, torch.zeros(2, 9)))
