"""``fastmlp selftest`` and ``warmup``: commands that are about a machine, not about a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from fastmlp.cli.doctor import print_info


def add_to(app: typer.Typer, options: Callable[[], AbstractContextManager[None]]) -> None:
    """Make the commands known; within `options` a ValueError is a mistake in the options."""

    @app.command()
    def selftest(
        backend: Annotated[str, typer.Option(help="auto, numpy, numba or cupy.")] = "auto",
    ) -> None:
        """Look whether a backend computes rightly here; each stage in a process of its own, half a minute."""
        from fastmlp.backends.choosing import get_backend
        from fastmlp.backends.registry import choose_backend
        from fastmlp.doctor.selftest import run_all

        name = choose_backend()[0] if backend == "auto" else backend
        with options():
            get_backend(name)
        failed = []
        for outcome in run_all(name):
            last = outcome.text.splitlines()[-1] if outcome.text else ""
            print(
                f"{'passed' if outcome.passed else 'FAILED'}  {outcome.stage:<20}{outcome.seconds:5.1f} s  {last}",
                flush=True,
            )
            if not outcome.passed:
                failed.append(outcome)
        if not failed:
            return
        print(f"\nThe {name} backend is wrong here. Please report all of this, and use another backend until then:\n")
        for outcome in failed:
            print(f"{outcome.stage}:\n{outcome.text}\n")
        print_info()
        raise typer.Exit(1)

    @app.command()
    def warmup(
        again: Annotated[
            bool,
            typer.Option(
                "--again",
                help="Also measure threads and products anew, and forget what trials of training steps decided: "
                "where other programs were busy then.",
            ),
        ] = False,
    ) -> None:
        """Compile everything that the Numba backend runs, for float32 and float64, so that no first fit has to."""
        import time

        import numpy as np

        from fastmlp.backends.choosing import get_backend
        from fastmlp.backends.cpu.calibration import forget
        from fastmlp.backends.cpu.choices import STEPS
        from fastmlp.doctor.looks import where_kernels_are
        from fastmlp.engine.backend_trial import BACKENDS
        from fastmlp.model import MLP

        numba = get_backend("numba")
        for dtype in ("float32", "float64"):
            if again:
                forget((STEPS, BACKENDS), np.dtype(dtype))
            began = time.perf_counter()
            model = MLP((2, 2, 2), backend=numba, dtype=dtype, seed=0)
            model.fit(np.eye(2), [0, 1], epochs=1, verbose=0)
            model.evaluate(np.eye(2), [0, 1])
            model.predict(np.eye(2))
            print(f"{dtype}: {time.perf_counter() - began:.1f} s", flush=True)
        print(f"kept {where_kernels_are()}")
