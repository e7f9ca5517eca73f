"""Models on disk: exact round trips, and one clear error for what is damaged or of another shape."""

import errno

import pytest
import torch
from safetensors.torch import save_file

from fine_core.checkpoints import native as checkpoints
from fine_core.checkpoints.native import CheckpointError, load_model, save_model, save_tensors
from fine_core.dit import DiT, DiTConfig, ModelSize

CONFIG = DiTConfig(size=ModelSize(depth=2, width=16, num_heads=2), input_size=8, in_channels=1, num_classes=3)


def test_round_trip_is_exact_and_carries_the_config(tmp_path):
    model = DiT(CONFIG)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.config == CONFIG
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in loaded.parameters()]


def test_another_shape_is_refused(tmp_path):
    save_model(DiT(CONFIG), tmp_path / "m.safetensors")
    other = DiTConfig(**{**vars(CONFIG), "num_classes": 4})
    with pytest.raises(CheckpointError, match="another shape"):
        load_model(tmp_path / "m.safetensors", expect=other)


def test_tensors_that_do_not_fit_their_config_are_refused(tmp_path):
    tensors = DiT(CONFIG).state_dict() | {"pos_embed": torch.zeros(1, 3, 16)}
    save_tensors(tmp_path / "m.safetensors", tensors, kind="dit", config=checkpoints.config_to_json(CONFIG))
    with pytest.raises(CheckpointError, match="does not fit its config"):
        load_model(tmp_path / "m.safetensors")


def test_truncated_foreign_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(DiT(CONFIG), path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_model(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not 'dit'"):
        load_model(path)
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "absent")


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(DiT(CONFIG), path)
    before = path.read_bytes()

    def full_disk(tensors, temporary, metadata):
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(DiT(CONFIG), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
