from __future__ import annotations

import hashlib

import pytest

from span_sparse.extract import checksum
from span_sparse.extract.checksum import slide_checksum


def test_small_file_is_hashed_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"slide" * 1000)
    assert slide_checksum(tmp_path / "a") == "sha256:" + hashlib.sha256(b"slide" * 1000).hexdigest()


@pytest.mark.parametrize("position", [0, 99, 55])
def test_sampled_file_notices_changes_at_start_end_and_in_a_piece(tmp_path, monkeypatch, position):
    monkeypatch.setattr(checksum, "PIECE_BYTES", 10)
    monkeypatch.setattr(checksum, "NUM_PIECES", 3)  # pieces [0, 10), [45, 55), [90, 100)
    content = bytearray(range(100))
    (tmp_path / "a").write_bytes(content)
    before = slide_checksum(tmp_path / "a")
    assert before.startswith("sha256-sampled:")
    content[position] = 255
    (tmp_path / "a").write_bytes(content)
    assert (slide_checksum(tmp_path / "a") != before) == (position != 55)
    (tmp_path / "a").write_bytes(bytes(range(100)) + b"x")
    assert slide_checksum(tmp_path / "a") != before
