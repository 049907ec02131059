"""Which rows `validation_split` holds out: drawn by the seed, of each class alike, and of one class each some train."""

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits

import fastmlp
from fastmlp.engine.batches import split_rows


def test_rows_sorted_by_class_are_held_out_of_each_class(backend):
    x, y = blobs()
    by_class = y.argsort(kind="stable")
    history = small(backend).fit(
        x[by_class], y[by_class], epochs=20, optimizer=fastmlp.Adam(0.01), validation_split=0.3, verbose=0
    )
    assert history.history["val_accuracy"][-1] > 0.9


def test_a_split_trains_to_the_same_bits_as_the_same_rows_given(backend):
    x, y = blobs()
    weights = np.linspace(0.5, 1.5, len(x)).astype(np.float32)
    split, given = small(backend), small(backend)
    parts = split_rows(len(x), 0.25, split.seed, y)
    options = {"epochs": 2, "batch_size": 32, "metrics": ["balanced_accuracy_score"], "verbose": 0}
    a = split.fit(x, y, sample_weight=weights, validation_split=0.25, **options)
    train, held = ([array[rows] for array in (x, y, weights)] for rows in parts)
    b = given.fit(*train[:2], sample_weight=train[2], validation_data=tuple(held), **options)
    for name in ("loss", "val_loss", "balanced_accuracy_score", "val_balanced_accuracy_score"):
        assert a.history[name] == b.history[name]
    assert_same_bits(split.get_weights()[0], given.get_weights()[0])


def test_the_row_of_a_loss_that_is_not_finite_is_that_of_the_users_data():
    x, y = blobs()
    model = small("numpy")
    row = split_rows(len(x), 0.5, model.seed, y).train[60]
    x[row] = np.finfo(np.float32).max
    with pytest.raises(fastmlp.NonFiniteLossError) as caught:
        model.fit(x, y, epochs=1, validation_split=0.5, verbose=0)
    assert caught.value.row == row


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_class_gives_its_share_and_keeps_a_row(fraction, seed):
    labels = np.repeat(np.arange(5), [1, 2, 10, 100, 400])
    train, held_out = split_rows(len(labels), fraction, seed, labels)
    assert sorted([*train, *held_out]) == list(range(len(labels)))
    assert len(held_out) == round(fraction * len(labels))
    assert (np.diff(train) > 0).all() and (np.diff(held_out) > 0).all()
    counts = np.bincount(labels[held_out], minlength=5)
    assert (np.abs(counts - fraction * np.bincount(labels)) <= 2.5).all()
    assert set(labels[train]) == set(range(5))


def test_the_split_follows_from_the_seed_alone():
    labels = np.arange(100) % 3
    first, again, other = (split_rows(100, 0.2, seed, labels).held_out for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert split_rows(100, 0.2, 0, None).held_out.tolist() != list(range(80, 100))


def test_more_classes_than_rows_to_keep_are_split_all_the_same():
    train, held_out = split_rows(10, 0.5, 0, np.arange(10))
    assert len(train) == len(held_out) == 5
