"""The MNIST digits: the four files shipped with the package, or a user's own in the same format."""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmlp.arguments import check_flag, check_path
from fastmlp.datasets.idx import idx_header, read_idx
from fastmlp.errors import DataError, FileFormatError
from fastmlp.floating import quiet

_IMAGES, _LABELS = 2051, 2049  # the magic numbers
_SHA256 = {  # of the uncompressed files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

_Split: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]


@quiet
def load_mnist(*, raw: bool = False, folder: str | os.PathLike[str] | None = None) -> tuple[_Split, _Split]:
    """Load the 60,000 training and 10,000 test images of handwritten digits.

    Parameters
    ----------
    raw : bool
        Give the pixels as they are in the files, uint8 from 0 (paper) to 255 (ink), a quarter of the memory.
    folder : path, optional
        A folder with four files of one's own, ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, gzipped (``.gz``) or not, with any number
        of 28x28 images and labels from 0 to 9 (Fashion-MNIST, for one). ``train-images.idx3-ubyte`` and its
        like will do too, and each may lie in a folder of its own name, as Kaggle has them. The files of the
        package are checked against their checksums; these cannot be.

    Returns
    -------
    train, test : tuple of ndarray
        Each is ``(x, y)``. x : (n, 784) float32, ``pixel / 255`` (the nearest float32) or, with `raw`, uint8.
        y : (n,) int64 labels, with `raw` too.

    Raises
    ------
    FileNotFoundError
        Where `folder` lacks a file.
    FileFormatError
        Where a file is not what its name says, or a file of the package was altered.
    DataError
        Where images and labels differ in number, images are not 28x28 or labels not from 0 to 9.
    """
    raw = check_flag("raw", raw)
    if folder is not None:
        folder = check_path("folder", folder)
        return _split(Path(folder), "train", raw), _split(Path(folder), "t10k", raw)
    with resources.as_file(resources.files("fastmlp.datasets") / "mnist-idx") as shipped:
        return _split(shipped, "train", raw, check=True), _split(shipped, "t10k", raw, check=True)


def _split(folder: Path, name: str, raw: bool, check: bool = False) -> _Split:
    image_file, images = _read(folder, f"{name}-images-idx3-ubyte", _IMAGES, check)
    label_file, labels = _read(folder, f"{name}-labels-idx1-ubyte", _LABELS, check)
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: expected a label for each image, got {len(images)} images in {image_file.name} and "
            f"{len(labels)} labels in {label_file.name}"
        )
    if images.shape[1:] != (28, 28):
        raise DataError(
            f"{image_file}: expected images of 28x28 pixels, got {images.shape[1]}x{images.shape[2]}; "
            "read_idx reads any size"
        )
    if (wrong := np.flatnonzero(labels > 9)).size:
        raise DataError(
            f"{label_file}: expected labels from 0 to 9, got {labels[wrong[0]]} at index {wrong[0]}; "
            "read_idx reads any label"
        )
    pixels = images.reshape(len(images), 784)
    x = pixels if raw else np.divide(pixels, np.float32(255), dtype=np.float32)
    return x, labels.astype(np.int64)


def _read(folder: Path, name: str, magic: int, check: bool) -> tuple[Path, npt.NDArray[np.uint8]]:
    dotted = name.replace("-idx", ".idx")
    spellings = [name, f"{name}.gz", dotted, f"{dotted}.gz"]
    candidates = [folder / inner / file for inner in ("", name, dotted) for file in spellings]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: expected a file {name} or {name}.gz, or one named {dotted}; found none")
    array = read_idx(path, expected_magic=magic)
    if check:
        # read_idx lets no byte through but the header and the elements, so these are the file's
        digest = hashlib.sha256(idx_header(array))
        digest.update(array.data)
        if digest.hexdigest() != _SHA256[name]:
            raise FileFormatError(
                f"{path}: expected sha256 {_SHA256[name]}, got {digest.hexdigest()}; the file was altered: "
                "install fastmlp again"
            )
    return path, array
