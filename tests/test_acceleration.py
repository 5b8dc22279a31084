from functools import partial

import pytest
import torch

import inkdrop
from inkdrop.acceleration import accelerated
from inkdrop.config import UNetConfig
from inkdrop.errors import InkdropError
from inkdrop.networks.unet import UNet
from inkdrop.randomness import torch_seeded


@pytest.fixture(scope="module")
def denoiser():
    config = UNetConfig(channels=8, multipliers=(1,), blocks=1, classes=3)
    with torch_seeded(0, "test"):
        network = UNet(config, 1, (6, 6), null=True)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return inkdrop.Denoiser(network, inkdrop.NoiseSchedule.cosine(100), "velocity", (1, 6, 6))


def sampled(denoiser, **options):
    return inkdrop.sample(
        denoiser, 4, steps=3, condition=torch.tensor([0, 1, 2, -1]), guidance=2.0, **options
    )


@pytest.mark.parametrize("compile", [False, True])
def test_samples_are_the_same_up_to_rounding(denoiser, compile, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    fast = accelerated(denoiser, compile=compile)
    assert (fast is denoiser) is not compile
    torch.testing.assert_close(sampled(fast), sampled(denoiser), rtol=1e-4, atol=1e-4)


def test_half_precision_is_of_the_network_alone(denoiser):
    seen = []
    handle = denoiser.network.stem.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    made = sampled(accelerated(denoiser, "bfloat16"))
    handle.remove()
    assert set(seen) == {torch.bfloat16}
    assert made.dtype == torch.float32
    assert next(denoiser.network.parameters()).dtype == torch.float32
    exact = sampled(denoiser)
    assert 0 < (made - exact).abs().mean() < 0.05 * exact.std()


def test_another_precision_is_refused(denoiser):
    with pytest.raises(InkdropError, match="float32, bfloat16 or float16, got 'int8'"):
        accelerated(denoiser, "int8")
