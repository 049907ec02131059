# %% [markdown]
# # A network in NumPy, as an article built it
#
# The article's forward pass to the digits that it prints, its training run on MNIST with its own choices, and the
# same network with today's defaults beside it.

# %%
import argparse
import sys
from pathlib import Path

import numpy as np

import fastmlp
from fastmlp import MLP, plots

parser = argparse.ArgumentParser(description="The article's network on fastmlp.")
parser.add_argument("--backend", default="auto", help="numpy, numba, cupy or auto")
parser.add_argument("--out", type=Path, default=Path("runs/article"), help="folder for the pictures")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--rows", type=int, default=60000, help="of the training images")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
backend = fastmlp.get_backend(args.backend)
print(backend)

# %% [markdown]
# ## The forward pass
# One row of two integers through 2-4-2; the bias is the scalar 1 in both layers.
#
# The article's first "sigmoid" is e^-x / (1 + e^-x): that is sigma(-x), mirrored.  So its numbers come out of the
# library when the weights and the bias before it change their signs.

# %%
np.random.seed(1)
x = np.random.randint(-10, 10, (1, 2))
np.random.seed(2)
W1 = np.random.random((2, 4))
np.random.seed(3)
W2 = np.random.random((4, 2))

first = MLP((2, 4), activation=["sigmoid"], loss="mean_squared_error", dtype="float64", backend=backend, seed=0)
both = MLP((2, 4, 2), activation="sigmoid", dtype="float64", backend=backend, seed=0)
for name, sign in (("as printed, sigma(-z)", -1), ("as meant, sigma(z)", 1)):
    first.set_weights([sign * W1, sign * np.ones(4)])
    both.set_weights([sign * W1, sign * np.ones(4), W2, np.ones(2)])
    print(f"{name}: hidden = {first.predict(x)}, output = {both.predict_proba(x)}")

# %% [markdown]
# Its softmax subtracts the maximum of the whole array: one large row, and every other underflows to 0 / 0.  Each row
# has a maximum of its own.

# %%
logits = np.array([[1000.0, 1001.0], [0.0, 1.0]])
with np.errstate(invalid="ignore"):
    e = np.exp(logits - logits.max())
    print("as the article does it:", *(e / e.sum(axis=1, keepdims=True)))
print("row by row:", *fastmlp.SoftmaxCrossEntropy().probabilities(logits))

# %% [markdown]
# Its derivative of the mean squared error is turned round too, which would climb.  A gradient that has been checked
# cannot be:

# %%
model = MLP((2, 4, 1), activation="sigmoid", loss="mean_squared_error", backend=backend, seed=0)
errors = fastmlp.gradcheck(model, np.random.normal(size=(8, 2)), np.random.normal(size=8))
print("gradcheck:", {name: f"{error:.1e}" for name, error in errors.items()})

# %% [markdown]
# ## Its training run
# 784-64-32-10, sigmoids throughout, ten binary cross-entropies, weights *and* biases standard normal, plain gradient
# descent on batches of 32.  The article sums the gradient over the batch and the ten outputs, where fastmlp takes the
# mean of both: its step of 5e-3 is 5e-3 * 32 * 10 here.

# %%
(x, y), (x_test, y_test) = fastmlp.datasets.load_mnist()
x, y = x[: args.rows], y[: args.rows]
one_hot = np.eye(10, dtype=np.float32)
batch, outputs = 32, 10


class TestAccuracy(fastmlp.Callback):
    """After each epoch, the share of test digits whose right output is the largest."""

    def __init__(self):
        self.values = []

    def on_epoch_end(self, run, figures):
        self.values.append((run.model.predict_proba(x_test).argmax(axis=1) == y_test).mean())


article = MLP(
    (784, 64, 32, outputs),
    activation="sigmoid",
    loss="sigmoid_cross_entropy",
    initializer=fastmlp.Normal(1.0),
    backend=backend,
    seed=0,
)
by_article = TestAccuracy()
rng = np.random.default_rng(0)
article.set_weights([w if w.ndim == 2 else rng.normal(size=w.shape) for w in article.get_weights()])
step = fastmlp.SGD(5e-3 * batch * outputs)
history = article.fit(
    x, one_hot[y], epochs=args.epochs, batch_size=batch, optimizer=step, callbacks=[by_article], verbose=0
).history
print("training loss", *(f"{loss:.6f}" for loss in history["loss"]))
print("test accuracy", *(f"{accuracy:.3f}" for accuracy in by_article.values))

# %% [markdown]
# ## With today's defaults
# The same sizes, batch and epochs: rectifiers with weights of the size that suits them, one softmax over the ten
# classes, Adam.

# %%
today, by_today = MLP((784, 64, 32, outputs), backend=backend, seed=0), TestAccuracy()
today.fit(x, y, epochs=args.epochs, batch_size=batch, callbacks=[by_today], verbose=0)
print("test accuracy", *(f"{accuracy:.3f}" for accuracy in by_today.values))

# %%
printed = [0.85, 0.89, 0.90, 0.91, 0.92, 0.92, 0.93, 0.93, 0.93, 0.93]
loss, accuracy = plots.panels(1, 2, width=4.4, height=3.4)
plots.lines({"the article's choices": history["loss"]}, ylabel="training loss, mean of ten (nats)", ax=loss)
loss.plot([1, 10], [0.161560, 0.038245], "kx", markersize=10, label="printed in the article")
loss.legend(frameon=False, fontsize="small")
plots.lines(
    {
        "the article's choices": 100 * np.array(by_article.values),
        "printed in the article": 100 * np.array(printed),
        "today's defaults": 100 * np.array(by_today.values),
    },
    ylabel="test accuracy (%)",
    ax=accuracy,
)
plots.save_both([loss, accuracy], args.out / "curves")
