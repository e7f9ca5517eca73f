"""One thread and no GPU: the tests are about the CPU path, on every machine alike."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch  # noqa: E402

torch.set_num_threads(1)
