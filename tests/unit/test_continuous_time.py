"""The interface suffices for a parameterization of continuous times: one object and one sampler are all that it takes."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from fine_core.checkpoints import CheckpointError, export_diffusers, load_model, save_model
from fine_core.checkpoints.native import METADATA_KEY, config_to_json
from fine_core.checkpoints.public_dit import export_state_dict
from fine_core.data.registry import load_dataset
from fine_core.denoiser import LABEL
from fine_core.dit import DiT, ModelSize
from fine_core.sampling.draw import sample_images
from fine_core.sampling.sampler import SamplerSpec
from fine_core.sampling.schedulers import make_scheduler, samplers_for
from sweeps.command_line.options import preset_grid
from sweeps.planning.plan import plan_grid
from tests.tiny import TINY_EVALUATION, random_dit, randomize, tiny_bank, tiny_base, tiny_config, tiny_score
from tests.velocity import register_velocity
from trainables.initializations.scratch import ScratchRecipe
from trainables.jobs.inputs import source_spec
from trainables.specs.models import model_config
from trainables.training.batches import DenoisingBatches
from trainables.training.context import LocalContext
from trainables.training.loop import train

pytestmark = pytest.mark.usefixtures("velocity")


def euler() -> SamplerSpec:
    return SamplerSpec(sampler="toy-euler", sampling_steps=8)


@pytest.fixture
def velocity(monkeypatch) -> str:
    return register_velocity(monkeypatch)


@pytest.fixture
def config(velocity):
    return replace(tiny_config(width=32), parameterization=velocity)


def test_a_model_of_continuous_times_trains_and_samples(config, tmp_path):
    base = replace(tiny_base("scratch", steps=150, lr=4e-3), model=config)
    data = load_dataset("digits", "train")
    batches = DenoisingBatches(data, base.training, null_label=10, seed=0, device=torch.device("cpu"))
    told = []
    recipe = ScratchRecipe(base)
    model_for = recipe.model_for

    def watched(phase, previous):
        model = model_for(phase, previous)
        model.t_embedder.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
        return model

    recipe.model_for = watched
    model, progress = train(
        recipe, batches=batches, training=base.training, run=LocalContext(tmp_path / "run"), checkpoint_every_steps=150
    )
    times = torch.cat(told)
    assert times.dtype == torch.float32 and (times != times.round()).any(), "times are not cut to timesteps"
    assert abs(times.mean() - 500) < 30 and 0 < times.min() < 10 and 990 < times.max() < 1000
    losses = [entry["train/loss"] for entry in progress.history]
    assert losses[-1] < 0.6 * losses[0]
    told.clear()
    labels = torch.arange(64) % 10
    images = sample_images(model.eval(), {LABEL: labels}, euler(), generator=torch.Generator().manual_seed(0))
    assert [t[0].item() for t in told] == pytest.approx([1000 - 125 * i for i in range(8)])
    real = torch.stack([data.images[data.labels == label].mean(dim=0) for label in labels])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert (images - real).square().mean() < 0.5 * (noise - real).square().mean()


def test_samplers_that_do_not_fit_are_refused_in_one_line_before_anything_starts(config, velocity):
    assert samplers_for(velocity) == ["toy-euler"] and "toy-euler" not in samplers_for("ddpm")
    message = "image sampler 'ddim' does not fit models of parameterization 'toy-velocity'; choose one of toy-euler"
    base = replace(tiny_base("scratch"), model=config)
    with pytest.raises(ValueError, match=message):
        tiny_score(base)
    with pytest.raises(ValueError, match=message):
        tiny_bank(base)
    with pytest.raises(ValueError, match=message):
        make_scheduler("ddim", config)
    with pytest.raises(ValueError, match="'toy-euler' does not fit models of parameterization 'ddpm'; choose one of ddim"):
        tiny_score(tiny_base("scratch"), evaluation=replace(TINY_EVALUATION, sampler=euler()))


def test_a_grid_plans_models_of_the_parameterization_and_refuses_others_samplers(velocity):
    grid = replace(preset_grid("demo"), transfer=None, forgetting=None, methods=("scratch",), parameterization=velocity)
    with pytest.raises(ValueError, match="image sampler 'dpm-solver\\+\\+' does not fit"):
        plan_grid(grid)
    plan = plan_grid(replace(grid, sampler=euler()))
    assert {point.model.model.parameterization for point in plan.points} == {velocity}
    ordinary = plan_grid(replace(preset_grid("demo"), transfer=None, forgetting=None, methods=("scratch",)))
    assert not {point.model.id for point in plan.points} & {point.model.id for point in ordinary.points}


def test_everything_from_a_given_model_has_its_parameterization(velocity):
    model = DiT(replace(tiny_config(depth=3, width=32), parameterization=velocity))
    demo = replace(preset_grid("demo"), source=source_spec(model), head_dim=8, transfer=None, forgetting=None)
    plan = plan_grid(replace(demo, depths=(2,), widths=(16, 32), methods=("given", "fine", "scratch"), sampler=euler()))
    models = [point.model.model for point in plan.points] + [task.job.model for task in plan.stages["learngene"]]
    assert len(models) == 6 and {found.parameterization for found in models} == {velocity}


def test_the_parameterization_is_stored_with_the_model_unless_it_is_that_of_before(config, velocity, tmp_path):
    def stored(path) -> dict:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()[METADATA_KEY])["config"]

    for model in (random_dit(), randomize(DiT(config))):
        path = tmp_path / f"{model.config.parameterization}.safetensors"
        save_model(model, path)
        assert load_model(path, expect=model.config).config == model.config
    assert "parameterization" not in stored(tmp_path / "ddpm.safetensors")
    assert stored(tmp_path / f"{velocity}.safetensors") == {**config_to_json(config), "parameterization": velocity}


@pytest.mark.parametrize("name", ["folder", "flat.pt", "flat.safetensors"])
def test_formats_without_a_place_for_it_are_refused(config, name, tmp_path):
    export = export_diffusers if name == "folder" else export_state_dict
    with pytest.raises(CheckpointError, match="holds models of parameterization 'ddpm' alone, this one is of 'toy-velocity'"):
        export(DiT(config), tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_unknown_parameterization_is_named():
    with pytest.raises(ValueError, match="unknown parameterization 'typo'; choose one of ddpm"):
        model_config("digits", ModelSize(depth=1, width=16, num_heads=2), patch_size=2, parameterization="typo")


def test_a_model_has_the_output_channels_that_its_parameterization_asks_for(config):
    assert replace(config, learn_sigma=True).out_channels == 1
    assert replace(config, learn_sigma=True, parameterization="ddpm").out_channels == 2
