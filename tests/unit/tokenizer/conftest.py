import pytest
import tiny_mimi as tiny


@pytest.fixture(scope="session")
def tiny_mimi():
    return tiny.build()
