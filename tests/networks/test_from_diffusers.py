import pytest
import torch
from diffusers import UNet2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inkdrop.errors import InkdropError
from inkdrop.networks.from_diffusers import unet_config_of, unet_from_diffusers

SMALL = {
    "sample_size": 14,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 2,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
# As google/ddpm-cifar10-32, made narrower.
HO = {
    **SMALL,
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": 1,
}
KINDS = {
    "small": SMALL,
    "as ho": HO,
    "classes, one block": {**SMALL, "num_class_embeds": 10, "layers_per_block": 1},
    "no middle attention": {**SMALL, "add_attention": False, "norm_num_groups": 16},
    "not square": {**SMALL, "sample_size": (8, 14)},
}


def theirs(**config):
    torch.manual_seed(0)
    return UNet2DModel(**config).eval()


def asked(model, config):
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, config["in_channels"], height, width, generator=generator)
    classes = torch.tensor([1, 0, 9]) if "num_class_embeds" in config else None
    return x, torch.tensor([0, 7, 999]), classes


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_make_the_same_function(kind):
    config = KINDS[kind]
    model = theirs(**config)
    network = unet_from_diffusers(model.config, model.state_dict()).eval()
    x, t, classes = asked(model, config)
    # PyTorch counts nothing for its fused attention on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        expected = model(x, t, class_labels=classes).sample
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        out = network(x, t, classes)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    assert flops.get_total_flops() == pytest.approx(count.get_total_flops(), rel=0.01)


def test_names_of_before_are_understood():
    model = theirs(**HO)
    renamed = {}
    for name, value in model.state_dict().items():
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name.replace(".to_out.0.", ".proj_attn.")] = value
    assert not any(".to_q." in name for name in renamed)
    network = unet_from_diffusers(model.config, renamed)
    again = unet_from_diffusers(model.config, model.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"act_fn": "relu"}, "act_fn 'relu'.*'silu', 'swish'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "a SkipDownBlock2D"),
        ({"up_block_types": ("UpBlock2D", "UpBlock2D")}, "other levels on the way up"),
        ({"block_out_channels": (32, 48)}, r"\[32, 48\]"),
        ({"sample_size": 13}, "13 pixels"),
        ({"sample_size": None}, "sample_size"),
    ],
)
def test_what_our_network_is_not_is_said(changed, told):
    with pytest.raises(InkdropError, match=told):
        unet_config_of({**SMALL, **changed})


def test_weights_of_another_model_are_refused():
    model = theirs(**SMALL)
    weights = model.state_dict()
    with pytest.raises(InkdropError, match=r"extra\.weight among them"):
        unet_from_diffusers(model.config, {**weights, "extra.weight": torch.zeros(1)})
    del weights["conv_in.bias"]
    with pytest.raises(InkdropError, match=r"lack conv_in\.bias"):
        unet_from_diffusers(model.config, weights)
