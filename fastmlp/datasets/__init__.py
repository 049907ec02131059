"""Data in: MNIST as shipped, IDX files, and the tables (CSV, NumPy, IDX) that the command line reads."""

from fastmlp.datasets.idx import read_idx, write_idx
from fastmlp.datasets.mnist import load_mnist
from fastmlp.datasets.table import Table
from fastmlp.datasets.tables import load_table

__all__ = ["Table", "load_mnist", "load_table", "read_idx", "write_idx"]
