# %% [markdown]
# # Manual neural networks
#
# A lecture's line of thought, run: where a linear hypothesis ends, three kinds of features that take it further, the
# gradient of a two-layer network in two formulas, and why one hidden layer is enough for any smooth function.  Rows
# are examples from here on.

# %%
import argparse
import sys
from pathlib import Path

import numpy as np

import fastmlp
from fastmlp import MLP, plots
from fastmlp.approximation import relu_interpolant
from fastmlp.features import RandomFourierFeatures

parser = argparse.ArgumentParser(description="The lecture on manual neural networks, on fastmlp.")
parser.add_argument("--backend", default="auto", help="numpy, numba, cupy or auto")
parser.add_argument("--out", type=Path, default=Path("runs/lecture"), help="folder for the pictures")
parser.add_argument("--epochs", type=int, default=50, help="on the ring; a tenth of it on MNIST")
parser.add_argument("--rows", type=int, default=60000, help="of MNIST's training images")
parser.add_argument("--features", type=int, default=2000, help="random Fourier features on MNIST")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
backend = fastmlp.get_backend(args.backend)
print(backend)

# %% [markdown]
# ## Features: none, by hand, random, learned
# A linear hypothesis cuts the plane along a straight line, and no straight line cuts a ring from its middle.  With
# phi(x) = x1^2 + x2^2, written down by someone who knows the answer, one cut is enough; so it is with the cosines of
# a fixed random projection, and with layers that learn, and nobody needs to know.

# %%
rng = np.random.default_rng(0)
y = np.arange(400) % 2
radius, angle = np.where(y, rng.uniform(1.2, 2, 400), np.sqrt(rng.uniform(0, 1, 400))), rng.uniform(0, 2 * np.pi, 400)
x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def by_hand(x):
    return (x**2).sum(axis=1, keepdims=True)


fourier = RandomFourierFeatures(200, gamma=0.5, random_state=0).fit(x)
models = {
    "linear": (MLP((2, 2), backend=backend, seed=0), lambda x: x),
    "by hand: x1² + x2²": (MLP((1, 2), backend=backend, seed=0), by_hand),
    "200 random Fourier features": (fourier.network((2,), backend=backend, seed=0), lambda x: x),
    "learned: 2-32-2": (MLP((2, 32, 2), backend=backend, seed=0), lambda x: x),
}
axes = plots.panels(1, 4, width=2.8, height=3.25)
for ax, (name, (model, phi)) in zip(axes, models.items(), strict=True):
    model.fit(phi(x), y, epochs=args.epochs, batch_size=32, optimizer=fastmlp.Adam(1e-2), verbose=0)
    title = f"{name}\n{100 * model.evaluate(phi(x), y)['accuracy']:.1f} % right"
    plots.regions(lambda grid, model=model, phi=phi: model.predict_proba(phi(grid)), x, y, title=title, ax=ax)
plots.save_both(axes, args.out / "features")

# %% [markdown]
# On real data nobody writes the feature down.  The same two linear models on MNIST, the projection a frozen first
# layer:

# %%
(digits, labels), test = fastmlp.datasets.load_mnist()
digits, labels = digits[: args.rows], labels[: args.rows]
fourier = RandomFourierFeatures(args.features, random_state=0).fit(digits)
epochs, accuracies = max(args.epochs // 10, 1), {}
for name, model in {
    "linear": MLP((784, 10), backend=backend, seed=0),
    f"{args.features} random Fourier features": fourier.network((10,), backend=backend, seed=0),
}.items():
    history = model.fit(digits, labels, epochs=epochs, validation_data=test, verbose=0).history
    accuracies[name] = 100 * np.array(history["val_accuracy"])
    print(f"{name}: test accuracy {accuracies[name][-1]:.2f} %")
model.summary()
plots.save_both(plots.lines(accuracies, ylabel="test accuracy (%)"), args.out / "mnist-features")

# %% [markdown]
# ## The gradient of a two-layer network
# dW2 = sigma(X W1)^T (S - I_y) and dW1 = X^T (sigma'(X W1) * ((S - I_y) W2^T)), S the softmax, I_y one-hot.  The
# lecture sums over the rows where fastmlp takes the mean, so they differ by the factor m.  Both need sigma(X W1)
# again: every layer's values are kept until its gradient is taken, and the last line of the summary above says what
# that costs.  Every hand gradient is checked numerically: `gradcheck` gives the relative error for each array.

# %%
m = 100
W1, W2 = rng.normal(size=(2, 16)), rng.normal(size=(16, 2))
X, one_hot = x[:m], np.eye(2)[y[:m]]
H = np.tanh(X @ W1)
S = np.exp(H @ W2) / np.exp(H @ W2).sum(axis=1, keepdims=True)
dW2 = H.T @ (S - one_hot)
dW1 = X.T @ ((1 - H**2) * ((S - one_hot) @ W2.T))

model = MLP((2, 16, 2), activation="tanh", dtype="float64", backend=backend, seed=0)
model.set_weights([W1, np.zeros(16), W2, np.zeros(2)])
loss, (got_dW1, _, got_dW2, _) = model.loss_and_gradients(X, y[:m])
print(f"largest difference: dW1 {np.abs(m * got_dW1 - dW1).max():.1e}, dW2 {np.abs(m * got_dW2 - dW2).max():.1e}")
print("gradcheck:", {name: f"{error:.1e}" for name, error in fastmlp.gradcheck(model, X, y[:m]).items()})

# %% [markdown]
# ## One hidden layer is enough
# The universal approximation theorem by construction: sample a smooth function, and let one rectifier bend the line
# at each sample.  No training; the network goes through all points and is linear between them.

# %%
low, high = 0.0, 3.0


def f(t):
    return np.sin(2 * t) + 0.4 * np.cos(7 * t)


curvature = 4 + 0.4 * 49  # |f''| is below it
axes = plots.panels(1, 4, width=3.0, height=2.6)
for ax, n in zip(axes, (4, 8, 16, 32), strict=True):
    samples = np.linspace(low, high, n)
    model = relu_interpolant(samples, f(samples), backend=backend)
    plots.approximation(f, model, (low, high), (samples, f(samples)), legend=n == 4, ax=ax)
    ax.set_title(f"{n} points: {ax.get_title()}", fontsize="medium")
plots.save_both(axes, args.out / "interpolant")

# %% [markdown]
# Between two samples a distance h apart the error is at most h^2 / 8 max |f''|: each doubling of n divides it by
# four, so any epsilon is reached.

# %%
counts, t = 2 ** np.arange(2, 11), np.linspace(low, high, 20001)
errors, bounds = [], []
for n in counts:
    samples = np.linspace(low, high, n)
    errors.append(np.abs(relu_interpolant(samples, f(samples), backend=backend).predict(t[:, None]) - f(t)).max())
    bounds.append((samples[1] - samples[0]) ** 2 / 8 * curvature)
    print(f"{n:5d} points: error {errors[-1]:.2e}, bound {bounds[-1]:.2e}")
ax = plots.lines(
    {"largest error": (counts, errors), "bound: h² / 8 · max |f″|": (counts, bounds)},
    xlabel="points",
    ylabel="difference",
    xscale="log",
    yscale="log",
)
plots.save_both(ax, args.out / "error")
