"""A problem that any network learns, and a small network for it."""

import numpy as np

import fastmlp


def blobs(rows=200, features=6, classes=3, seed=0):
    """Return separable clusters: x (rows, features) float32, labels (rows,)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    centres = 3 * rng.normal(size=(classes, features))
    return (centres[y] + rng.normal(size=(rows, features))).astype(np.float32), y


def small(backend, **options):
    return fastmlp.MLP((6, 8, 3), backend=backend, seed=1, **options)
