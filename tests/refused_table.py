"""Reading a table that is refused."""

import pytest

from fastmlp.datasets import load_table
from fastmlp.errors import DataError


def refusal(path, error=DataError, **options):
    with pytest.raises(error) as caught:
        load_table(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")
