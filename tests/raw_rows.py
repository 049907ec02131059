"""Raw rows as people have them: numbers in units of their own, gaps, words and booleans."""

import numpy as np

KINDS = ["standard", "robust", "quantile"]
QUICK = {"epochs": 5, "learning_rate_init": 0.01, "random_state": 0, "backend": "numpy", "hidden_layer_sizes": 6}
DRAW = np.random.default_rng(0)
ROWS = 120
NUMBERS = DRAW.normal([3, -50, 1e4], [1, 20, 0.5], (ROWS, 3))
Y = (NUMBERS[:, 0] + DRAW.normal(size=ROWS) > 3).astype(int)
GAPS = NUMBERS.copy()
GAPS[::7, 1] = np.nan
MIXED = np.empty((ROWS, 5), dtype=object)
MIXED[:, [0, 2, 3]] = GAPS
MIXED[:, 1] = DRAW.choice(["red", "green", "blue"], ROWS)
MIXED[:, 4] = DRAW.choice([True, False], ROWS)
MIXED[::11, 1] = None
WORDS = [1, 4]
