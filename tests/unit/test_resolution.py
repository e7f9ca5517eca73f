"""Low to high resolution: the same weights, positions on a finer grid of the same extent."""

import pytest
import torch

from fine_core.dit import DIT_SIZES, DiT, count_parameters, position_table
from sweeps.results.points import point_result
from tests.tiny import compute, random_dit, tiny_base, tiny_config, tiny_learngene, tiny_point, tiny_transfer
from trainables.specs.scorers import ExtractorSpec
from trainables.storage.store import Store
from trainables.training.context import LocalContext


def test_positions_of_the_coarse_grid_are_found_on_the_fine_one():
    config = DIT_SIZES["DiT-S/2"]
    fine = position_table(config.at_resolution(64)).reshape(32, 32, -1)
    assert torch.equal(fine[::2, ::2].reshape(1, 256, -1), position_table(config))
    between = fine[1, 0]  # PE(i, j) = PE_base(i / 2, j / 2): half a step down
    assert not torch.equal(between, fine[0, 0]) and not torch.equal(between, fine[2, 0])


def test_a_model_at_twice_the_resolution_keeps_its_weights():
    model = random_dit()
    larger = model.at_resolution(16)
    assert larger.config.input_size == 16 and larger.config.position_scale == 2
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "pos_embed"}
    assert all(torch.equal(larger.state_dict()[name], tensor) for name, tensor in weights.items())
    x = torch.randn(2, 1, 16, 16)
    assert larger(x, torch.tensor([5, 500]), torch.tensor([0, 10])).shape == x.shape
    assert model.at_resolution(8) is model
    assert larger.at_resolution(32).config.position_scale == 4


def test_parameters_differ_by_the_position_table_alone():
    config = tiny_config()
    assert count_parameters(config.at_resolution(16)) - count_parameters(config) == (64 - 16) * 16


def test_images_that_are_no_multiple_are_refused():
    with pytest.raises(ValueError, match="images of 12 pixels are no whole multiple of the model's 8"):
        tiny_config().at_resolution(12)


@pytest.mark.parametrize("method", ["difffit", "fine-sigma"])
def test_a_base_of_8x8_is_adapted_to_16x16_images_of_the_same_digits(method, tmp_path):
    job = tiny_transfer(method, target="digits-16")
    needs = [ExtractorSpec(dataset="digits"), ExtractorSpec(dataset="digits-16"), tiny_learngene(), tiny_base("fine")]
    point = tiny_point(job)
    assert point.forgetting is None, "images of another size have no FID on the source"
    for item in (*needs, job, point.score):
        compute(item, str(tmp_path / "store"), LocalContext(tmp_path / item.id))
    result = point_result(point, Store(tmp_path / "store"))
    assert result.metrics["fid"] > 0 and result.protocol.reference == "digits-16:pool"
    assert "forgetting/source_fid" not in result.metrics
    assert result.metrics["params_total"] == count_parameters(DiT(job.model).config)
