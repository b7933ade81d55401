from __future__ import annotations

import h5py
import numpy as np
import pytest

from span_sparse.errors import ExchangeError
from span_sparse.store.exchange.hdf5 import open_hdf5, read_extras


@pytest.fixture
def texts(tmp_path):
    """A file whose texts fill several heaps, and numbers that look like the beginning of one."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for part in "abc":
            texts = [f"{part} {number:>4000}" for number in range(50)]
            file.create_dataset(f"names_{part}", data=texts, dtype=h5py.string_dtype())
        file.create_dataset("caption", data="what it is")
        file.create_dataset("noise", data=np.frombuffer(b"xGCOL\1\0\0\0" * 7 + b"x", np.uint8))
    return path


def test_texts_are_read_whole(texts) -> None:
    with open_hdf5(texts) as file:
        kept, lost = read_extras(file, ())
    assert lost == []
    assert kept["caption"] == {"text": "what it is"}
    assert kept["names_c"]["values"][49] == f"c {49:>4000}"


@pytest.mark.parametrize("heap", [0, 1, -1])
@pytest.mark.parametrize(
    "damage", [bytes(16), b"\1\0" + bytes(6) + b"\xff" * 8, b"\1\0" + bytes(6) + (2**40).to_bytes(8, "little")]
)
def test_a_heap_that_hdf5_would_walk_for_ever_is_refused(texts, heap, damage) -> None:
    content = bytearray(texts.read_bytes())
    starts = [place for place in range(0, len(content), 8) if content[place : place + 5] == b"GCOL\1"]
    assert len(starts) > 2
    first = starts[heap] + 16
    content[first : first + 16] = damage
    texts.write_bytes(content)
    with (
        pytest.raises(ExchangeError, match=rf"a\.h5: the heap of texts at byte {starts[heap]} is damaged"),
        open_hdf5(texts),
    ):
        pass
