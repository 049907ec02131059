"""The MNIST that is shipped is MNIST, and a user's own files are checked before use."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest

from fastmlp.datasets import load_mnist, read_idx, write_idx
from fastmlp.datasets import mnist as module
from fastmlp.errors import DataError, FileFormatError

MD5 = {  # as published beside the files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.fixture(scope="module")
def mnist():
    return load_mnist()


@pytest.fixture(scope="module")
def raw():
    return load_mnist(raw=True)


@pytest.fixture
def own(tmp_path):
    """Write a small data set of one's own: 5 training and 3 test images."""
    for split, count in (("train", 5), ("t10k", 3)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    return tmp_path


def test_counts_types_and_first_labels(mnist):
    (x_train, y_train), (x_test, y_test) = mnist
    assert x_train.shape == (60_000, 784) and x_test.shape == (10_000, 784)
    assert y_train.shape == (60_000,) and y_test.shape == (10_000,)
    assert x_train.dtype == x_test.dtype == np.float32
    assert y_train.dtype == y_test.dtype == np.int64
    assert y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_pixels_are_the_nearest_float32_to_pixel_over_255(mnist, raw):
    (x_train, _), (x_test, _) = mnist
    (raw_train, y_train), (raw_test, _) = raw
    assert raw_train.dtype == raw_test.dtype == np.uint8
    assert y_train.dtype == np.int64
    nearest = (np.arange(256) / 255).astype(np.float32)
    assert np.array_equal(x_train, nearest[raw_train])
    assert np.array_equal(x_test, nearest[raw_test])
    assert x_train.min() == 0.0 and x_train.max() == 1.0
    assert round(float(x_train.mean(dtype=np.float64)), 4) == 0.1307


def test_arrays_are_the_callers_own(mnist):
    for x, y in mnist:
        assert x.flags.c_contiguous and x.flags.writeable
        assert y.flags.c_contiguous and y.flags.writeable


@pytest.mark.parametrize("name", sorted(MD5))
def test_shipped_files_are_the_published_ones(name):
    with resources.as_file(resources.files("fastmlp.datasets") / "mnist-idx" / f"{name}.gz") as path:
        content = gzip.decompress(path.read_bytes())
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5[name]
    assert hashlib.sha256(content).hexdigest() == module._SHA256[name]


def test_the_notice_is_shipped_and_names_each_file():
    notice = (resources.files("fastmlp.datasets") / "mnist-idx" / "NOTICE.md").read_text(encoding="utf-8")
    for name in MD5:
        assert MD5[name] in notice and module._SHA256[name] in notice
    assert "Attribution-ShareAlike 3.0" in notice and "LeCun" in notice and "Cortes" in notice


def test_an_altered_shipped_file_is_refused(tmp_path):
    with resources.as_file(resources.files("fastmlp.datasets") / "mnist-idx") as shipped:
        for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
            shutil.copy(shipped / name, tmp_path / name)
    labels = read_idx(tmp_path / "t10k-labels-idx1-ubyte.gz")
    labels[17] = (labels[17] + 1) % 10
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()  # copied read-only
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels)
    expected = module._SHA256["t10k-labels-idx1-ubyte"]
    with pytest.raises(FileFormatError, match=f"expected sha256 {expected}, got [0-9a-f]{{64}}; .* altered"):
        module._split(tmp_path, "t10k", raw=True, check=True)


def test_own_files_are_read_gzipped_or_not(own):
    (x_train, y_train), (x_test, y_test) = load_mnist(folder=own, raw=True)
    assert x_train.shape == (5, 784) and x_test.shape == (3, 784)
    assert y_train.tolist() == [0, 1, 2, 3, 4] and y_test.tolist() == [0, 1, 2]
    assert np.array_equal(x_train, read_idx(own / "train-images-idx3-ubyte.gz").reshape(5, 784))
    (scaled, _), _ = load_mnist(folder=str(own))
    assert scaled.dtype == np.float32 and np.array_equal(scaled, (x_train / 255).astype(np.float32))


def test_a_missing_file_is_named(own):
    (own / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a file t10k-labels-idx1-ubyte or .*\.gz"):
        load_mnist(folder=own)


def test_labels_in_the_place_of_images_are_refused(own):
    write_idx(own / "train-images-idx3-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(FileFormatError, match=r"magic number 2051 \(uint8, rank 3\), got .* 2049 \(uint8, rank 1\)"):
        load_mnist(folder=own)


def test_images_in_the_place_of_labels_are_refused(own):
    write_idx(own / "t10k-labels-idx1-ubyte", np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(FileFormatError, match=r"magic number 2049 .*, got .* 2051"):
        load_mnist(folder=own)


def test_fewer_labels_than_images_are_refused(own):
    write_idx(own / "train-labels-idx1-ubyte", np.zeros(4, np.uint8))
    with pytest.raises(DataError, match=r"got 5 images in train-images.* and 4 labels in train-labels"):
        load_mnist(folder=own)


def test_images_of_another_size_are_refused(own):
    write_idx(own / "train-images-idx3-ubyte.gz", np.zeros((5, 32, 30), np.uint8))
    with pytest.raises(DataError, match="expected images of 28x28 pixels, got 32x30"):
        load_mnist(folder=own)


def test_a_label_above_9_is_refused_with_its_place(own):
    write_idx(own / "t10k-labels-idx1-ubyte", np.array([1, 10, 200], np.uint8))
    with pytest.raises(DataError, match="expected labels from 0 to 9, got 10 at index 1"):
        load_mnist(folder=own)


def test_importing_the_datasets_imports_nothing_heavy():
    heavy = "('sklearn', 'matplotlib', 'numba', 'cupy', 'torch')"
    code = f"import sys, fastmlp.datasets; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "spelled",
    ["{}.idx{}-ubyte", "{}.idx{}-ubyte.gz", "{0}-idx{1}-ubyte/{0}-idx{1}-ubyte", "{0}-idx{1}-ubyte/{0}.idx{1}-ubyte"],
)
def test_other_spellings_of_the_four_names_will_do(own, tmp_path, spelled):
    expected, folder = load_mnist(folder=own, raw=True), tmp_path / "kaggle"
    for file in [*own.iterdir()]:
        if file.is_file():
            stem, rank = file.name.split("-idx")[0], file.name.split("-idx")[1][0]
            there = folder / spelled.format(stem, rank)
            there.parent.mkdir(parents=True, exist_ok=True)
            write_idx(there, read_idx(file))
    found = load_mnist(folder=folder, raw=True)
    for (x, y), (a, b) in zip(found, expected, strict=True):
        assert np.array_equal(x, a) and np.array_equal(y, b)
