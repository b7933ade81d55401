from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from skimage.color import rgb2hed

from span_sparse.extract import PatchEncoder, StainTextureEncoder
from span_sparse.extract.stain_texture import describe, feature_names


def noise(batch: int, edge: int, seed: int = 0) -> np.ndarray:
    """Patches whose neighbouring pixels are correlated, so that no descriptor is trivial."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 60, (batch, edge, edge, 3))
    coarse = rng.integers(20, 190, (batch, edge // 4, edge // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (fine + coarse).astype(np.uint8)


def constant(colour: tuple[int, int, int], edge: int = 32) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (1, edge, edge, 3)).copy()


def test_identity_and_contract() -> None:
    encoder = StainTextureEncoder(input_size_px=64, mpp=1.0)
    assert isinstance(encoder, PatchEncoder)
    assert encoder.identity.as_dict() == {
        "name": "stain-texture",
        "revision": "1",
        "readout": "descriptor",
        "dimension": 128,
        "input_size_px": 64,
        "mpp": 1.0,
        "precision": "float32",
    }
    assert len(set(feature_names())) == 128
    assert pickle.loads(pickle.dumps(encoder)) == encoder
    assert encoder(noise(3, 64)).dtype == np.float32
    assert encoder(np.zeros((0, 64, 64, 3), np.uint8)).shape == (0, 128)


@pytest.mark.parametrize(("size", "mpp"), [(8, 0.5), (36, 0.5), (0, 0.5), (32, 0.0), (32, float("nan"))])
def test_impossible_settings_are_refused(size: int, mpp: float) -> None:
    with pytest.raises(ValueError, match="got"):
        StainTextureEncoder(size, mpp)


@pytest.mark.parametrize(
    "patches",
    [
        np.zeros((2, 32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((2, 64, 64, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
    ],
)
def test_wrong_input_is_refused(patches: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected|must be uint8 \[batch, 32, 32, 3\], got"):
        StainTextureEncoder(32)(patches)


def test_stains_equal_scikit_image() -> None:
    patches = np.maximum(noise(5, 32), 1)
    # scikit-image divides natural optical densities by -ln(1e-6).
    stains = rgb2hed(patches) * -math.log(1e-6)
    columns = describe(patches)
    for index, name in enumerate(("hematoxylin", "eosin", "residual")):
        flat = stains[..., index].reshape(5, -1)
        np.testing.assert_allclose(columns[f"stain/{name}/mean"], flat.mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(columns[f"stain/{name}/std"], flat.std(axis=1), atol=1e-5)
    hematoxylin = stains[..., 0].reshape(5, -1)
    for percent in (5, 25, 50, 75, 95):
        expected = np.percentile(hematoxylin, percent, axis=1, method="inverted_cdf")
        found = columns[f"stain/hematoxylin/p{percent}"]
        np.testing.assert_allclose(found, np.minimum(expected, 2.4), atol=0.0051)
    for index in range(12):
        low, high = 0.2 * index, 0.2 * (index + 1) if index < 11 else np.inf
        share = ((hematoxylin >= low) & (hematoxylin < high)).mean(axis=1)
        np.testing.assert_allclose(columns[f"stain/hematoxylin/bin{index}"] ** 2, share, atol=0.004)


def test_colour_equals_numpy() -> None:
    patches = noise(4, 32)
    columns = describe(patches)
    unit = patches.reshape(4, -1, 3) / 255
    for index, name in enumerate(("red", "green", "blue")):
        np.testing.assert_allclose(columns[f"colour/{name}/mean"], unit[..., index].mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(columns[f"colour/{name}/std"], unit[..., index].std(axis=1), atol=1e-5)
    expected = [np.corrcoef(unit[i, :, 0], unit[i, :, 2])[0, 1] for i in range(4)]
    np.testing.assert_allclose(columns["colour/red-blue/correlation"], expected, atol=1e-4)
    np.testing.assert_allclose(columns["colour/white"], (patches.min(axis=-1) >= 220).mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(columns["colour/black"], (patches.max(axis=-1) <= 60).mean(axis=(1, 2)), atol=1e-6)


def test_constant_patch_by_hand() -> None:
    columns = describe(constant((150, 80, 170)))
    density = sum(-math.log(value / 255) for value in (150, 80, 170)) / 3
    hand = {
        "colour/red/mean": 150 / 255,
        "colour/chroma/mean": 90 / 255,
        "colour/density/mean": density,
        "pattern/brightness/class8": 1.0,
        "pattern/brightness-half/class8": 1.0,
        "pattern/hematoxylin-half/class8": 1.0,
        "coarse/hematoxylin/low": float(columns["stain/hematoxylin/mean"][0]),
        "coarse/hematoxylin/high": float(columns["stain/hematoxylin/mean"][0]),
    }
    for name, value in hand.items():
        assert columns[name][0] == pytest.approx(value, abs=1e-5), name
    flat = ("/std", "/class0", "/class4", "/class9", "coherence2", "coherence4", "/local", "/correlation", "lag2")
    for name, values in columns.items():
        if name.endswith(flat) or "/peaks" in name:
            assert values[0] == 0, name


def test_orientation_coherence_of_stripes() -> None:
    stripe = np.where(np.arange(64) // 4 % 2, 200, 90).astype(np.uint8)
    vertical = np.broadcast_to(stripe[None, :], (64, 64))
    two_ways = np.where(np.arange(64)[None, :] < 32, vertical, vertical.T)
    noisy = noise(1, 64)[0, ..., 0]
    columns = describe(np.stack([vertical, two_ways, noisy])[..., None].repeat(3, axis=-1))
    second, fourth, local = (columns[f"gradient/hematoxylin/{key}"] for key in ("coherence2", "coherence4", "local"))
    assert second[0] > 0.98
    assert second[1] < 0.1
    assert fourth[:2].min() > 0.9
    assert local[:2].min() > 0.9
    assert max(second[2], local[2] - 0.35, fourth[2]) < 0.3


def test_local_binary_patterns_equal_a_loop() -> None:
    patch = noise(1, 16, seed=3)
    image = patch[0].astype(int).sum(axis=-1)
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    counts = np.zeros(10)
    for row, col in itertools.product(range(1, 15), repeat=2):
        bits = [int(image[row + down, col + right] >= image[row, col]) for down, right in ring]
        changes = sum(bits[i] != bits[i - 1] for i in range(8))
        counts[sum(bits) if changes <= 2 else 9] += 1
    columns = describe(patch)
    found = [columns[f"pattern/brightness/class{index}"][0] for index in range(10)]
    np.testing.assert_allclose(np.square(found), counts / 14**2, atol=1e-6)


def test_nuclei_are_counted() -> None:
    patch = constant((235, 170, 215), edge=64)
    centres = [(10, 10), (10, 40), (30, 22), (52, 12), (50, 50)]
    rows, cols = np.mgrid[:64, :64]
    for row, col in centres:
        distance = np.hypot(rows - row - 0.2, cols - col - 0.3)
        shade = np.clip(1 - distance / 5, 0, 1)[..., None]
        patch[0] = (patch[0] * (1 - shade) + np.array([60, 30, 110]) * shade).astype(np.uint8)
    columns = describe(patch)
    assert columns["nuclei/half/peaks0.6"][0] == pytest.approx(5 / 30**2, abs=1e-7)
    assert columns["nuclei/quarter/peaks0.3"][0] == pytest.approx(5 / 14**2, abs=1e-7)
    assert 0 < columns["nuclei/area0.9"][0] < columns["nuclei/area0.6"][0] < 5 * math.pi * 25 / 64**2


def test_symmetries_of_the_square() -> None:
    encoder = StainTextureEncoder(32, 1.0)
    patch = noise(1, 32, seed=5)
    expected = encoder(patch)
    for turns, flip in itertools.product(range(4), (False, True)):
        turned = np.rot90(patch, turns, axes=(1, 2))
        np.testing.assert_allclose(encoder(turned[:, ::-1] if flip else turned), expected, atol=2e-3)
    shuffled = np.random.default_rng(0).permutation(patch.reshape(-1, 3)).reshape(patch.shape)
    assert np.abs(encoder(shuffled) - expected).max() > 1


def test_batch_mates_change_no_bit() -> None:
    encoder = StainTextureEncoder(16, 1.0)
    patches = noise(700, 16)  # more than one chunk
    together = encoder(patches)
    alone = np.concatenate([encoder(patch[None]) for patch in patches[::53]])
    assert together[::53].tobytes() == alone.tobytes()
    assert together[::-1].tobytes() == encoder(patches[::-1]).tobytes()
    assert together[31:531].tobytes() == encoder(patches[31:531]).tobytes()


@pytest.mark.parametrize("edge", [16, 24, 224])
def test_every_patch_gives_finite_numbers_of_order_one(edge: int) -> None:
    checkers = (np.indices((edge, edge)).sum(axis=0) % 2 * 255).astype(np.uint8)
    colours = [(0, 0, 0), (255, 255, 255), (1, 1, 1), (255, 0, 0), (0, 0, 255), (120, 60, 130), (254, 255, 255)]
    patches = np.concatenate(
        [constant(colour, edge) for colour in colours]
        + [checkers[None, ..., None].repeat(3, axis=-1), noise(2, edge)]
        + [np.random.default_rng(1).integers(0, 256, (2, edge, edge, 3), dtype=np.uint8)]
    )
    features = StainTextureEncoder(edge)(patches)
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 10


def test_pinned_values() -> None:
    """A change here is a change of the features: raise the revision of the identity."""
    features = StainTextureEncoder(32, 1.0)(noise(1, 32, seed=11))[0]
    pinned = {
        "stain/hematoxylin/mean": 1.4013,
        "stain/eosin/p75": -0.105,
        "stain/residual/std": 1.39807,
        "colour/density/std": 0.28268,
        "colour/hematoxylin-eosin/correlation": -2.12522,
        "gradient/hematoxylin/p90": 4.575,
        "gradient/eosin-half/coherence4": -1.00054,
        "gradient/hematoxylin-half/local": -1.35116,
        "pattern/brightness/class3": -0.85774,
        "pattern/hematoxylin-half/class9": 2.64009,
        "nuclei/depth": 0.8922,
        "nuclei/quarter/peaks0.3": 3.8,
        "nuclei/lag4": -1.67347,
        "coarse/eosin/high": 1.67042,
    }
    found = dict(zip(feature_names(), features.tolist(), strict=True))
    assert {name: found[name] for name in pinned} == pytest.approx(pinned, abs=1e-4)
    assert float(features.sum()) == pytest.approx(25.2788, abs=5e-3)
