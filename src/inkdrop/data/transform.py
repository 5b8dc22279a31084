"""From a Pillow image to the uint8 pixels that a network is trained on.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor

from ..errors import InkdropError, unknown_name
from .decode import hush_pillow, scaled_to_8_bits

FITS = ("crop", "random-crop", "pad", "stretch")

_VERSION = 1  # changes whenever the same image and settings give other pixels
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_NAMES = {"L": "grey", "RGB": "RGB", "RGBA": "RGBA", "P": "palette", "1": "black and white"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Transform:
    """What is done to every image: one size, one number of channels, 8 bits.

    An image that has them already keeps its pixels bit for bit.

    Attributes:
        height, width: in pixels.
        channels: 1 for grey, 3 for RGB, 4 for RGBA.
        fit: how images of other sizes are made to fit: "crop" scales them to cover the size and
            cuts off what is over, "random-crop" cuts where it is told, "pad" scales them to fit
            within and fills the rest, "stretch" does not keep their proportions.
        background: what is put beneath transparent pixels and around padded ones, in RGB; with
            four channels nothing is beneath, and padding is transparent.

    Raises:
        InkdropError: if one of them is not allowed.
    """

    height: int
    width: int
    channels: int
    fit: str = "crop"
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise InkdropError(
                f"images of {self.height}×{self.width} pixels: both must be at least 1"
            )
        if self.channels not in _MODES:
            raise InkdropError(f"{self.channels} channels: choose 1 (grey), 3 (RGB) or 4 (RGBA)")
        if self.fit not in FITS:
            raise unknown_name("fit", self.fit, FITS)
        if len(self.background) != 3 or not all(0 <= level <= 255 for level in self.background):
            raise InkdropError(
                f"background {self.background}: three levels (red, green, blue) of 0 … 255 are "
                "needed"
            )

    def __call__(
        self, image: Image.Image, place: tuple[float, float] = (0.5, 0.5)
    ) -> NDArray[np.uint8]:
        """The pixels (C, H, W), contiguous and the caller's own.

        Args:
            image: as `decode` gives it.
            place: where to crop, across and down: 0 for the left or top, 1 for the right or bottom.
        """
        image = self._coloured(_upright(image))
        pixels = np.asarray(self._fitted(image, place))
        return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")

    @property
    def key(self) -> str:
        """A stable text of all that the pixels depend on."""
        beneath = "none" if self.channels == 4 else ",".join(map(str, self.background))
        size = f"{self.channels}x{self.height}x{self.width}"
        return f"transform {_VERSION}: {size} {self.fit} on {beneath}"

    def changes(self, width: int, height: int, mode: str) -> list[str]:
        """What is done to an upright image of such a size and mode, in words; empty for nothing."""
        steps = self._colour_changes(mode)
        if (width, height) == (self.width, self.height):
            return steps
        scaled = self._scaled_size(width, height)
        if scaled != (width, height):
            steps.append(f"resized {width}×{height} → {scaled[0]}×{scaled[1]}")
        if scaled != (self.width, self.height):
            done = "padded" if self.fit == "pad" else "cropped"
            steps.append(f"{done} to {self.width}×{self.height}")
        return steps

    def _colour_changes(self, mode: str) -> list[str]:
        steps = []
        wanted = _MODES[self.channels]
        if mode == "I" or mode.startswith("I;"):
            steps.append("16 bits scaled to 8")
        transparent = mode in ("RGBA", "RGBa", "LA", "La", "PA")
        if transparent and self.channels != 4:
            steps.append(f"transparency on {colour_name(self.background)}")
        grey = mode.startswith(("L", "I", "1")) and mode != "LAB"
        if grey != (self.channels == 1):
            steps.append(f"grey made {wanted}" if grey else "colours made grey")
        elif mode in ("CMYK", "YCbCr", "HSV", "LAB"):
            steps.append(f"{mode} made {wanted}")
        if self.channels == 4 and not transparent:
            steps.append("an opaque alpha channel added")
        return steps

    # Colours

    def _coloured(self, image: Image.Image) -> Image.Image:
        mode = _MODES[self.channels]
        if image.mode == "I" or image.mode.startswith("I;16"):
            image = _eight_bits(image)
        if image.has_transparency_data:
            image = _with_alpha(image)
            if self.channels != 4:
                beneath = Image.new("RGBA", image.size, (*self.background, 255))
                image = Image.alpha_composite(beneath, image)
        if image.mode in (mode, "L", "1"):
            return image if image.mode == mode else image.convert(mode)
        return image.convert("RGB").convert(mode) if mode == "L" else image.convert(mode)

    # Geometry

    def _fitted(self, image: Image.Image, place: tuple[float, float]) -> Image.Image:
        if image.size == (self.width, self.height):
            return image
        if self.fit == "pad":
            return self._padded(image)
        if self.fit == "stretch":
            return _resized(image, (self.width, self.height), (0, 0, *image.size))
        return self._cropped(image, place)

    def _padded(self, image: Image.Image) -> Image.Image:
        size = self._scaled_size(*image.size)
        if size != image.size:
            image = _resized(image, size, (0, 0, *image.size))
        fill = Image.new("RGB", (1, 1), self.background).convert(image.mode).getpixel((0, 0))
        canvas = Image.new(
            image.mode, (self.width, self.height), (0, 0, 0, 0) if self.channels == 4 else fill
        )
        canvas.paste(image, ((self.width - size[0]) // 2, (self.height - size[1]) // 2))
        return canvas

    def _cropped(self, image: Image.Image, place: tuple[float, float]) -> Image.Image:
        width, height = self._cover(*image.size)
        spare = image.width - width, image.height - height
        if (width, height) == (self.width, self.height):  # whole pixels: nothing to resample
            left, top = (int(min(p * (s + 1), s)) for p, s in zip(place, spare, strict=True))
            return image.crop((left, top, left + self.width, top + self.height))
        x, y = (p * s for p, s in zip(place, spare, strict=True))
        box = (x, y, min(x + width, image.width), min(y + height, image.height))
        return _resized(image, (self.width, self.height), box)

    def _cover(self, width: int, height: int) -> tuple[float, float]:
        """The part of an image that is kept when it is cropped, in its own pixels."""
        if self.width * height >= self.height * width:
            return width, self.height * width / self.width
        return self.width * height / self.height, height

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """An image's whole size after scaling, before anything is cut or added."""
        if self.fit == "stretch":
            return self.width, self.height
        scales = self.width / width, self.height / height
        across = (scales[0] <= scales[1]) == (self.fit == "pad")  # whether the width decides
        if across:
            return self.width, max(1, round(height * self.width / width))
        return max(1, round(width * self.height / height)), self.height


def parse_colour(text: str) -> tuple[int, int, int]:
    """A colour by its name ("white"), as "#rrggbb", or as "r,g,b" with levels of 0 … 255.

    Raises:
        InkdropError: if it is none of these.
    """
    try:
        if text.count(",") == 2 and "(" not in text:
            red, green, blue = (int(level) for level in text.split(","))
            if all(0 <= level <= 255 for level in (red, green, blue)):
                return red, green, blue
            raise ValueError
        return ImageColor.getrgb(text.strip())[:3]
    except ValueError:
        raise InkdropError(
            f"unknown colour {text!r}: give a name such as white or black, #rrggbb, or r,g,b with "
            "levels of 0 … 255"
        ) from None


def colour_name(colour: tuple[int, int, int]) -> str:
    """White and black by name, others as "#rrggbb"."""
    named = {(255, 255, 255): "white", (0, 0, 0): "black"}
    return named.get(colour, "#{:02x}{:02x}{:02x}".format(*colour))


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data say; as it lies where those are damaged."""
    try:
        hush_pillow()
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's reader of EXIF data raises nearly anything
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as "L"; as "LA" where one level stands for transparency."""
    levels = np.asarray(image)
    grey = Image.fromarray(scaled_to_8_bits(levels))
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    alpha = Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _with_alpha(image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # given for 16 bits, of which 8 are left
        image = image.copy()
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    if image.mode in ("La", "PA"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGBA")


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    # Of RGBA images Pillow weighs colours by their alpha, so that no hidden ones come through.
    return image.resize(size, Image.Resampling.LANCZOS, box=box)
