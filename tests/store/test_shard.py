from __future__ import annotations

import json
import shutil

import google_crc32c
import numpy as np
import pytest
import zarr

from span_sparse.errors import StoreError
from span_sparse.store.naming import group_name
from span_sparse.store.shard import read_array, rows_per_block


@pytest.fixture
def features(store, make_record):
    """Folder of a small float16 array `[7, 5]`."""
    store.write(make_record())
    return store.path / group_name("slide-1") / "features"


def edit_metadata(folder, change):
    document = json.loads((folder / "zarr.json").read_text())
    change(document)
    (folder / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("num_rows", "row_bytes", "expected"),
    [(1, 2, 1), (10_000, 2048, 2500), (2048, 2048, 2048), (4095, 2048, 4095), (4096, 2048, 2048), (4097, 2048, 2049)],
)
def test_blocks_are_of_four_mebibytes_or_the_whole_array(num_rows, row_bytes, expected):
    assert rows_per_block(num_rows, row_bytes) == expected


def test_several_blocks_with_padding_read_as_zarr_reads_them(store, make_record):
    # 4,099 rows of 1,024 float32 (4 KiB) are 4 blocks of 1,025 rows, the last one padded with one row.
    rows = np.arange(4099)
    grid = np.stack(np.divmod(rows, 100), axis=1).astype(np.int32)
    record = make_record(grid=grid, channels=1024, precision="float32", width_px0=1000, height_px0=1000)
    store.write(record)
    folder = store.path / "slide-1" / "features"
    found = zarr.open_array(folder, mode="r")
    assert (found.chunks, found.shards) == ((1025, 1024), (4100, 1024))
    assert [path.name for path in (folder / "c").rglob("*") if path.is_file()] == ["0"]
    for verify in (True, False):
        ours = read_array(folder, ("float32",), verify=verify)
        assert ours.flags.c_contiguous
        np.testing.assert_array_equal(ours, record.features, strict=True)
    np.testing.assert_array_equal(found[...], record.features, strict=True)


def test_every_flipped_byte_is_found(features):
    path = features / "c" / "0" / "0"
    whole = path.read_bytes()
    assert len(whole) == 7 * 5 * 2 + 4 + 16 + 4  # values, their checksum, the index and its checksum
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(broken)
        with pytest.raises(StoreError, match="corrupt"):
            read_array(features, ("float16",), verify=True)


def test_every_truncation_is_found_even_without_verification(features):
    path = features / "c" / "0" / "0"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match=r"truncated"):
            read_array(features, ("float16",), verify=False)


@pytest.mark.parametrize(("offset", "length"), [(1, 74), (2**63, 74), (2**64 - 1, 2**64 - 1), (0, 70)])
def test_an_index_that_names_other_bytes_is_refused(features, offset, length):
    """`2^64 - 1` twice is Zarr's mark for a block left out, which it would read as zeros."""
    path = features / "c" / "0" / "0"
    index = np.array([offset, length], "<u8").tobytes()
    path.write_bytes(path.read_bytes()[:74] + index + google_crc32c.value(index).to_bytes(4, "little"))
    with pytest.raises(StoreError, match="the shard index names missing blocks"):
        read_array(features, ("float16",), verify=False)


def test_a_missing_shard_is_an_error_and_not_zeros(features):
    (features / "c" / "0" / "0").unlink()
    assert (zarr.open_array(features, mode="r")[...] == 0).all()  # what plain Zarr makes of it
    with pytest.raises(StoreError, match=r"c/0/0 cannot be read.*incomplete"):
        read_array(features, ("float16",), verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(zarr_format=2), "'zarr_format' must be 3, found 2"),
        (lambda d: d.update(node_type="group"), "'node_type' must be array"),
        (lambda d: d["codecs"][0]["configuration"]["codecs"].insert(0, {"name": "numcodecs.pickle"}), "another kind"),
        (lambda d: d.update(codecs=[{"name": "bytes", "configuration": {"endian": "little"}}]), "not the metadata"),
        (lambda d: d["codecs"].append({"name": "gzip"}), "'codecs' must be"),
        (lambda d: d["codecs"][0]["configuration"].update(index_location="start"), "'codecs' must be"),
        (lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[5, 5]), "'chunk_grid' must be"),
        (lambda d: d["chunk_key_encoding"]["configuration"].update(separator="."), "'chunk_key_encoding' must be"),
        (lambda d: d.update(shape=[7]), "not the metadata of an array"),
        (lambda d: d.update(shape=[7, 5, 1]), "not the metadata of an array"),
        (lambda d: d.update(shape=[0, 5]), "counts must be positive"),
        (lambda d: d.update(shape=[True, 5]), "counts must be positive"),
        (lambda d: d.update(shape="75"), "counts must be positive"),
        (lambda d: d.pop("codecs"), "not the metadata of an array"),
        (lambda d: d.update(data_type="float64"), "dtype must be float16, found 'float64'"),
        (lambda d: d.update(data_type={"name": "object"}), "dtype must be float16, found"),
    ],
)
def test_other_arrays_are_refused(features, change, message):
    edit_metadata(features, change)
    with pytest.raises(StoreError, match=message):
        read_array(features, ("float16",), verify=True)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"[" * 100_000])
def test_metadata_that_are_no_json_object_are_refused(features, text):
    (features / "zarr.json").write_bytes(text)
    with pytest.raises(StoreError, match=r"zarr\.json"):
        read_array(features, ("float16",), verify=True)


def test_memory_is_not_allocated_for_what_the_file_cannot_hold(features):
    huge = 2**39

    def enlarge(document):
        document["shape"] = [huge, 5]
        document["chunk_grid"]["configuration"]["chunk_shape"] = [huge, 5]
        document["codecs"][0]["configuration"]["chunk_shape"] = [huge, 5]

    edit_metadata(features, enlarge)
    with pytest.raises(StoreError, match="truncated"):
        read_array(features, ("float16",), verify=False)


def test_missing_folder(features):
    shutil.rmtree(features)
    with pytest.raises(StoreError, match="No such file"):
        read_array(features, ("float16",), verify=True)
