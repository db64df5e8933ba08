import pytest

from support import tiny_mimi as tiny


@pytest.fixture(scope="session")
def tiny_mimi():
    return tiny.build()
