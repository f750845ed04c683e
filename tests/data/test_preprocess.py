"""Test preprocessing against Pillow and torchvision's transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from jaxlab import Preprocess
from jaxlab.data.digits import mnist5k
from jaxlab.data.preprocess import resize_bilinear
from tests.conftest import ROUNDOFF_FLOAT32

# Outside jit, each size would compile its own operations, one by one.
resize = jax.jit(resize_bilinear, static_argnums=(1, 2))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def pillow(image, height, width):
    mode_image = image[..., 0] if image.shape[-1] == 1 else image
    resized = Image.fromarray(mode_image).resize((width, height), Image.BILINEAR)
    return np.asarray(resized).reshape(height, width, -1)


def test_two_hundred_real_digits_resize_to_pillows_pixels():
    digits = mnist5k().train.images[:200]
    ours = np.asarray(resize(digits, 224, 224))
    theirs = np.stack([pillow(digit, 224, 224) for digit in digits])
    assert np.count_nonzero(ours != theirs) == 0


@pytest.mark.parametrize(
    "shape",
    # Both orders of the two resize passes, one pass, no pass, and extreme sizes.
    [
        (417, 300, 3),
        (300, 417, 3),
        (224, 300, 3),
        (224, 224, 3),
        (1, 1, 3),
        (2, 900, 1),
    ],
)
def test_noise_resizes_to_pillows_pixels_up_and_down(shape):
    image = noise(*shape)
    ours = np.asarray(resize(image[None], 224, 224)[0])
    assert np.count_nonzero(ours != pillow(image, 224, 224)) == 0


# Each size is a program of its own.
@pytest.mark.slow
@settings(max_examples=settings.default.max_examples // 5, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90))
def test_any_size_resizes_to_pillows_pixels(height, width, new_height, new_width):
    image = noise(height, width, 1)
    ours = np.asarray(resize(image[None], new_height, new_width)[0])
    assert np.count_nonzero(ours != pillow(image, new_height, new_width)) == 0


def test_a_float_resize_is_not_pillows():
    image = noise(28, 28, 1)
    rounded = jnp.round(jax.image.resize(image / 1.0, (224, 224, 1), "bilinear"))
    assert np.count_nonzero(np.asarray(rounded) != pillow(image, 224, 224)) > 100


@pytest.mark.parametrize("size", [63, 224, 256])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (417, 300, 3)])
def test_the_whole_chain_equals_torchvisions(size, shape):
    images = noise(2, *shape)
    chain = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Grayscale(3)
            if shape[-1] != 3
            else transforms.Lambda(lambda x: x),
            transforms.Resize([size, size]),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    theirs = np.stack([chain(image).permute(1, 2, 0).numpy() for image in images])
    ours = jax.jit(Preprocess(size))(images)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDOFF_FLOAT32)


def test_the_result_is_float32_in_64_bit_jax_too(x64):
    assert jax.jit(Preprocess(63))(noise(1, 28, 28)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((2, 28, 28), np.float32), "float32[2, 28, 28]"),
        (np.zeros((2, 28, 28, 4), np.uint8), "uint8[2, 28, 28, 4]"),
    ],
)
def test_other_images_are_refused(images, got):
    with pytest.raises(ValueError, match=r"1 or 3\], got") as raised:
        Preprocess()(images)
    assert got in str(raised.value)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (40, 30, 3)])
def test_one_image_is_not_taken_for_a_batch(shape):
    image = np.zeros(shape, np.uint8)
    message = r"got one image .*; add a batch axis: np.asarray\(image\)\[None\]"
    with pytest.raises(ValueError, match=message):
        Preprocess()(image)
    with pytest.raises(ValueError, match=message):
        Preprocess()(Image.fromarray(image.squeeze()))
    assert jax.jit(Preprocess(63))(image[None]).shape == (1, 63, 63, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([63, 100, 224]))
def test_the_crop_for_photographs_is_torchvisions(height, width, size):
    picture = Image.fromarray(noise(height, width, 3))
    short = transforms.Resize(size * 256 // 224)
    theirs = transforms.Compose([short, transforms.CenterCrop(size)])(picture)
    ours = Preprocess(size, crop=True).resize(picture)
    np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize(
    "shape", [(28, 28, 1), (90, 61, 3), (64, 200, 3), (300, 70, 1)]
)
def test_both_halves_give_what_one_call_gives(shape, crop, monkeypatch):
    monkeypatch.setattr("jaxlab.data.preprocess.resize_bilinear", resize)
    image = noise(*shape)
    preprocess = Preprocess(64, crop=crop)
    picture = Image.fromarray(image[:, :, 0] if shape[-1] == 1 else image)
    resized = preprocess.resize(picture)
    assert resized.shape == (64, 64, 3) and resized.dtype == np.uint8
    np.testing.assert_array_equal(
        preprocess.normalize(resized[None]), preprocess(image[None])
    )


def test_the_default_crop_is_256_and_224():
    picture = Image.fromarray(noise(300, 500, 3))
    by_hand = picture.resize((426, 256), Image.BILINEAR).crop((101, 16, 325, 240))
    np.testing.assert_array_equal(
        Preprocess(crop=True).resize(picture), np.asarray(by_hand)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_one_channel_is_torchvisions_grayscale(channels):
    image = noise(37, 50, channels)
    preprocess = Preprocess(28, mean=(0.0,), std=(1.0,))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    pixels = preprocess.resize(picture)
    theirs = transforms.Compose(
        [transforms.Resize([28, 28]), transforms.Grayscale(), transforms.ToTensor()]
    )(picture).numpy()
    assert pixels.shape == (28, 28, 1) and pixels.dtype == np.uint8
    ours = preprocess(image[None])
    np.testing.assert_array_equal(preprocess.normalize(pixels), ours[0])
    found = np.moveaxis(ours[0], -1, 0)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=ROUNDOFF_FLOAT32)
    # Scaled to [0, 1] and nothing else: what the lab trains on, to the last bit.
    np.testing.assert_array_equal(ours[0], jnp.asarray(pixels) / 255.0)


def test_every_colour_is_pillows_grey():
    # Each value of each channel, beside extreme values of the others.
    values = np.arange(256, dtype=np.uint8)
    image = np.stack(np.meshgrid(values, values, indexing="ij"), -1)
    image = np.concatenate([image, image[:, ::-1, :1]], -1)
    preprocess = Preprocess(256, mean=(0.0,), std=(1.0,))
    ours = np.asarray(255 * preprocess(image[None])[0, ..., 0]).round()
    theirs = np.asarray(Image.fromarray(image).convert("L"))
    assert np.count_nonzero(ours != theirs) == 0


def test_two_channels_are_refused():
    with pytest.raises(ValueError, match="expected three numbers each, or one"):
        Preprocess(28, mean=(0.0, 0.0), std=(1.0, 1.0))
