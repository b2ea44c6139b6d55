"""What the tests of files need."""

import resource
from contextlib import contextmanager

import pytest


@pytest.fixture
def full_disk():
    """Inside `with full_disk():` no file grows beyond 2,000 bytes: what a full disk does."""

    @contextmanager
    def limit():
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    return limit
