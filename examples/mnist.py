# %% [markdown]
# # MNIST, from the file to the wrong digits
#
# The whole way of a notebook in a dozen lines: read the images, scale them, build 784-32-128-10, train, evaluate,
# look at what went wrong, and put scikit-learn beside it.

# %%
import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import fastmlp
from fastmlp import plots
from fastmlp.datasets import load_mnist, read_idx, write_idx

parser = argparse.ArgumentParser(description="The MNIST notebook on fastmlp.")
parser.add_argument("--backend", default="auto", help="numpy, numba, cupy or auto")
parser.add_argument("--out", type=Path, default=Path("runs/mnist"), help="folder for the pictures")
parser.add_argument("--epochs", type=int, default=50)
parser.add_argument("--rows", type=int, default=60000, help="of the training images")
parser.add_argument("--digits", type=int, default=100, help="random test digits to look at")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line

# %% [markdown]
# Where it can run: the backend `cupy` stands for the GPUs.

# %%
for name, found in fastmlp.available_backends().items():
    print(f"{name}: {'yes' if found.available else 'no'}{f', {found.reason}' if found.reason else ''}")

# %% [markdown]
# ## Data
# The pixels are bytes; divided by 255 they lie in [0, 1].  (Given the bytes themselves, `fit` divides batch by batch
# and saves the memory.)  A file that is not what it should be is refused by its magic number.

# %%
(x, y), (x_test, y_test) = load_mnist(raw=True)
x, y, x_test = x[: args.rows] / np.float32(255), y[: args.rows], x_test / np.float32(255)
print(x.shape, x.dtype, "from", x.min(), "to", x.max())

labels = args.out / "labels"
args.out.mkdir(parents=True, exist_ok=True)
write_idx(labels, y[:10].astype(np.uint8))
try:
    read_idx(labels, expected_magic=2051)  # images
except fastmlp.FileFormatError as e:
    print(e)
labels.unlink()

# %% [markdown]
# ## The network
# ReLU, then sigmoid, then ten outputs, from weights as the notebook's framework draws them.  The softmax is part of
# the loss: together their gradient is just s - y, and no logarithm of a tiny number is ever taken.

# %%
model = fastmlp.MLP(
    (784, 32, 128, 10),
    activation=("relu", "sigmoid"),
    initializer="glorot_uniform",
    backend=args.backend,
    seed=1,
)
model.summary()
history = model.fit(
    x,
    y,
    epochs=args.epochs,
    batch_size=600,
    optimizer=fastmlp.Adam(1e-3),
    validation_data=(x_test, y_test),
    verbose=0,
)
print(history)
plots.save_both(plots.curves(history), args.out / "curves")

# %%
print(model.evaluate(x_test, y_test))
predicted, probabilities = model.predict(x_test), model.predict_proba(x_test)
print(f"accuracy {accuracy_score(y_test, predicted):.4f}, F1 {f1_score(y_test, predicted, average='macro'):.4f}")

# %% [markdown]
# ## A hundred random digits

# %%
chosen = np.random.default_rng(0).choice(len(x_test), args.digits, replace=False)
verdicts = np.where(predicted == y_test, "right", "WRONG")
for five in np.split(chosen, range(5, len(chosen), 5)):
    print(*(f"{predicted[i]} with {probabilities[i].max():.2f}: {verdicts[i]}" for i in five), sep="    ")
plots.save_both(plots.samples(x_test[chosen], y_test[chosen], probabilities[chosen]), args.out / "samples")

# %% [markdown]
# ## What went wrong
# The wrong digits that the network was surest of, and which digit it takes for which.

# %%
plots.save_both(plots.mistakes(x_test, y_test, probabilities), args.out / "mistakes")

# %%
plots.save_both(plots.confusion(y_test, predicted), args.out / "confusion")

# %% [markdown]
# ## What the first layer looks for

# %%
plots.save_both(plots.first_layer(model), args.out / "first-layer")

# %% [markdown]
# ## Beside it: a linear model
# scikit-learn's logistic regression on a third of the images, their pixels scaled by `MinMaxScaler`.

# %%
linear = make_pipeline(MinMaxScaler(), LogisticRegression(tol=1e-3, max_iter=1000)).fit(x[:20000], y[:20000])
by_linear = linear.predict(x_test)
print(f"accuracy {accuracy_score(y_test, by_linear):.4f}, F1 {f1_score(y_test, by_linear, average='macro'):.4f}")
