"""The size of a second-level cache, as an operating system tells it."""

import ctypes
import os
import sys

import pytest

from fastmlp.backends.cpu import scratch


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Let Linux tell of caches in a folder, and return what writes them there."""
    monkeypatch.setattr(scratch, "CACHES", tmp_path)
    scratch.level2_bytes.cache_clear()

    def tell(index, **files):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(f"{text}\n")

    yield tell
    scratch.level2_bytes.cache_clear()


def nothing_found(monkeypatch):
    class Silent:
        def __init__(self, name):
            pass

    monkeypatch.setattr(ctypes, "CDLL", Silent)


def test_linux_tells_of_each_cache_in_a_folder(told):
    told(0, level=1, type="Data", size="48K")
    told(1, level=2, type="Instruction", size="64K")
    told(2, level=2, type="Unified", size="1280K")
    told(3, level=3, type="Unified", size="491520K")
    assert scratch.level2_bytes() == 1280 * 1024


@pytest.mark.parametrize("size", ["", "huge", None])
def test_the_smallest_is_taken_where_nobody_tells(told, size, monkeypatch):
    nothing_found(monkeypatch)
    told(2, level=2, type="Unified", **({} if size is None else {"size": size}))
    assert scratch.level2_bytes() == scratch.SMALLEST == 256 * 1024


@pytest.mark.parametrize(("code", "size", "found"), [(0, 4 << 20, 4 << 20), (1, 4 << 20, 256 << 10), (0, 0, 256 << 10)])
def test_macos_is_asked_where_there_is_no_folder(told, code, size, found, monkeypatch):
    class MacOS:
        def __init__(self, name):
            assert name is None

        def sysctlbyname(self, name, value, room, new, new_size):
            assert name == b"hw.l2cachesize" and room._obj.value == 8 and new is None and new_size == 0
            value._obj.value = size
            return code

    monkeypatch.setattr(ctypes, "CDLL", MacOS)
    assert scratch.level2_bytes() == found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells by files")
def test_this_machine_is_asked():
    if not os.path.exists(scratch.CACHES / "index2" / "size"):
        pytest.skip("this machine tells of no second-level cache")
    assert 128 * 1024 <= scratch.level2_bytes() <= 1 << 30
