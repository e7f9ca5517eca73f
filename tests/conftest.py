"""One thread and no GPU: the tests are about the CPU path, on every machine alike. And which tests share a process."""

import os

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests of a file share what they have set up; slow ones are dealt out one by one, unless they say otherwise."""
    for item in items:
        if item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
