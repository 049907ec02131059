"""What the folder of a run holds."""

import numpy as np

import fastmlp

ALWAYS = {"config.toml", "history.json", "model.safetensors"}


def weights(folder):
    """All weights of a run's model in a row."""
    return np.concatenate([w.ravel() for w in fastmlp.load(folder / "model.safetensors").get_weights()])


def files_of(folder):
    return {path.name for path in folder.iterdir()}
