"""Print the oldest releases that `pyproject.toml` admits, as constraints for pip: to run, to plot and to test."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in map(Requirement, project["dependencies"] + extras["plot"] + extras["test"]):
    if requirement.name != project["name"]:
        (bound,) = (s.version for s in requirement.specifier if s.operator == ">=")
        print(f"{requirement.name}=={bound}")
