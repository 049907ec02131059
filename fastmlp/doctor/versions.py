"""The packages that fastmlp needs, by their own metadata: which are there, and which do not go together."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from fastmlp._version import __version__
from fastmlp.doctor.findings import Findings, Trouble

REQUIRED = {
    "numpy": "numpy",
    "scipy": "scipy",
    "numba": "numba",
    "scipy_openblas32": "scipy-openblas32",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "joblib": "joblib",
    "threadpoolctl": "threadpoolctl",
    "typer": "typer",
    "rich": "rich",
}
"""What fastmlp imports of other packages: the module, and the package that brings it."""
OPTIONAL = {
    "matplotlib": "pip install 'fastmlp[plot]', for pictures",
    "onnx": "pip install 'fastmlp[onnx]', for export",
    "onnxruntime": "pip install 'fastmlp[onnx]', for export",
    "torch": "pip install torch, for convert.to_torch",
    "keras": "pip install keras, for convert.to_keras",
}
_EXTRAS = ("plot", "onnx", "cuda12", "cuda13")
PIP = "python -m pip install"


def installed(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def look_at_versions() -> Findings:
    """List the packages, and hold each against what the others say that they need of it."""
    found = Findings()
    found.add("packages", ("fastmlp", __version__))
    found.add("packages", *((name, installed(name) or "not installed") for name in REQUIRED.values()))
    found.add("packages", *((name, installed(name) or f"not installed: {cure}") for name, cure in OPTIONAL.items()))
    if installed("fastmlp") is None:
        found.troubles.append(
            Trouble(
                "fastmlp is not installed as a package, so nothing says which versions of others it needs",
                f"{PIP} . (in its source folder)",
            )
        )
        return found
    requirement = _parser()
    if requirement is None:
        found.add("packages", ("versions", f"not compared: {PIP} packaging"))
        return found
    for package, wanted in sorted(_wanted(requirement).items()):
        trouble = _trouble(package, wanted)
        if trouble is not None:
            found.troubles.append(trouble)
    return found


def pinned(package: str) -> str:
    """Return a package as an argument of pip, quoted, with all that others need of its version."""
    requirement = _parser()
    wanted = _wanted(requirement).get(package, {}) if requirement is not None and installed("fastmlp") else {}
    return f'"{package}{_joined(wanted)}"'


def _parser() -> Any:
    """Return the class that understands requirements; None where nobody brings it."""
    for module in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return importlib.import_module(module).Requirement
        except Exception:  # broken as anything else may be
            continue
    return None


def _wanted(requirement: Any) -> dict[str, dict[str, str]]:
    """Return, for each package that fastmlp comes to need, who needs which versions of it."""
    wanted: dict[str, dict[str, str]] = {}
    waiting, seen = ["fastmlp"], set()
    while waiting:
        needing = waiting.pop()
        seen.add(needing)
        for text in metadata.requires(needing) or ():
            needed = requirement(text)
            name = _normal(needed.name)
            extras = ("", *_EXTRAS) if needing == "fastmlp" else ("",)
            by = [e for e in extras if needed.marker is None or needed.marker.evaluate({"extra": e})]
            there = installed(name) is not None
            if not by or (by[0] and not there):  # what an extra brings is not needed
                continue
            wanted.setdefault(name, {})[f"{needing} {installed(needing)}"] = str(needed.specifier)
            if there and name not in seen and name not in waiting:
                waiting.append(name)
    return wanted


def _trouble(package: str, wanted: dict[str, str]) -> Trouble | None:
    version, command = installed(package), f'{PIP} "{package}{_joined(wanted)}"'
    if version is None:
        if package in REQUIRED.values():
            return None  # told where it is imported
        return Trouble(f"{package}, which {' and '.join(wanted)} needs, is not installed", command, stops=True)
    requirement = _parser()
    against = [
        f"{who} needs {package}{spec}"
        for who, spec in wanted.items()
        if not requirement(f"{package}{spec}").specifier.contains(version, prereleases=True)
    ]
    if not against:
        return None
    return Trouble(f"{package} {version} is installed, but {' and '.join(against)}", command, stops=True)


def _joined(wanted: dict[str, str]) -> str:
    """Return all that is needed of a version as one condition."""
    return ",".join(sorted({part for spec in wanted.values() for part in spec.split(",") if part}))


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
