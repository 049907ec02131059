"""IDX files: what is written is read back to the bit, and whatever is not IDX is refused with its reason."""

import gzip
import os
import struct
import tracemalloc

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmlp.datasets import read_idx, write_idx
from fastmlp.errors import FileFormatError

DTYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}


def header(code, *shape, rank=None):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape) if rank is None else rank, *shape)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(
    array=st.sampled_from(sorted(DTYPES.values())).flatmap(
        lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    zipped=st.booleans(),
)
def test_round_trip_of_every_type_and_rank(tmp_path_factory, array, zipped):
    path = tmp_path_factory.mktemp("idx") / ("a.idx.gz" if zipped else "a.idx")
    write_idx(path, array)
    back = read_idx(path)
    assert same(back, array)
    assert back.dtype.isnative and back.flags.c_contiguous and back.flags.writeable
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == zipped


@pytest.mark.parametrize("rank", [5, 32, 64])
def test_round_trip_of_high_ranks(tmp_path, rank):
    array = np.arange(6, dtype=np.int16).reshape([2, 3] + [1] * (rank - 2))
    write_idx(tmp_path / "a.idx", array)
    assert same(read_idx(tmp_path / "a.idx"), array)


@pytest.mark.parametrize(("code", "name"), DTYPES.items())
def test_bytes_on_disk_are_those_of_the_format(tmp_path, code, name):
    values = np.array([[1, 2, 3], [4, 5, 100]], dtype=name)
    expected = header(code, 2, 3) + values.astype(values.dtype.newbyteorder(">")).tobytes()
    write_idx(tmp_path / "a", values)
    assert (tmp_path / "a").read_bytes() == expected
    if name == "int16":
        assert expected[12:16] == b"\x00\x01\x00\x02"


@pytest.mark.parametrize("array", [np.arange(24, dtype=np.int32).reshape(4, 6)])
def test_layout_in_memory_does_not_matter(tmp_path, array):
    for view in (array[::2, ::-1], array.T, array.astype(">i4"), np.asfortranarray(array)):
        write_idx(tmp_path / "a.idx", view)
        assert same(read_idx(tmp_path / "a.idx"), np.array(view, dtype=np.int32, order="C"))


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    array = np.arange(10, dtype=np.uint8)
    write_idx(tmp_path / "a.gz", array)
    os.rename(tmp_path / "a.gz", tmp_path / "a")
    assert same(read_idx(tmp_path / "a"), array)
    write_idx(tmp_path / "b", array)
    os.rename(tmp_path / "b", tmp_path / "b.gz")
    assert same(read_idx(str(tmp_path / "b.gz")), array)


def test_the_same_array_gives_the_same_gzip_bytes_under_any_name(tmp_path, monkeypatch):
    array = np.arange(100, dtype=np.float64)
    write_idx(tmp_path / "a.gz", array)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_idx(tmp_path / "b.gz", array)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_an_array_of_more_than_one_chunk_is_read(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (3, 1 << 20), dtype=np.uint8)
    write_idx(tmp_path / "a.idx", array)
    assert same(read_idx(tmp_path / "a.idx"), array)


def refusal(path, content, **options):
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        read_idx(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IDX magic number of 4 bytes, got 0 bytes"),
        (b"\0\0\x08", "expected an IDX magic number of 4 bytes, got 3 bytes"),
        (b"\x89PNG....", "begins with two zero bytes, got b'\\x89PNG'; is this the right file?"),
        (header(0x0A, 3) + b"abc", "expected an IDX type code for uint8, int8, int16"),
        (header(0x0A, 3) + b"abc", "got 0x0A"),
        (header(0x08, 3, rank=3), "expected 12 bytes of sizes after the magic number, got 4"),
        (header(0x08, *[1] * 65) + b"a", "expected at most 64 dimensions, got 65"),
        (header(0x08, *[1] * 255) + b"a", "expected at most 64 dimensions, got 255"),
        (header(0x08, 2, 3) + b"abcde", "expected 6 bytes of uint8 for shape (2, 3), got only 5"),
        (header(0x0E, 2, 3) + b"abcde", "expected 48 bytes of float64 for shape (2, 3), got only 5"),
        (header(0x08, 2, 3) + b"abcdefg", "expected 6 bytes of uint8 for shape (2, 3), got more"),
        (header(0x08), "expected 1 bytes of uint8 for shape (), got only 0"),
        (header(0x08, 0, 3) + b"a", "expected 0 bytes of uint8 for shape (0, 3), got more"),
        (header(0x08, 0, *[2**32 - 1] * 4), "expected a shape that NumPy can hold"),
    ],
)
def test_what_is_not_idx_is_refused_with_the_reason(tmp_path, content, message, pack):
    assert message in refusal(tmp_path / "a", pack(content))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_header_that_lies_costs_no_memory(tmp_path, pack):
    content = pack(header(0x0E, 2**32 - 1, 2**32 - 1) + bytes(100))
    tracemalloc.start()
    try:
        assert "got only 100" in refusal(tmp_path / "a", content)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_another_magic_number_than_expected_is_refused(tmp_path):
    labels = header(0x08, 2) + b"ab"
    message = refusal(tmp_path / "a", labels, expected_magic=2051)
    assert message == (
        "expected the magic number 2051 (uint8, rank 3), got the magic number 2049 (uint8, rank 1); "
        "is this the right file?"
    )
    (tmp_path / "a").write_bytes(labels)
    assert read_idx(tmp_path / "a", expected_magic=2049).tolist() == [97, 98]


def test_truncated_gzip_is_refused_wherever_it_ends(tmp_path):
    whole = gzip.compress(header(0x08, 2000) + np.random.default_rng(0).bytes(2000))
    for length in (2, 5, 10, 15, 1000, len(whole) - 8, len(whole) - 1):
        assert "expected a whole gzip file" in refusal(tmp_path / "a", whole[:length])


def test_damaged_gzip_is_refused(tmp_path):
    whole = bytearray(gzip.compress(header(0x08, 2000) + bytes(2000)))
    for place in (2, 12, -6):  # the method, the stream, the checksum
        damaged = whole.copy()
        damaged[place] ^= 0xFF
        assert "expected a whole gzip file" in refusal(tmp_path / "a", damaged)


@given(content=st.binary(max_size=40), start=st.sampled_from([b"", b"\0\0\x08\x01", b"\0\0\x0b\x02\0\0\0\x02"]))
def test_any_bytes_give_an_array_or_a_file_format_error(tmp_path_factory, content, start):
    path = tmp_path_factory.mktemp("idx") / "a"
    path.write_bytes(start + content)
    try:
        array = read_idx(path)
    except FileFormatError:
        return
    write_idx(path, array)
    assert path.read_bytes() == start + content


@pytest.mark.parametrize("array", [np.arange(3), np.array([True]), np.array(["a"]), np.array([1j]), [1, 2]])
def test_types_that_idx_lacks_are_refused_and_nothing_is_written(tmp_path, array):
    with pytest.raises(TypeError, match=r"an IDX file holds one of uint8, int8, .*; got .*: convert it with astype"):
        write_idx(tmp_path / "a.idx", array)
    assert not list(tmp_path.iterdir())


def test_a_dimension_beyond_32_bits_is_refused(tmp_path):
    array = np.broadcast_to(np.uint8(0), (2**32, 0))
    with pytest.raises(ValueError, match=r"below 2\*\*32; got shape"):
        write_idx(tmp_path / "a.idx", array)


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.idx.gz"
    write_idx(path, np.zeros(3, np.uint8))

    def refuse(self, data):
        raise OSError("disk full")

    monkeypatch.setattr(gzip.GzipFile, "write", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_idx(path, np.ones(3, np.uint8))
    assert read_idx(path).tolist() == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none")
