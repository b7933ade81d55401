"""Chunks in flight: order, places, errors; a transport whose flights land only when the test says so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from span_sparse.errors import ConfigError
from span_sparse.extract.encoders.network_stream import NetworkStream
from span_sparse.extract.encoders.torch_encoder import TorchEncoder
from span_sparse.extract.encoders.transform import Transform
from span_sparse.extract.encoding_stream import CallStream, StreamingEncoder, stream_of
from span_sparse.types import EncoderIdentity

EDGE, CHUNK = 4, 3
IDENTITY = EncoderIdentity("brightness", "1", "mean", 3, EDGE, 0.5, "float16")


@dataclass
class SlowFlight:
    transport: SlowTransport
    number: int
    pixels: Tensor

    def landed(self) -> bool:
        return self.number < self.transport.num_landed

    def vectors(self) -> Tensor:
        self.transport.waited_for.append(self.number)
        self.transport.num_landed = max(self.transport.num_landed, self.number + 1)
        if self.number in self.transport.broken:
            raise RuntimeError("the device is lost")
        return self.pixels.float().mean(dim=(1, 2))


@dataclass
class SlowTransport:
    """A place holds its pixels until its flight has landed; sending to a place that is in use is an error."""

    num_places: int = 4
    num_landed: int = 0
    broken: tuple[int, ...] = ()
    sent: list[SlowFlight] = field(default_factory=list)
    waited_for: list[int] = field(default_factory=list)

    def send(self, patches: Tensor, /) -> SlowFlight:
        assert len(self.sent) - self.num_landed < self.num_places, "no place is free"
        chunk = torch.zeros((CHUNK, EDGE, EDGE, 3), dtype=torch.uint8)
        chunk[: len(patches)] = patches
        self.sent.append(SlowFlight(self, len(self.sent), chunk))
        return self.sent[-1]


def stream(transport: SlowTransport) -> NetworkStream:
    return NetworkStream(IDENTITY, CHUNK, lambda: transport)


def grey(first: int, count: int) -> np.ndarray:
    """Patches of one grey each, counting from `first`."""
    return np.broadcast_to(np.arange(first, first + count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3))


def test_batches_come_out_in_order_whatever_lands_when() -> None:
    transport = SlowTransport()
    made = stream(transport)
    assert not made.ready()
    made.submit(np.ascontiguousarray(grey(10, 7)))  # three chunks
    made.submit(np.ascontiguousarray(grey(50, 2)))
    assert len(transport.sent) == 4
    assert transport.waited_for == []
    assert not made.ready()
    transport.num_landed = 2
    assert not made.ready(), "a third of the batch is still on its way"
    transport.num_landed = 3
    assert made.ready()
    np.testing.assert_array_equal(made.collect(), np.arange(10, 17)[:, None].repeat(3, 1))
    assert not made.ready()
    np.testing.assert_array_equal(made.collect(), np.arange(50, 52)[:, None].repeat(3, 1))
    assert transport.waited_for == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        made.collect()


def test_the_pixels_belong_to_the_caller_again() -> None:
    transport = SlowTransport()
    made = stream(transport)
    pixels = np.ascontiguousarray(grey(10, 5))
    made.submit(pixels)
    pixels[:] = 0
    np.testing.assert_array_equal(made.collect()[:, 0], np.arange(10, 15))


def test_a_batch_of_more_chunks_than_places_waits_for_the_oldest() -> None:
    transport = SlowTransport(num_places=2)
    made = stream(transport)
    made.submit(np.ascontiguousarray(grey(0, 13)))  # five chunks
    assert transport.waited_for == [0, 1, 2]
    np.testing.assert_array_equal(made.collect()[:, 0], np.arange(13))


def test_an_empty_batch_keeps_its_turn() -> None:
    made = stream(SlowTransport())
    made.submit(np.ascontiguousarray(grey(1, 1)))
    made.submit(np.ascontiguousarray(grey(0, 0)))
    assert made.collect().shape == (1, 3)
    assert made.ready()
    assert made.collect().shape == (0, 3)


def test_an_error_on_the_way_is_that_batch_s_alone() -> None:
    made = stream(SlowTransport(num_places=2, broken=(1,)))
    made.submit(np.ascontiguousarray(grey(0, 7)))
    made.submit(np.ascontiguousarray(grey(30, 4)))
    with pytest.raises(RuntimeError, match="the device is lost"):
        made.collect()
    np.testing.assert_array_equal(made.collect()[:, 0], np.arange(30, 34))


def test_wrong_patches_are_not_taken() -> None:
    made = stream(SlowTransport())
    with pytest.raises(ValueError, match="patches must be uint8"):
        made.submit(np.zeros((2, 5, 5, 3), np.uint8))
    with pytest.raises(IndexError):
        made.collect()


def test_what_cannot_be_loaded_is_told_for_each_batch() -> None:
    def broken():
        raise ConfigError("no weights")

    made = NetworkStream(IDENTITY, CHUNK, broken)
    for _ in range(2):
        made.submit(np.ascontiguousarray(grey(0, 2)))
        assert made.ready()
        with pytest.raises(ConfigError, match="no weights"):
            made.collect()


def linear(device):
    matrix = torch.randn(3 * 16 * 16, 5, generator=torch.Generator().manual_seed(3)).to(device)
    return lambda inputs: inputs.flatten(1) @ matrix


def network_encoder(**changes) -> TorchEncoder:
    identity = EncoderIdentity("tiny", "1", "mean", 5, 16, 0.5, "float32")
    transform = Transform(None, 16, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return replace(TorchEncoder(identity, transform, linear), **changes)


def test_a_stream_gives_the_bits_of_calls(patches) -> None:
    made = network_encoder()
    assert isinstance(made, StreamingEncoder)
    flow = stream_of(made)
    flow.prepare()
    batches = [patches(count, 16, seed=count) for count in (11, 3, 8, 1)]
    for batch in batches:
        flow.submit(batch)
    for batch in batches:
        assert flow.ready()
        assert flow.collect().tobytes() == made(batch).tobytes()


def test_an_encoder_without_a_stream_is_called() -> None:
    """What every plug-in has: an identity and a call."""

    class Plain:
        identity = IDENTITY

        def __call__(self, patches):
            if patches.max() > 200:
                raise RuntimeError("too bright")
            return patches.mean(axis=(1, 2)).astype(np.float32)

    flow = stream_of(Plain())
    assert isinstance(flow, CallStream)
    flow.prepare()
    assert not flow.ready()
    for first in (10, 250, 60):
        flow.submit(grey(first, 2))
    assert flow.ready()
    np.testing.assert_array_equal(flow.collect()[:, 0], [10, 11])
    with pytest.raises(RuntimeError, match="too bright"):
        flow.collect()
    np.testing.assert_array_equal(flow.collect()[:, 0], [60, 61])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_overlapped_chunks_on_a_gpu_are_those_sent_one_by_one(patches) -> None:
    """Batches of many chunks in few places: a place used too early would mix patches."""
    made = network_encoder(device="cuda", chunk=4)
    flow = made.encoding_stream()
    batches = [patches(90, 16, seed=seed) for seed in range(6)]
    for batch in batches:
        flow.submit(batch)
    for batch in batches:
        alone = np.concatenate([made(batch[start : start + 4]) for start in range(0, 90, 4)])
        np.testing.assert_array_equal(flow.collect(), alone)
