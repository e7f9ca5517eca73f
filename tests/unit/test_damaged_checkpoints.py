"""A checkpoint that was damaged on its disk is not gone on from, and it is said."""

import pytest
import torch

from trainables.storage.files import PROGRESS_FILE, STATE_FILE
from trainables.training.checkpoint import report_checkpoint, restore_checkpoint
from trainables.training.context import LocalContext


def test_a_checkpoint_of_before_the_hashes_is_gone_on_from(tmp_path):
    run = LocalContext(tmp_path / "checkpoint")
    report_checkpoint(run, {"step": 3}, {"weights": torch.arange(100.0)})
    size_bytes = (run.folder / STATE_FILE).stat().st_size
    (run.folder / PROGRESS_FILE).write_text(f'{{"step": 3, "state_bytes": {size_bytes}}}')
    assert torch.equal(restore_checkpoint(run)["weights"], torch.arange(100.0))


@pytest.mark.parametrize("name", [STATE_FILE, PROGRESS_FILE])
def test_a_flipped_byte_starts_the_training_again(name, tmp_path, caplog):
    run = LocalContext(tmp_path / "checkpoint")
    assert restore_checkpoint(run) is None
    report_checkpoint(run, {"step": 3}, {"weights": torch.arange(100.0)})
    assert torch.equal(restore_checkpoint(run)["weights"], torch.arange(100.0)) and not caplog.text
    content = bytearray((run.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run.folder / name).write_bytes(content)
    assert restore_checkpoint(run) is None
    assert f"the checkpoint in {run.folder} is damaged; the training starts again" in caplog.text
