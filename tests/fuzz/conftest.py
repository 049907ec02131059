"""How long the fuzzing job takes: `pytest --fuzz SECONDS`, two by default."""

import pytest


def pytest_collection_modifyitems(config, items):
    limit = pytest.mark.timeout(300 + config.getoption("--fuzz"))
    for item in items:
        if item.path.parent.name == "fuzz":
            item.add_marker(limit)
