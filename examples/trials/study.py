"""An Optuna study that several processes work on together, by one file in a folder that all of them see.

    python examples/trials/study.py --journal shared/digits.log --processes 2

The same command on other machines, with the folder mounted there, adds their processes to the study; the
command begun again goes on with what the file holds.  One that is killed costs its trial, and where that was as it
wrote, the others half a minute, after which Optuna takes its lock for stale.  A trial whose accuracy lags behind those
before it is pruned between two calls of `partial_fit`.  Needs pip install "fastmlp[cluster]".
"""

import argparse
import os
from pathlib import Path

import joblib
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastmlp

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--journal", type=Path, default=Path("runs/study.log"), help="the file that all share")
parser.add_argument("--processes", type=int, default=joblib.cpu_count(only_physical_cores=True), help="of this machine")
parser.add_argument("--trials", type=int, default=40, help="of all processes together")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--rows", type=int, default=1797, help="of the digits")
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def shared_study(journal):
    """Return the study of a journal, made by whoever comes first."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    # each process draws on its own, and keeps away from what the others are trying
    sampler, pruner = optuna.samplers.TPESampler(constant_liar=True), optuna.pruners.MedianPruner(n_warmup_steps=2)
    options = {"direction": "maximize", "load_if_exists": True}
    return optuna.create_study(storage=storage, study_name="digits", sampler=sampler, pruner=pruner, **options)


def work(journal, trials, epochs, rows):
    """Add trials to the study until it has so many."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    x, y = load_digits(return_X_y=True)
    x, x_val, y, y_val = train_test_split(x[:rows] / 16, y[:rows], random_state=0)

    def objective(trial):
        estimator = fastmlp.MLPClassifier(
            hidden_layer_sizes=(trial.suggest_int("units", 8, 128, log=True),),
            learning_rate_init=trial.suggest_float("learning_rate_init", 1e-4, 1e-1, log=True),
            dropout=trial.suggest_float("dropout", 0.0, 0.5),
            backend="numba",
            random_state=0,
        )
        trial.set_user_attr("process", os.getpid())
        trial.set_user_attr("threads", fastmlp.get_backend("numba").threads)
        for epoch in range(epochs):
            estimator.partial_fit(x, y, classes=range(10))
            accuracy = estimator.score(x_val, y_val)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    shared_study(journal).optimize(objective, callbacks=[MaxTrialsCallback(trials, ENDED)])


def main():
    args = parser.parse_args()
    args.journal.parent.mkdir(parents=True, exist_ok=True)
    # processes of joblib share the cores among them: each fit takes its part of the threads
    each = (args.journal, args.trials, args.epochs, args.rows)
    joblib.Parallel(args.processes)(joblib.delayed(work)(*each) for _ in range(args.processes))
    study = shared_study(args.journal)
    done, pruned = (study.get_trials(states=[state]) for state in ENDED)
    processes = {trial.user_attrs["process"] for trial in done + pruned}
    threads = max(trial.user_attrs["threads"] for trial in done + pruned)
    print(f"{len(done)} trials done, {len(pruned)} pruned, by {len(processes)} processes")
    print(f"{threads} threads each; {joblib.cpu_count()} processors here")
    print(f"best: {study.best_value:.4f}  {study.best_params}")


if __name__ == "__main__":
    main()
