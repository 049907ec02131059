"""The option that runs all of the ladder, and what its rungs share."""

import pytest


def pytest_collection_modifyitems(config, items):
    if config.getoption("--whole-ladder", default=False):
        return
    skip = pytest.mark.skip(reason="the long part of the CUDA tests; pytest --whole-ladder runs it")
    for item in items:
        if "whole_ladder" in item.keywords:
            item.add_marker(skip)
