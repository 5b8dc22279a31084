"""Extractors, with stand-ins where weights would have to be fetched."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inkdrop.data.pixels import to_float
from inkdrop.errors import InkdropError
from inkdrop.evaluation.extractors import (
    Extractor,
    classifier_extractor,
    dinov2,
    inception,
    pixels,
)

SHAPE = (1, 4, 4)


def images(count: int, channels: int = 1, side: int = 4, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8))


class Classifier(nn.Module):
    """Of 4 × 4 images; its dropout would show if it were left in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Dropout(0.5))
        self.last = nn.Linear(6, 3)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


class StandIn(nn.Module):
    """Of Inception's interface: uint8 RGB of any size in, features and logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 5, bias=False)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        self.seen.append(x)
        values = self.convolution(x.float() / 255).relu().mean((2, 3))
        return values, self.fc(values)


def classifier(network: nn.Module, **changed: Any) -> Extractor:
    given = {"fingerprint": "abc", "features": 6, "classes": 3, "shape": SHAPE} | changed
    return classifier_extractor(network, **given)


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 of random weights, as `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("dinov2")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=14
    )
    torch.manual_seed(0)
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def test_pixels_are_their_own_features() -> None:
    x = images(3, 3)
    extractor = pixels((3, 4, 4))
    found = extractor(x)
    assert found.logits is None
    assert found.values.dtype == np.float32
    assert (found.values == x.numpy().reshape(3, -1)).all()
    assert found.features == extractor.features == 48


@pytest.mark.parametrize("with_head", [False, True])
def test_a_classifier_sees_what_it_was_trained_on(with_head: bool) -> None:
    network = Classifier()
    if with_head:
        network.head = network.last
    extractor = classifier(network)
    every_level = torch.arange(256, dtype=torch.uint8).reshape(16, *SHAPE)
    found = extractor(every_level)
    with torch.no_grad():
        x = to_float(every_level)
        assert np.array_equal(found.values, network.features(x).numpy())
        assert np.array_equal(found.logits, network(x).numpy())
    assert (found.features, found.classes) == (extractor.features, extractor.classes) == (6, 3)
    assert every_level.flatten()[-1] == 255  # what came in is left as it was


def test_inception_repeats_grey_and_lays_transparent_images_on_white() -> None:
    network = StandIn()
    extractor = inception(network=network)
    assert (extractor.features, extractor.classes) == (8, 5)
    grey = images(2)
    rgb = extractor(grey.expand(-1, 3, -1, -1))
    assert np.array_equal(extractor(grey).values, rgb.values)
    assert np.array_equal(extractor(grey).logits, rgb.logits)
    clear = images(2, 4)
    clear[:, 3] = 0
    extractor(clear)
    assert (network.seen[-1] == 255).all()
    opaque = images(2, 4)
    opaque[:, 3] = 255
    extractor(opaque)
    assert torch.equal(network.seen[-1], opaque[:, :3])


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is here"
)
def test_inception_without_its_package_says_how_to_get_it() -> None:
    with pytest.raises(InkdropError, match=r"pip install 'inkdrop\[inception\]'"):
        inception()


def test_dinov2_gives_the_class_token_of_what_transformers_prepares(dinov2_folder: Path) -> None:
    import transformers

    extractor = dinov2(str(dinov2_folder))
    assert (extractor.features, extractor.classes) == (16, None)
    x = images(2, 3, 224)  # no resizing, so that only the normalisation is compared
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    model = transformers.Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.no_grad():
        expected = model((x / 255 - mean) / std).pooler_output.numpy()
    assert extractor(x).values == pytest.approx(expected, abs=1e-5)
    assert extractor(images(2, 1, 8)).values.shape == (2, 16)


def test_dinov2_resizes_as_pillow_does(dinov2_folder: Path, monkeypatch: Any) -> None:
    from PIL import Image

    x = images(1, 3, 448)
    picture = Image.fromarray(x[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC)
    small = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    extractor = dinov2(str(dinov2_folder))
    apart = abs(extractor(x).values - extractor(small).values).max()
    assert apart < 0.02 * abs(extractor(small).values).max()


def test_a_place_without_dinov2_is_refused_in_one_line(dinov2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((dinov2_folder / "config.json").read_text())
    for place, match in (
        (tmp_path, "there is no DINOv2"),
        (tmp_path / "bare", "there is no DINOv2"),
        (tmp_path / "vit", "a model of kind vit"),
    ):
        with pytest.raises(InkdropError, match=match) as refusal:
            dinov2(str(place))
        assert "\n" not in str(refusal.value)


def test_features_do_not_depend_on_the_batch(dinov2_folder: Path) -> None:
    x = images(5)
    for extractor in (
        pixels(SHAPE),
        classifier(Classifier()),
        inception(network=StandIn()),
        dinov2(str(dinov2_folder)),
    ):
        whole = extractor(x).values
        parts = np.concatenate([extractor(part).values for part in x.split(2)])
        assert parts == pytest.approx(whole, abs=1e-5, rel=1e-5)


def test_a_fingerprint_is_of_the_weights(dinov2_folder: Path) -> None:
    torch.manual_seed(0)
    network = StandIn()
    before = inception(network=network).fingerprint
    assert inception(network=network).fingerprint == before
    with torch.no_grad():
        network.fc.weight[0, 0] += 1
    assert inception(network=network).fingerprint != before
    assert pixels((1, 2, 8)).fingerprint != pixels(SHAPE).fingerprint
    assert dinov2(str(dinov2_folder)).fingerprint == dinov2(str(dinov2_folder)).fingerprint


def test_images_that_an_extractor_does_not_take_are_refused() -> None:
    for extractor, x, match in (
        (pixels(SHAPE), images(1, 3), r"is for images of shape \(1, 4, 4\), got \(3, 4, 4\)"),
        (classifier(Classifier()), images(1, side=5), r"classifier is for images of shape"),
        (inception(network=StandIn()), images(1, 2), "1, 3 or 4 channels"),
        (pixels(SHAPE), images(1).float(), "uint8 images"),
        (pixels(SHAPE), images(1)[0], "uint8 images"),
    ):
        with pytest.raises(InkdropError, match=match):
            extractor(x)
