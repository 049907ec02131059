"""A whole multi-layer perceptron in loops: forward, backward, training steps; built on `oracle`."""

from __future__ import annotations

import math

import oracle


class Network:
    """The numbers of a network as nested lists, and the slow form of everything that trains them.

    Parameters
    ----------
    spec : fastmlp.NetworkSpec
    weights : list of (w, b)
        Nested lists of floats, not changed.
    optimizer : Optimizer record or None
    key : int
    """

    def __init__(self, spec, weights, optimizer=None, key=0):
        self.spec, self.optimizer, self.key = spec, optimizer, key
        self.weights = [([list(row) for row in w], list(b)) for w, b in weights]
        self.average = [([list(row) for row in w], list(b)) for w, b in weights]
        self.step = 0
        if optimizer is not None:
            self.updates = [
                (
                    [[oracle.optimizer_step(optimizer) for _ in row] for row in w],
                    [oracle.optimizer_step(optimizer) for _ in b],
                )
                for w, b in weights
            ]

    def _drop(self, rows, layer, training):
        """Return the dropout factors of the inputs of a layer."""
        rate = self.spec.dropout[layer] if training and layer < self.spec.layers else 0.0
        if not rate:
            return [[1.0] * len(row) for row in rows]
        return [
            [oracle.dropout_factor(rate, self.key, self.step, layer, i, j) for j in range(len(row))]
            for i, row in enumerate(rows)
        ]

    def forward(self, x, training=False):
        """Return the inputs of each layer and the outputs, [x, a1, ..., outputs], and the slope of each of these."""
        factors = self._drop(x, 0, training)
        a = [[v * f for v, f in zip(r, fr, strict=True)] for r, fr in zip(x, factors, strict=True)]
        activations, slopes = [a], []
        for layer, (w, b) in enumerate(self.weights):
            value, slope = oracle.ACTIVATIONS[self.spec.activations[layer]]
            z = [[math.fsum([row[i] * w[i][j] for i in range(len(w))] + [b[j]]) for j in range(len(b))] for row in a]
            factors = self._drop(z, layer + 1, training)
            a = [[value(v) * f for v, f in zip(r, fr, strict=True)] for r, fr in zip(z, factors, strict=True)]
            slopes.append(
                [[slope(v) * f for v, f in zip(r, fr, strict=True)] for r, fr in zip(z, factors, strict=True)]
            )
            activations.append(a)
        return activations, slopes

    def losses(self, x, y):
        """Return the loss of each row, without dropout and L2, and whether it was predicted rightly."""
        outputs = self.forward(x)[0][-1]
        loss = self.spec.loss
        rows = [oracle.LOSSES[loss.name](loss, z, t)[0] for z, t in zip(outputs, y, strict=True)]
        return rows, [oracle.hit(loss.name, z, t) for z, t in zip(outputs, y, strict=True)]

    def loss_and_gradients(self, x, y, row_weights, training=False):
        """Return (loss without L2 summed with weights, hits summed with weights, gradients with L2 of all layers)."""
        loss, total = self.spec.loss, math.fsum(row_weights)
        l2 = self.spec.l2 / total if self.spec.l2_over_rows else self.spec.l2
        activations, slopes = self.forward(x, training)
        pairs = [oracle.LOSSES[loss.name](loss, z, t) for z, t in zip(activations[-1], y, strict=True)]
        hits = [oracle.hit(loss.name, z, t) for z, t in zip(activations[-1], y, strict=True)]
        d = [[wt / total * g for g in pair[1]] for wt, pair in zip(row_weights, pairs, strict=True)]
        gradients = []
        for layer in reversed(range(self.spec.layers)):
            w, _ = self.weights[layer]
            dz = [[u * v for u, v in zip(r, s, strict=True)] for r, s in zip(d, slopes[layer], strict=True)]
            below = activations[layer]
            rows, outputs = range(len(x)), range(len(w[0]))
            dw = [
                [math.fsum(below[n][i] * dz[n][j] for n in rows) + l2 * w[i][j] for j in outputs] for i in range(len(w))
            ]
            db = [math.fsum(dz[n][j] for n in rows) for j in outputs]
            d = [[math.fsum(dz[n][j] * w[i][j] for j in outputs) for i in range(len(w))] for n in rows]
            gradients.insert(0, (dw, db))
        weighted_loss = math.fsum(wt * pair[0] for wt, pair in zip(row_weights, pairs, strict=True))
        weighted_hits = math.fsum(wt * h for wt, h in zip(row_weights, hits, strict=True))
        return weighted_loss, weighted_hits, gradients

    def l2_penalty(self, total):
        l2 = self.spec.l2 / total if self.spec.l2_over_rows else self.spec.l2
        return 0.5 * l2 * math.fsum(v * v for w, _ in self.weights for row in w for v in row)

    def train_step(self, x, y, row_weights, rate, t):
        """Train on one batch, `t` counting the optimizer's steps from 1; return the sums that `train_steps` adds."""
        total = math.fsum(row_weights)
        if total == 0:
            self.step += 1
            return 0.0, 0.0, 0.0
        loss, hits, gradients = self.loss_and_gradients(x, y, row_weights, training=True)
        gradients = self._clipped(gradients)
        for layer, (w, b) in enumerate(self.weights):
            if self.spec.frozen[layer]:
                continue
            (dw, db), (uw, ub) = gradients[layer], self.updates[layer]
            for i, row in enumerate(w):
                for j in range(len(row)):
                    row[j] = uw[i][j](row[j], dw[i][j], rate, t, True)
            for j in range(len(b)):
                b[j] = ub[j](b[j], db[j], rate, t, False)
            if self.spec.max_norm is not None:
                w[:] = oracle.max_norm(w, self.spec.max_norm)
            if self.optimizer.ema is not None:
                self._move_average(layer, oracle.average_decay(self.optimizer.ema, t))
        self.step += 1
        return loss, total, hits

    def _clipped(self, gradients):
        if self.optimizer.clip_norm is None:
            return gradients
        trained = [g for g, still in zip(gradients, self.spec.frozen, strict=True) if not still]
        flat = [v for dw, db in trained for v in [*(v for row in dw for v in row), *db]]
        values = iter(oracle.clip(flat, self.optimizer.clip_norm))
        return [
            g if still else ([[next(values) for _ in row] for row in g[0]], [next(values) for _ in g[1]])
            for g, still in zip(gradients, self.spec.frozen, strict=True)
        ]

    def _move_average(self, layer, decay):
        (w, b), (mean_w, mean_b) = self.weights[layer], self.average[layer]
        for means, values in [*zip(mean_w, w, strict=True), (mean_b, b)]:
            for j, value in enumerate(values):
                means[j] = decay * means[j] + (1 - decay) * value
