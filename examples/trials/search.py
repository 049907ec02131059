"""A grid search whose trials run on all cores, or on many machines: joblib's backends loky, dask and ray.

    python examples/trials/search.py                                           # processes of this machine
    python examples/trials/search.py --backend dask                            # the same, started by Dask
    python examples/trials/search.py --backend dask --address tcp://head:8786  # the workers of a cluster of Dask
    python examples/trials/search.py --backend ray --address auto              # of the cluster of Ray that runs here

Each of them tells its workers how many threads a trial may take, and a fit takes no more than that: there are never
more threads than cores.  Dask and Ray come with pip install "fastmlp[cluster]".
"""

import argparse
import os
from contextlib import contextmanager

import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from fastmlp import MLPClassifier

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--backend", choices=["loky", "dask", "ray"], default="loky")
parser.add_argument("--address", help="of a cluster of Dask or Ray that runs; else one of this machine is started")
parser.add_argument("--workers", type=int, help="of this machine; by default one for each core")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--rows", type=int, default=1797, help="of the digits")


@contextmanager
def cluster(backend, workers, address):
    """Have joblib's backend ready: the workers at an address, or as many of this machine, of one thread each."""
    if backend == "dask":
        from dask.distributed import Client

        started = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        with Client(address, **({} if address else started)):
            yield
    elif backend == "ray":
        import ray
        from ray.util.joblib import register_ray

        register_ray()
        with ray.init(address, **({} if address else {"num_cpus": workers, "include_dashboard": False})):
            yield
    else:
        yield


def figures(estimator, x, y):
    """Score a trial, and tell where it ran: cv_results_ keeps both."""
    threads = estimator.model_.backend.threads
    return {"accuracy": estimator.score(x, y), "threads": threads, "process": os.getpid()}


def main():
    args = parser.parse_args()
    if args.backend == "loky" and args.address:
        parser.error("--address is of a cluster of Dask or Ray; --backend loky has the processes of this machine")
    if args.address and args.workers:
        parser.error("--workers are of this machine; the cluster of --address has its own, all of which are used")
    workers = args.workers or joblib.cpu_count(only_physical_cores=True)
    x, y = load_digits(return_X_y=True)
    x, y = x[: args.rows] / 16, y[: args.rows]
    search = GridSearchCV(
        MLPClassifier(backend="numba", epochs=args.epochs, random_state=0),
        {"hidden_layer_sizes": [(32,), (64,)], "dropout": [0.0, 0.2]},
        scoring=figures,
        refit="accuracy",
        cv=2,
    )
    with cluster(args.backend, workers, args.address):
        with joblib.parallel_backend(args.backend, n_jobs=-1 if args.address else workers):
            search.fit(x, y)
    found = search.cv_results_
    for parameters, accuracy in zip(found["params"], found["mean_test_accuracy"], strict=True):
        print(f"{accuracy:.4f}  {parameters}")
    print(f"best: {search.best_score_:.4f}  {search.best_params_}")
    processes = {int(p) for split in range(2) for p in found[f"split{split}_test_process"]}
    threads = max(int(t) for split in range(2) for t in found[f"split{split}_test_threads"])
    here = "this one among them" if os.getpid() in processes else "this one not among them"
    print(f"{len(processes)} processes, {here}; {threads} threads each; {joblib.cpu_count()} processors here")


if __name__ == "__main__":
    main()
