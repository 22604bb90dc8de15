import pytest

from service import Service


@pytest.fixture(scope="session")
def service():
    """One service for all tests that leave it as they found it."""
    one = Service("--remirror-delay", "5").start()
    yield one
    one.stop()
