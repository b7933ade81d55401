from __future__ import annotations

import multiprocessing
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from span_sparse.errors import ConfigError
from span_sparse.extract import PatchEncoder
from span_sparse.extract.encoders.torch_encoder import TorchEncoder
from span_sparse.extract.encoders.transform import Transform
from span_sparse.types import EncoderIdentity

IDENTITY = EncoderIdentity("tiny", "1", "mean", 5, 16, 0.5, "float16")
PLAIN = Transform(None, 16, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@dataclass(frozen=True)
class LoadLinear:
    """A linear map of all pixels; counts nothing, so that it can be sent to another process."""

    dimension: int = 5
    scale: float = 1.0
    seen: tuple = ()

    def __call__(self, device: torch.device):
        generator = torch.Generator().manual_seed(3)
        matrix = torch.randn(3 * 16 * 16, self.dimension, generator=generator).to(device) * self.scale

        def run(inputs: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return inputs.flatten(1) @ matrix

        return run


def encoder(**changes) -> TorchEncoder:
    return replace(TorchEncoder(IDENTITY, PLAIN, LoadLinear()), **changes)


def test_vectors_by_hand(patches) -> None:
    batch = patches(3, 16)
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(3 * 16 * 16, 5, generator=generator).numpy()
    normal = (batch / 255 - PLAIN.mean) / PLAIN.std
    expected = normal.transpose(0, 3, 1, 2).reshape(3, -1) @ matrix
    made = encoder()
    assert isinstance(made, PatchEncoder)
    found = made(batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert made(batch[:0]).shape == (0, 5)


@pytest.mark.parametrize(
    "batch", [np.zeros((2, 16, 16, 4), np.uint8), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 16, 16, 3), float)]
)
def test_wrong_patches_are_refused(batch) -> None:
    with pytest.raises(ValueError, match=r"patches must be uint8 \[batch, 16, 16, 3\]"):
        encoder()(batch)


@pytest.mark.parametrize("name", ["uni_v1", "virchow2", "conch_v1", "ctranspath", "resnet50"])
def test_batch_mates_change_rounding_only(name: str, small, random_weights, patches) -> None:
    spec = small(name)
    network = random_weights(spec)
    shapes = set()

    def load(device):
        def run(inputs):
            shapes.add(tuple(inputs.shape))
            return spec.read(network, inputs)

        return run

    identity = replace(IDENTITY, dimension=spec.dimension, input_size_px=spec.input_size_px)
    made = TorchEncoder(identity, spec.transform, load)
    batch = patches(11, spec.input_size_px)
    together = made(batch)
    assert len(shapes) == 1  # the same kernels for every batch
    alone = np.concatenate([made(batch[index : index + 1]) for index in (0, 3, 10)])
    scale = np.abs(together).max()
    np.testing.assert_allclose(alone, together[[0, 3, 10]], atol=2e-6 * scale)
    np.testing.assert_allclose(made(batch[::-1])[::-1], together, atol=2e-6 * scale)
    assert together.std(axis=0).max() > 1e-3  # patches are told apart
    assert made(batch).tobytes() == together.tobytes()


def test_non_contiguous_patches(patches) -> None:
    batch = patches(4, 16)
    turned = batch[:, ::-1].transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(encoder()(turned), encoder()(np.ascontiguousarray(turned)))


@pytest.mark.parametrize(("scale", "stored"), [(float("nan"), "float32"), (1e4, "float16")])
def test_a_vector_that_is_not_finite_names_the_patch(scale: float, stored: str, patches) -> None:
    def load(device):
        return lambda inputs: (
            torch.where(inputs.mean(dim=(1, 2, 3), keepdim=True)[:, 0, 0] > 2, scale * 10, 1.0) * torch.ones(5)
        )

    batch = np.zeros((21, 16, 16, 3), np.uint8)
    batch[17] = 255
    made = encoder(load=load, identity=replace(IDENTITY, precision=stored))
    with pytest.raises(ConfigError, match=rf"no finite {stored} vector for patch 17 .*--precision float32"):
        made(batch)
    batch[17] = 0
    assert (made(batch) == 1).all()
    if stored == "float16":  # 100,000 is beyond float16, but a number
        batch[17] = 255
        assert encoder(load=load, identity=replace(IDENTITY, precision="float32"))(batch)[17, 0] == 1e5


def test_padding_never_shows(patches) -> None:
    """Black padding that overflows belongs to nobody."""

    def load(device):
        return lambda inputs: torch.where(inputs.mean(dim=(1, 2, 3)) < -1, torch.inf, 1.0)[:, None] * torch.ones(5)

    assert (encoder(load=load)(np.full((3, 16, 16, 3), 250, np.uint8)) == 1).all()


def test_another_dimension_is_refused(patches) -> None:
    with pytest.raises(ConfigError, match=r"gives \[8, 7\] for 8 patches, expected vectors \[8, 5\]"):
        encoder(load=LoadLinear(7))(patches(2, 16))
    with pytest.raises(ConfigError, match=r"gives tuple for 8 patches"):
        encoder(load=lambda device: lambda inputs: (inputs, inputs))(patches(2, 16))


def test_bfloat16_computes_with_eight_bits(patches) -> None:
    batch = patches(6, 16)
    exact, coarse = encoder()(batch), encoder(compute="bfloat16")(batch)
    error = np.abs(coarse - exact).max() / np.abs(exact).max()
    assert 2**-12 < error < 2**-5
    np.testing.assert_array_equal(encoder(compute="float16")(batch), exact)  # a CPU computes float32 for it


def test_pickling_takes_the_recipe_not_the_network(patches) -> None:
    made = encoder(chunk=4)
    first = made(patches(3, 16))
    copy = pickle.loads(pickle.dumps(made))
    assert copy == made
    assert len(pickle.dumps(made)) < 2000
    assert copy._stream is None
    assert copy(patches(3, 16)).tobytes() == first.tobytes()


def test_a_spawned_worker_gives_the_same_vectors(patches) -> None:
    made = encoder()
    batch = patches(5, 16)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.apply(made, (batch,))
    np.testing.assert_array_equal(found, made(batch))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute": "float64"}, "--precision float64: expected one of float32, float16, bfloat16"),
        ({"device": "tpu"}, "--device tpu: expected cpu, cuda or cuda:N"),
        ({"device": "cpu:1"}, "--device cpu:1: expected"),
        ({"device": "cuda:x"}, "--device cuda:x: expected"),
        ({"device": "cuda:64"}, "--device cuda:64: found .* GPUs here"),
        ({"transform": replace(PLAIN, crop_px=20)}, "patches of 16 px are too small .* crops 20 px"),
    ],
)
def test_impossible_settings_are_refused(changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder(**changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees_with_the_cpu(small, random_weights, patches) -> None:
    spec = small("uni_v1")
    network = random_weights(spec)
    identity = replace(IDENTITY, dimension=spec.dimension, input_size_px=spec.input_size_px)

    def load(device):
        return lambda inputs: spec.read(network.to(device), inputs)

    batch = patches(20, spec.input_size_px)
    exact = TorchEncoder(identity, spec.transform, load)(batch)
    scale = np.abs(exact).max()
    for compute, bound in (("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 5e-2)):
        found = TorchEncoder(identity, spec.transform, load, "cuda", compute)(batch)
        assert np.abs(found - exact).max() < bound * scale
        network.cpu()
