"""What several integration tests compare with."""

from pathlib import Path

import pytest

from tests.commands import compute_without_ray


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> Path:
    """The store of a grid of one size and both methods, computed by one worker without Ray. Not to be written to."""
    store = tmp_path_factory.mktemp("alone") / "store"
    compute_without_ray(store)
    return store
