"""One bug planted in each fused stage of the CPU kernels: the suite must turn red.  `pytest --planted-bugs` runs it.

The package is copied, one line of a kernel is changed, and the tests that hold whole steps against their composition are
run on the copy: with the JIT off, which takes seconds, except where the bug is in what only exists compiled.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
ROOT = Path(__file__).resolve().parents[1]
STEPS = (
    *("tests/test_composition.py", "tests/test_numba_backend.py"),
    *("-k", "numba and not cupy and (composition or l2_and_decay_is_numpys)"),
)
SHARED = ("tests/test_shared_steps.py", "-k", "many_inputs")
PRODUCTS = ("tests/test_products.py", "-k", "edges")
MASKS = ("tests/test_products.py", "-k", "avx512")
FORMS = ("tests/test_products.py", "-k", "train_as_on_numpy")
ROW = ("tests/test_products.py", "-k", "single_row")
TOGETHER = ("tests/test_shared_steps.py",)
PARTS = ("tests/test_crew.py", "-k", "may_change")
FEW = ("tests/test_products.py", "-k", "few_outputs")
FEWEST = ("tests/test_few_outputs.py",)
BLOCKS = ("tests/test_products.py", "-k", "more_than_one_block")
TAKEN = ("tests/test_shared_steps.py", "-k", "each_part_is_one_threads")
SHARES = ("tests/test_shared_predictions.py",)
ROUNDING = ("tests/test_rounding.py", "-k", "numba and not cupy")
GATHER = ("tests/test_operations.py", "-k", "gather and numba")

# file, what stands there, what is planted
BUGS = {
    "gather: bytes not scaled": ("kernels/cpu/layers.py", "target[q] = dtype(pixels[q]) / full", "target[q] = dtype(pixels[q])"),
    "gather: rows one off": ("kernels/cpu/forward.py", "load_row(data.x, data.x_kind, order[i],", "load_row(data.x, data.x_kind, i,"),
    "bias forgotten": ("kernels/cpu/layers.py", "        v = z[q] + b[q]\n        z[q] = zero if v <= zero", "        v = z[q]\n        z[q] = zero if v <= zero"),
    "slope of tanh": ("kernels/cpu/layers.py", "slope[q] = one - z[q] * z[q]", "slope[q] = one - z[q]"),
    "dropout: mask of another row": ("kernels/cpu/forward.py", "*(key, u8(batch.place + first_row + i), step, u8(layer + 1), lanes)", "*(key, u8(i), step, u8(layer), lanes)"),
    "loss: gradient of the label": ("kernels/cpu/losses.py", "-= kept * scales[i]", "-= scales[i]"),
    "loss: the first quantile for all": ("kernels/cpu/losses.py", "quantiles[k % quantiles.size]", "quantiles[0]"),
    "loss: weights of rows": ("kernels/cpu/forward.py", "scales[i] *= data.weights[chosen[i]]", "pass"),
    "backward: slopes of the layer above": ("kernels/cpu/train.py", "has = net.needs_slope[layer]", "has = False"),
    "bias gradient: last row left out": ("kernels/cpu/layers.py", "    for i in range(rows):\n        start = at + i * columns\n        row = run(d, start", "    for i in range(rows - 1):\n        start = at + i * columns\n        row = run(d, start"),
    "fused descent: L2 lost": ("kernels/cpu/train.py", "and l2 == zero and not there", "and not there"),
    "Adam: mean of squares": ("kernels/cpu/optimizers.py", "v = square_decay * square[i] + square_share * (d * d)", "v = square_decay * square[i] + square_share * d"),
    "decays near 1": ("fastmlp/backends/cpu/session.py", "square_share=real(1 - constants.square_decay)", "square_share=real(1) - real(constants.square_decay)"),
    "momentum: Nesterov": ("kernels/cpu/optimizers.py", "rate * (d + mean_decay * m)", "rate * m"),
    "decay after the update": ("kernels/cpu/train.py", "kept = dtype(1.0 - scalars[RATE] * float(rule.weight_decay))", "kept = dtype(1.0)"),
    "clipping: norm of one layer": ("kernels/cpu/train.py", "        total += add_l2_squared_norm", "        total = add_l2_squared_norm"),
    "max-norm: first column left out": ("kernels/cpu/optimizers.py", "exceeds |= norm > limit", "exceeds |= False"),
    "average: not of biases": ("kernels/cpu/train.py", "average(run(buffers.average, b + first, n), run(buffers.params, b + first, n), share)", "pass"),
    "frozen layers trained": ("kernels/cpu/train.py", "        if net.frozen[layer]:\n            continue\n        i_, o = net.units[layer], net.units[layer + 1]\n        w, b = net.weight_at[layer], net.bias_at[layer]\n        low", "        i_, o = net.units[layer], net.units[layer + 1]\n        w, b = net.weight_at[layer], net.bias_at[layer]\n        low"),
    "a loss that is not finite": ("kernels/cpu/train.py", "if not math.isfinite(loss):", "if loss < 0:"),
    "features shared out: a thread's part": ("kernels/cpu/forward.py", "range(1, parts.shape[0])", "range(2, parts.shape[0])"),
    "features shared out: rows of the first": ("kernels/cpu/forward.py", "FORWARD], batch.x, first, batch.index,", "FORWARD], batch.x, 0, batch.index,"),
    "tiles: last column": ("kernels/cpu/edges.py", "builder.shl(vectors.integer(1), count)", "builder.shl(vectors.integer(2), count)"),
    "tiles: last vector": ("kernels/cpu/edges.py", "self._less(valid, lanes)", "self._less(valid, lanes + 1)"),
    "tiles: beta forgotten": ("kernels/cpu/edges.py", "self.fma(scale, self.load(row, j), total)", "self.fma(factor, self.load(row, j), total)"),
    "tiles: a part of a vector": ("kernels/cpu/edges.py", "vectors.integer(-2 * size)", "vectors.integer(-size)"),
    "tiles: a part of a vector that is there": ("kernels/cpu/edges.py", "builder.select(there, high, low)", "high"),
    "tiles: a part of a vector that sums begin with": ("kernels/cpu/edges.py", "vectors.shuffle(builder, part, rest, both)", "vectors.shuffle(builder, rest, part, both)"),
    "tiles: a quarter of a vector": ("kernels/cpu/tiles.py", "elif has_narrow and valid <= quarter:", "elif has_narrow and valid <= lanes:"),
    "packing: a transpose's edge": ("kernels/cpu/packing.py", "for q in range(c, c + size):", "for q in range(c, c + size - 1):"),
    "packing: a transpose's last columns": ("kernels/cpu/packing.py", "c = min(c, columns - size)", "c = columns - size"),
    "packing: a transpose's last rows": ("kernels/cpu/packing.py", "r = min(r, rows - BLOCK)", "r = rows - BLOCK"),
    "packing: the last panel": ("kernels/cpu/packing.py", "place = out_at + (whole * room + k) * width", "place = out_at + whole * room + k"),
    "packing: the last numbers of rows": ("kernels/cpu/packing.py", "builder.mul(blocks, integer(long)), depth, integer(1)", "depth, depth, integer(1)"),
    "packing: rows of the next panel": ("kernels/cpu/packing.py", "index_at + r, ahead, lda", "index_at, ahead, lda"),
    "packing: the last columns of A'": ("kernels/cpu/packing.py", "out[place + q] = a[start + q]", "out[place + q] = a[start]"),
    "products: a second block of depth": ("kernels/cpu/products.py", "kept = one if start > 0 and by_columns else beta", "kept = beta"),
    "products: sums that go on": ("kernels/cpu/products.py", "onward = start > 0 and not by_columns", "onward = False"),
    "products: a second group of panels": ("kernels/cpu/products.py", "if r == 0 and p % PANELS == 0:", "if r == 0 and p == 0:"),
    "products: more panels than are kept": ("kernels/cpu/products.py", "most = columns if rows <= many else panels * width", "most = columns"),
    "products: blocks along k that are kept": ("kernels/cpu/products.py", "layer_at = (start - first) // deep * panels * size", "layer_at = 0"),
    "products: the gradient of one row": ("kernels/cpu/single.py", "row[q] = beta * row[q] + factor * v[q]", "row[q] = row[q] + factor * v[q]"),
    "products: what is not zero in a row": ("kernels/cpu/single.py", "count += row[i] != 0\n    return", "count += row[i] > 0\n    return"),
    "products: where it is not zero": ("kernels/cpu/single.py", "out_at + places[j] * v.size", "out_at + j * v.size"),
    "threads: a barrier that opens early": ("kernels/cpu/threads.py", "if arrived == threads * passed:", "if arrived >= threads * passed - 1:"),
    "products: a long row": ("kernels/cpu/products.py", "*(one, zero, False, out, out_at + c, columns),", "*(one, zero, False, out, out_at, columns),"),
    "parts: of another thread": ("kernels/cpu/train.py", "_update_slice(net, rule, buffers, batch, memory, t, p, parts,", "_update_slice(net, rule, buffers, batch, memory, t, t, parts,"),
    "parts: one that nobody takes": ("kernels/cpu/threads.py", "(passed + 1) * own)", "(passed + 1) * own - 1)"),
    "parts: others' are left to them": ("kernels/cpu/threads.py", "        if whose == t:", "        if whose >= 0:"),
    "products: a second block of rows": ("kernels/cpu/products.py", "index, index_at + r, ahead", "index, index_at, ahead"),
    "products: few outputs, a second block": ("kernels/cpu/few.py", "min(deep, k - start), start > 0, at + c", "min(deep, k - start), False, at + c"),
    "products: few outputs, more than four": ("kernels/cpu/few.py", "min(outputs, columns - q), q * rows + c", "min(outputs, columns - q), c"),
    "products: few outputs, more inputs than a block": ("kernels/cpu/few.py", "run(out, out_at + c * columns, count)", "run(out, out_at, count)"),
    "products: forward, the last vector": ("kernels/cpu/dots.py", "builder.select(new, value, zeros)", "value"),
    "products: forward, the order of sums": ("kernels/cpu/dots.py", "sums[p % chunks * chunk + p // chunks]", "sums[p]"),
    "products: rows of W', the last part": ("kernels/cpu/few.py", "c = min(first, columns - many)", "c = first"),
    "products: few outputs, what was there": ("kernels/cpu/few.py", "target[q] = beta * target[q] + alpha * sums[q]", "target[q] = alpha * sums[q]"),
    "gather: whole numbers": ("kernels/cpu/layers.py", "_convert(run(seen_as(source, np.int64), first", "_convert(run(seen_as(source, np.float64), first"),
    "predictions: what others leave": ("kernels/cpu/predict.py", "share = (t + ahead) % threads * LINE", "share = t * LINE"),
    "predictions: the last rows": ("kernels/cpu/predict.py", "(stop - first + piece - 1) // piece", "(stop - first) // piece"),
    "predictions: infinite inputs": ("kernels/cpu/predict.py", "not math.isfinite(first_sums[i]) and", "False and"),
    "biases: one sum of many rows": ("kernels/cpu/layers.py", "SUMMED_ROWS = 1024", "SUMMED_ROWS = 1 << 40"),
    "biases: blocks of rows after the first": ("kernels/cpu/layers.py", "        if begin > 0:\n            for q", "        if begin < 0:\n            for q"),
    "tiles: tall ones": ("kernels/cpu/tiles.py", "at += VECTORS * step", "at += step"),
    "tiles: what is written as it is": ("kernels/cpu/edges.py", 'builder.fcmp_unordered("!=", alpha, one)', 'builder.fcmp_unordered("!=", zero, zero)'),
}  # fmt: skip
COMPILED = {
    "features shared out: a thread's part": SHARED,
    "features shared out: rows of the first": SHARED,
    "tiles: last column": MASKS,
    "tiles: last vector": PRODUCTS,
    "tiles: a part of a vector": PRODUCTS,
    "tiles: a part of a vector that is there": PRODUCTS,
    "tiles: a part of a vector that sums begin with": ("tests/test_products.py", "-k", "have_the_bits"),
    "tiles: beta forgotten": FORMS,
    "tiles: a quarter of a vector": MASKS,
    "packing: a transpose's edge": PRODUCTS,
    "packing: a transpose's last columns": PRODUCTS,
    "packing: a transpose's last rows": PRODUCTS,
    "packing: the last panel": PRODUCTS,
    "packing: the last columns of A'": BLOCKS,
    "products: a second block of depth": BLOCKS,
    "products: a second group of panels": BLOCKS,
    "products: the gradient of one row": FORMS,
    "products: what is not zero in a row": ROW,
    "products: where it is not zero": ROW,
    "threads: a barrier that opens early": TOGETHER,
    "products: a long row": PRODUCTS,
    "parts: of another thread": PARTS,
    "parts: one that nobody takes": TAKEN,
    "parts: others' are left to them": TAKEN,
    "products: a second block of rows": BLOCKS,
    "packing: the last numbers of rows": BLOCKS,
    "packing: rows of the next panel": BLOCKS,
    "products: sums that go on": BLOCKS,
    "products: more panels than are kept": BLOCKS,
    "products: blocks along k that are kept": BLOCKS,
    "products: few outputs, a second block": FEW,
    "products: few outputs, more than four": FEW,
    "products: few outputs, more inputs than a block": FEW,
    "products: few outputs, what was there": FEW,
    "products: forward, the last vector": FEWEST,
    "products: forward, the order of sums": FEWEST,
    "products: rows of W', the last part": FEWEST,
    "decays near 1": ROUNDING,
    "biases: one sum of many rows": ROUNDING,
    "biases: blocks of rows after the first": ROUNDING,
    "gather: whole numbers": GATHER,
    "predictions: what others leave": SHARES,
    "predictions: the last rows": SHARES,
    "predictions: infinite inputs": ("tests/test_not_finite.py", "-k", "many_inputs"),
    "tiles: tall ones": PRODUCTS,
    "tiles: what is written as it is": FORMS,
}


def run_on_a_copy(folder, bug):
    """Tell whether a test is red on a copy with one bug, or with none."""
    without = shutil.ignore_patterns("__pycache__")
    for name in ("fastmlp", "kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=without)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "fastmlp" / "kernels").symlink_to("../kernels")
    if bug is not None:
        name, there, planted = BUGS[bug]
        path = folder / name
        text = path.read_text()
        assert there in text, f"{bug}: {name} no longer holds {there!r}"
        path.write_text(text.replace(there, planted, 1))
    environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache")}
    environment["NUMBA_DISABLE_JIT"] = "0" if bug in COMPILED else "1"
    # interpreted arithmetic warns of what compiled arithmetic does silently
    quiet = ["-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider", "--thorough", "--other-processors"]
    command = [sys.executable, "-P", "-m", "pytest", "-n0", "-q", "-x", *quiet, *COMPILED.get(bug, STEPS)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    # a process that was killed wrote where it may not: that is red too
    assert done.returncode in (0, 1) or done.returncode < 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.returncode != 0


ONLY_WITH_MASKS = ("tiles: what is written as it is",)
NOT_WITH_MASKS = (
    "tiles: last vector",
    "tiles: beta forgotten",
    "tiles: a part of a vector",
    "tiles: a part of a vector that is there",
    "tiles: a part of a vector that sums begin with",
)
"""What stands there is compiled for AVX-512 alone, or not for it."""


@pytest.mark.planted_bugs
@pytest.mark.parametrize("bug", [None, *BUGS])
def test_a_planted_bug_turns_a_test_red(bug, tmp_path):
    if bug in NOT_WITH_MASKS + ONLY_WITH_MASKS or (bug is not None and "few outputs" in bug):
        few = pytest.importorskip("fastmlp.kernels.cpu.few", reason="Numba is not installed")
        if not few.most_outputs(1) and "few outputs" in bug:
            pytest.skip("this processor's tiles have no other way for few outputs")
        if bug in NOT_WITH_MASKS + ONLY_WITH_MASKS and few.vectors.MASKS == (bug in NOT_WITH_MASKS):
            pytest.skip("this processor's tiles have other code for the ends of rows, with masks or without")
    assert run_on_a_copy(tmp_path, bug) == (bug is not None)
