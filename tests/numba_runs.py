"""Networks that the Numba backend trains on so many threads, for tests of what threads do."""

import numpy as np

import fastmlp


def backend(threads, products="auto"):
    return fastmlp.get_backend("numba", threads=threads, products=products)


def trained(threads, *, rows=230, units=(7, 12, 9, 4), epochs=2, batch_size=32, seed=0, products="auto", **options):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(rows, units[0])), rng.integers(0, units[-1], rows)
    optimizer = options.pop("optimizer", fastmlp.Adam(1e-2, clip_norm=1.0, ema=0.9, weight_decay=1e-3))
    options = {"activation": "tanh", "dropout": 0.2, "l2": 1e-3, "max_norm": 1.5, "dtype": "float64", **options}
    model = fastmlp.MLP(units, backend=backend(threads, products), seed=seed, **options)
    model.fit(x, y, epochs=epochs, batch_size=batch_size, optimizer=optimizer, verbose=0)
    return [*model.get_weights(), model.predict_proba(x)]
