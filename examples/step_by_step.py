# %% [markdown]
# # A deep network, step by step
#
# The course notebook builds a network function by function: forward, cost, backward, update.  Its code runs here with
# one import changed, on the operations that every fastmlp network runs on, so it can be watched at work and then be
# left to `fastmlp.MLP`.  In this notebook *columns* are examples.

# %%
import argparse
import sys
import time
from pathlib import Path

import numpy as np

import fastmlp
from fastmlp import plots
from fastmlp.stepbystep import (
    L_layer_model,
    L_model_backward,
    L_model_forward,
    accuracy,
    compute_cost,
    initialize_parameters_deep,
    linear_activation_forward,
    linear_forward,
    two_layer_model,
    update_parameters,
)

parser = argparse.ArgumentParser(description="The step-by-step notebook on fastmlp.")
parser.add_argument("--backend", default="auto", help="numpy, numba, cupy or auto")
parser.add_argument("--out", type=Path, default=Path("runs/step_by_step"), help="folder for the pictures")
parser.add_argument("--iterations", type=int, default=3000, help="steps of gradient descent")
parser.add_argument("--examples", type=int, default=400, help="points of the two spirals")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
backend = fastmlp.get_backend(args.backend)
print(backend)

# %% [markdown]
# ## The numbers of the notebook
# To the digits that it prints.

# %%
np.random.seed(1)
A, W, b = np.random.randn(3, 2), np.random.randn(1, 3), np.random.randn(1, 1)
Z, linear_cache = linear_forward(A, W, b)
print("Z =", Z)

np.random.seed(2)
A_prev, W, b = np.random.randn(3, 2), np.random.randn(1, 3), np.random.randn(1, 1)
print("With sigmoid: A =", linear_activation_forward(A_prev, W, b, activation="sigmoid")[0])
print("With ReLU: A =", linear_activation_forward(A_prev, W, b, activation="relu")[0])
print("cost =", compute_cost(np.array([[0.8, 0.9, 0.4]]), np.array([[1, 1, 0]])))

# %% [markdown]
# Where a probability is exactly 1 and right, the notebook's cost is 0 log 0, which NumPy calls NaN, and its gradient is
# 0 / 0.  A sigmoid gets there from 37 on.  Here the one is 0 and the other AL - Y.

# %%
AL, cache = linear_activation_forward(np.array([[40.0]]), np.ones((1, 1)), np.zeros((1, 1)), "sigmoid")
print("AL =", AL, "cost =", compute_cost(AL, np.array([[1]])))
print("wrong:", {name: g.item() for name, g in L_model_backward(AL, np.array([[0]]), [cache]).items()})

# %% [markdown]
# ## Two spirals
# A problem that no straight line solves.  `X` is (2, m), `Y` (1, m).


# %%
def spirals(m, turns=1.75, noise=0.03, seed=0):
    """Return points (2, m) on two spirals, one within the other, and which one each is on (1, m)."""
    rng = np.random.default_rng(seed)
    which = np.arange(m) % 2
    radius = np.sqrt(rng.uniform(0.01, 1, m))
    angle = np.pi * (2 * turns * radius + which)
    return radius * np.stack([np.cos(angle), np.sin(angle)]) + rng.normal(scale=noise, size=(2, m)), which[None]


points, labels = spirals(args.examples)
X, Y = backend.asarray(points), backend.asarray(labels)

# %% [markdown]
# ## Forward, cost, backward, update
# The loop that the notebook leads up to.  On its way the backward pass is held against a central difference: a
# gradient that was never checked is a guess.

# %%
layers_dims, learning_rate, step = (2, 32, 32, 1), 0.5, 1e-6
start = initialize_parameters_deep(layers_dims, seed=1, scale=None)
parameters = {name: backend.asarray(array) for name, array in start.items()}

AL, caches = L_model_forward(X, parameters)
dW1 = backend.to_numpy(L_model_backward(AL, Y, caches)["dW1"])
sides = []
for h in (step, -step):
    moved = start["W1"].copy()
    moved[0, 0] += h
    sides.append(compute_cost(L_model_forward(X, parameters | {"W1": backend.asarray(moved)})[0], Y))
print(f"dW1[0, 0] by backward {dW1[0, 0]:.9f}, by differences {(sides[0] - sides[1]) / (2 * step):.9f}")


# %%
def classifier(parameters):
    """Return the network as a function from points (n, 2) to probabilities (n, 1)."""
    return lambda grid: backend.to_numpy(L_model_forward(backend.asarray(grid.T), parameters)[0]).T


stops = [round(args.iterations * part) for part in (0, 0.03, 0.1, 0.25, 1)]
axes = plots.panels(1, len(stops), width=2.4, height=2.7)
for iteration in range(args.iterations + 1):
    if iteration in stops:
        title = f"step {iteration}: {100 * accuracy(X, Y, parameters):.1f} % right"
        plots.regions(classifier(parameters), points.T, labels[0], title=title, ax=axes[stops.index(iteration)])
    AL, caches = L_model_forward(X, parameters)
    grads = L_model_backward(AL, Y, caches)
    parameters = update_parameters(parameters, grads, learning_rate)
plots.save_both(axes, args.out / "regions")

# %% [markdown]
# ## The sequel: two layers and more
# The notebook's weights of size 0.01 get off the ground slowly, and through more layers not at all: each passes on a
# small part of the signal.  So `L_layer_model` divides by the square root of the number of inputs instead.

# %%
two, two_costs = two_layer_model(X, Y, (2, 32, 1), learning_rate, args.iterations)
deep, deep_costs = L_layer_model(X, Y, layers_dims, learning_rate, args.iterations)
print(f"accuracy with two layers {accuracy(X, Y, two):.3f}, with three {accuracy(X, Y, deep):.3f}")
iterations = 100 * np.arange(len(deep_costs))
ax = plots.lines(
    {"two layers: 2-32-1": (iterations, two_costs), "three layers: 2-32-32-1": (iterations, deep_costs)},
    xlabel="iteration",
    ylabel="cost (nats)",
    yscale="log",
)
plots.save_both(ax, args.out / "costs")

# %% [markdown]
# ## The same network, left to the library
# `fastmlp.MLP` with the same weights, all data as one batch and plain gradient descent takes the same steps.  Rows
# are examples there, so what it is given is transposed.


# %%
def as_model(parameters):
    """Return the network as `fastmlp.MLP`."""
    model = fastmlp.MLP(layers_dims, loss="sigmoid_cross_entropy", dtype="float64", backend=backend, seed=0)
    model.set_weights([array.T if name[0] == "W" else array[:, 0] for name, array in parameters.items()])
    return model


model = as_model(start)
descent = fastmlp.SGD(learning_rate)
history = model.fit(
    points.T, labels[0], epochs=args.iterations, batch_size=args.examples, optimizer=descent, verbose=0
).history
difference = np.abs(np.array(history["loss"][::100]) - deep_costs).max()
print(f"{args.iterations} steps: the costs differ by {difference:.1e} at most")

# %% [markdown]
# Networks are trained on small batches, and there it shows what a step costs besides its arithmetic.

# %%
batch, model = 32, as_model(start)
x, y = np.tile(points.T, (25, 1)), np.tile(labels[0], 25)
model.fit(x[:batch], y[:batch], epochs=1, batch_size=batch, optimizer=descent, verbose=0)  # compiles, where it must
began = time.perf_counter()
model.fit(x, y, epochs=1, batch_size=batch, optimizer=descent, verbose=0)
per_step = (time.perf_counter() - began) / -(-len(x) // batch)

parameters = {name: backend.asarray(array) for name, array in start.items()}
began = time.perf_counter()
for _ in range(100):
    AL, caches = L_model_forward(X[:, :batch], parameters)
    parameters = update_parameters(parameters, L_model_backward(AL, Y[:, :batch], caches), learning_rate)
backend.synchronize()
by_hand = (time.perf_counter() - began) / 100
print(f"a step on {batch} examples: {1e6 * by_hand:.0f} us by hand, {1e6 * per_step:.0f} us in MLP.fit")

# %% [markdown]
# And so one would train it today: Adam, small batches, single precision.

# %%
model = fastmlp.MLP(layers_dims, loss="sigmoid_cross_entropy", backend=backend, seed=0)
epochs = max(args.iterations // 20, 1)
model.fit(points.T, labels[0], epochs=epochs, batch_size=batch, optimizer=fastmlp.Adam(5e-3), verbose=0)
print(f"after {epochs} epochs of Adam:", model.evaluate(points.T, labels[0]))
