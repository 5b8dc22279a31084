import json

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel

import inkdrop
from inkdrop.errors import InkdropError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def saved(model, folder, **scheduler):
    DDIMPipeline(model, DDIMScheduler(**scheduler)).save_pretrained(folder)
    return folder


def test_its_samples_are_the_pipelines(model, tmp_path):
    kind = {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "clip_sample": False,
    }
    denoiser = inkdrop.from_diffusers(saved(model, tmp_path, **kind))
    assert denoiser.shape == (3, 8, 8)
    scheduler = DDIMScheduler(**kind, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = inkdrop.sample(denoiser, timesteps=scheduler.timesteps.tolist(), x_init=x, clip=None)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::inkdrop.ScheduleWarning")
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
        {"trained_betas": [0.1, 0.2, 0.5]},
    ],
)
def test_the_noise_is_the_schedulers(model, tmp_path, kind):
    denoiser = inkdrop.from_diffusers(saved(model, tmp_path, **kind))
    expected = DDPMScheduler(**kind).alphas_cumprod
    torch.testing.assert_close(
        denoiser.schedule.alphas_cumprod.float(), expected, rtol=1e-4, atol=1e-7
    )


def changed(folder, path, **values):
    file = folder / path
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_what_is_not_understood_is_said(model, tmp_path):
    folder = saved(model, tmp_path)
    changed(folder, "scheduler/scheduler_config.json", beta_schedule="sigmoid")
    with pytest.raises(InkdropError, match=r"beta_schedule 'sigmoid'.*squaredcos_cap_v2"):
        inkdrop.from_diffusers(folder)
    changed(folder, "scheduler/scheduler_config.json", prediction_type="flow")
    with pytest.raises(InkdropError, match=r"prediction_type 'flow'.*v_prediction"):
        inkdrop.from_diffusers(folder)
    changed(folder, "unet/config.json", out_channels=4)
    with pytest.raises(InkdropError, match="3 channels in and 4 out"):
        inkdrop.from_diffusers(folder)


def test_an_incomplete_folder_is_named(model, tmp_path):
    with pytest.raises(InkdropError, match=r"unet/config\.json is missing"):
        inkdrop.from_diffusers(tmp_path)
    folder = saved(model, tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InkdropError, match="opens no pickles"):
        inkdrop.from_diffusers(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(InkdropError, match=r"config\.json is no JSON"):
        inkdrop.from_diffusers(folder)
