"""Convert uint8 images to the network's input, with the same result as torchvision.

Images of one size are preprocessed inside jit. Pictures of any size are resized and
cropped by Pillow on the host, and normalised inside jit.

The resize is bit-identical to that of Pillow, which `transforms.Resize` uses: two
integer passes whose intermediate result is rounded to uint8. A float resize differs in
about 5 % of the pixels. Training with one and predicting with the other would be a
mismatch that is hard to notice.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from PIL import Image

BILINEAR = 2  # Pillow's constant, copied to avoid the import of Pillow
_FRACTION_BITS = 22  # as in Pillow: 32 bits, less 8 for the pixel and 2 of headroom


@dataclass(frozen=True)
class Preprocess:
    """A transform from uint8 images to the network's float32 input.

    It maps uint8[b, h, w] or uint8[b, h, w, 1 or 3] to float32[b, size, size, c], where
    size is `image_size` and c the length of `mean` and `std`, 3 or 1. Grey is repeated
    to three channels; for one channel, colours become grey as in Pillow. The image is
    resized to a square, scaled to [0, 1] and normalised per channel. The result equals
    that of torchvision's ToPILImage, Resize([size, size]), for one channel Grayscale(),
    ToTensor and Normalize: bit for bit after the resize, up to float32 rounding at the
    end. With `crop`, for photographs, the short side is resized to `resize_to`/224 of
    the size and the centre is cropped, like Resize(256) and CenterCrop(224) in
    torchvision's evaluation; its second generation of weights was measured with a
    `resize_to` of 232. The default size, mean and std are those that torchvision's
    ImageNet weights were trained with. A mean of 0 and a std of 1 only scale to [0, 1].

    >>> Preprocess()(np.zeros((2, 28, 28), np.uint8)).shape
    (2, 224, 224, 3)
    >>> grey = Preprocess(28, mean=(0.0,), std=(1.0,))
    >>> grey(np.full((2, 32, 32, 3), 255, np.uint8)).shape
    (2, 28, 28, 1)
    """

    image_size: int = 224
    crop: bool = False
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize_to: int = 256

    def __post_init__(self):
        """Raise ValueError if a setting is invalid."""
        size = self.image_size
        if isinstance(size, np.integer):
            object.__setattr__(self, "image_size", int(size))
        elif not isinstance(size, int) or isinstance(size, bool):
            raise ValueError(f"image_size: expected a whole number, got {size!r}")
        if size < 1:
            raise ValueError(f"image_size: expected at least 1, got {size}")
        to = self.resize_to
        if not isinstance(to, int) or isinstance(to, bool) or to < 224:
            raise ValueError(
                f"resize_to: expected a whole number of at least 224, got {to!r}"
            )
        counts = len(self.mean), len(self.std)
        if counts not in ((3, 3), (1, 1)) or not all(self.std):
            raise ValueError(
                "mean and std: expected three numbers each, or one, no std of 0"
            )

    def facts(self) -> dict[str, Any]:
        """Return the settings as values for JSON; `resize_to` only if it is unusual."""
        facts = {
            "image_size": self.image_size,
            "crop": self.crop,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.resize_to != Preprocess.resize_to:
            facts["resize_to"] = self.resize_to
        return facts

    @property
    def channels(self) -> int:
        """The channels of the network's input: 3, or 1 for grey."""
        return len(self.mean)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Preprocess a batch.

        Raises ValueError for an unsupported shape or dtype, and for a single image
        uint8[h, w], [h, w, 1], [h, w, 3] or of Pillow, which has no batch axis.
        """
        # Pillow is not imported for the check, and JAX does not know its images.
        is_pillow = hasattr(images, "getpixel")
        images = jnp.asarray(np.asarray(images) if is_pillow else images)
        channels = images.shape[3:] or (1,)
        if images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3)):
            shape = ", ".join(map(str, images.shape))
            raise ValueError(
                f"Preprocess expects a batch of images, got one image "
                f"{images.dtype}[{shape}]; add a batch axis: np.asarray(image)[None]"
            )
        if images.dtype != jnp.uint8 or images.ndim < 3 or channels not in ((1,), (3,)):
            shape = ", ".join(map(str, images.shape))
            raise ValueError(
                "Preprocess expects uint8[b, h, w] or uint8[b, h, w, 1 or 3], got "
                f"{images.dtype}[{shape}]"
            )
        images = images.reshape(*images.shape[:3], *channels)
        height, width, top, left = self._geometry(*images.shape[1:3])
        images = resize_bilinear(images, height, width)
        size = self.image_size
        images = images[:, top : top + size, left : left + size]
        if self.channels == 1 and channels == (3,):
            images = _grey(images)
        return self.normalize(images)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Scale and normalise images of the final size: the second half of a call."""
        x = jnp.asarray(images).astype(jnp.float32) / 255
        # Grey is broadcast to three channels here: resizing one channel is cheaper.
        return (x - jnp.float32(self.mean)) / jnp.float32(self.std)

    def pixels(self, inputs: jax.Array) -> np.ndarray:
        """Undo `normalize`, to show what a network saw: float -> uint8, [b, h, w, 3].

        Values outside those of pixels are clipped.
        """
        std, mean = np.array([self.std, self.mean], np.float32)
        pixels = 255 * (np.asarray(inputs, np.float32) * std + mean)
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8)

    def resize(self, picture: "Image.Image") -> np.ndarray:
        """Resize a Pillow image, mode L or RGB, on the host: the first half of a call.

        Returns uint8[image_size, image_size, c], with the same pixels that a call
        computes inside jit.
        """
        width, height = picture.size
        height, width, top, left = self._geometry(height, width)
        if picture.size != (width, height):
            picture = picture.resize((width, height), BILINEAR)
        size = self.image_size
        picture = picture.crop((left, top, left + size, top + size))
        pixels = np.asarray(picture.convert("RGB" if self.channels == 3 else "L"))
        return pixels.reshape(size, size, self.channels)

    def _geometry(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return height and width after the resize, and top and left of the crop."""
        size = self.image_size
        if not self.crop:
            return size, size, 0, 0
        short = size * self.resize_to // 224
        # Round as torchvision does: the long side down, the corner half to even.
        new_height = short if height <= width else short * height // width
        new_width = short if width <= height else short * width // height
        top, left = round((new_height - size) / 2), round((new_width - size) / 2)
        return new_height, new_width, top, left


def _grey(images: jax.Array) -> jax.Array:
    """Return uint8[..., 3] as uint8[..., 1], with the integers of Pillow's convert."""
    weights = jnp.array([19595, 38470, 7471], jnp.int32)  # of 2^16, as in ITU-R 601
    total = (images.astype(jnp.int32) * weights).sum(-1, keepdims=True)
    return ((total + (1 << 15)) >> 16).astype(jnp.uint8)


def resize_bilinear(images: jax.Array, height: int, width: int) -> jax.Array:
    """Resize as Pillow does: uint8[b, h, w, c] → uint8[b, height, width, c].

    Every pixel equals that of `Image.resize((width, height), Image.BILINEAR)` in Pillow
    13, in downscaling (where the filter widens with the scale) and in upscaling.
    """
    removed_rows = images.shape[1] - height
    removed_columns = images.shape[2] - width
    # Each pass rounds, so their order matters. Pillow 13 begins with the height if it
    # shrinks much more than the width; up to Pillow 12 the width was always first.
    axes = ((2, width), (1, height))
    if removed_rows > max(0, 2 * removed_columns):
        axes = axes[::-1]
    for axis, size in axes:
        images = _resize_axis(images, size, axis)
    return images


def _resize_axis(images: jax.Array, size: int, axis: int) -> jax.Array:
    if images.shape[axis] == size:
        return images
    positions, weights = _taps(images.shape[axis], size)
    along_axis = [1] * images.ndim
    along_axis[axis] = size
    total = jnp.int32(1 << (_FRACTION_BITS - 1))  # one half, so that the shift rounds
    for position, weight in zip(positions, weights, strict=True):
        pixels = jnp.take(images, position, axis=axis).astype(jnp.int32)
        total += pixels * weight.reshape(along_axis)
    return jnp.clip(total >> _FRACTION_BITS, 0, 255).astype(jnp.uint8)


def _taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the input positions and the weights of each output pixel.

    Both are integers [taps, size_out]; the weights are int32 in units of 2^-22. They
    are those of the triangle filter in Pillow's Resample.c.
    """
    scale = size_in / size_out
    support = max(scale, 1.0)  # wider in downscaling, so that no pixel is skipped
    centre = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int32), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int32), size_in)

    position = first + np.arange((last - first).max())[:, None]
    # Multiply by the reciprocal, as Pillow does, because a division rounds differently.
    distance = np.abs(position - centre + 0.5) * (1 / support)
    weight = np.where(position < last, np.maximum(1 - distance, 0), 0)
    weight /= weight.sum(axis=0)
    fixed = np.floor(weight * (1 << _FRACTION_BITS) + 0.5).astype(np.int32)
    return np.minimum(position, size_in - 1), fixed
