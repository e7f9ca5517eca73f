"""One conformance suite for every initialization."""

import copy
from dataclasses import replace

import pytest
import torch

from fine_core.data.registry import load_dataset
from fine_core.dit import ModelSize
from tests.tiny import DyingContext, Killed, compute, random_dit, same, tiny_config
from trainables.initializations import INITIALIZATIONS, Setting, initialization
from trainables.initializations.inheriting import Inheriting
from trainables.jobs.inputs import publish_source, source_spec
from trainables.jobs.kind import Role
from trainables.jobs.registry import JOB_KINDS, kind_of
from trainables.specs.base import TrainingSpec
from trainables.specs.identity import from_json, to_json
from trainables.specs.inherited import InheritedSpec
from trainables.specs.models import BaseModelSpec, InitializationSpec
from trainables.specs.options import from_values
from trainables.storage.files import INHERITED_FILE
from trainables.storage.store import Store
from trainables.training.batches import DenoisingBatches
from trainables.training.context import LocalContext
from trainables.training.loop import train

# Options that make an initialization's artifacts and phases take seconds, by their whole names.
QUICK = {"fine.sigma_steps": 4, "fine.als_sweeps": 2, "per-layer-svd.sigma_steps": 4, "wave.scaler_steps": 4}
QUICK |= {"ligo.growth_steps": 4, "sws.stages": 2, "heur-lg.blocks": 1, "auto-lg.blocks": 2}
STEPS = 8


@pytest.fixture(params=INITIALIZATIONS)
def start(request):
    return INITIALIZATIONS[request.param]


def setting_for(start, *, source=None) -> Setting:
    return Setting(
        dataset="digits",
        largest=tiny_config(depth=3),
        smallest=tiny_config(depth=2 if source is None else 3),
        widths=(8, 16),
        training=TrainingSpec(steps=STEPS, batch_size=16),
        source=source,
        source_steps=6,
    )


def options_for(start):
    return None if start.options is None else from_values(start.options, QUICK)


def base_model(start, setting, size: ModelSize | None = None, seed: int = 0) -> BaseModelSpec:
    asked = [size or ModelSize(depth=2, width=16, num_heads=2)]
    return BaseModelSpec(
        initialization=start.spec(setting, options_for(start)),
        model=replace(setting.largest, size=start.sizes(setting, options_for(start), asked)[0]),
        dataset=setting.dataset,
        training=setting.training_for(start.steps(setting, options_for(start), STEPS)),
        seed=seed,
    )


@pytest.fixture
def made(start, tmp_path_factory):
    """An initialization, a base model of it, and a store with all that this needs."""
    store, source = Store(tmp_path_factory.mktemp("store")), None
    if start.needs_source:
        given = random_dit(depth=3)
        source = source_spec(given)
        publish_source(source, given, store)
    job = base_model(start, setting_for(start, source=source))
    for need in in_order(job):
        if not need.is_given:
            compute(need, store, LocalContext(f"{store.root}/contexts/{need.id}"))
    return start, job, store


def in_order(job) -> list:
    """All that a job needs, each after what it needs itself."""
    found = {}
    for need in job.needs:
        found |= {other.id: other for other in in_order(need)} | {need.id: need}
    return list(found.values())


def trained(start, job, store, context, every: int = 3):
    data = load_dataset(job.dataset, "train")
    batches = DenoisingBatches(data, job.training, null_label=10, seed=job.data_seed, device=torch.device("cpu"))
    recipe = start.recipe(job, store)
    return train(recipe, batches=batches, training=job.training, run=context, checkpoint_every_steps=every)


def test_its_name_is_its_specs_and_what_it_needs_has_kinds(made):
    start, job, _ = made
    assert start.name == job.initialization.name and initialization(start.name) is start and start.summary
    assert all(need.is_given or kind_of(need) is JOB_KINDS[need.kind] for need in in_order(job))
    assert {kind.name for kind in start.kinds} <= set(JOB_KINDS)
    again = from_json(InitializationSpec, to_json(job.initialization))
    assert again == job.initialization and from_json(BaseModelSpec, to_json(job)).id == job.id


def test_the_steps_of_its_phases_are_those_of_the_training(made):
    start, job, store = made
    assert sum(phase.steps for phase in start.recipe(job, store).phases) == job.training.steps
    with_seed = base_model(start, setting_for(start, source=getattr(job.initialization, "source", None)), seed=1)
    assert with_seed.id != job.id and with_seed.needs == job.needs, "one artifact serves all seeds"


def test_it_starts_alike_every_time_and_no_two_blocks_share_storage(made):
    start, job, store = made
    first, second = (start.recipe(job, store).model_for(0, None) for _ in range(2))
    assert same(first, second)
    model, _ = trained(start, job, store, LocalContext(f"{store.root}/run"))
    pointers = [p.data_ptr() for block in model.blocks for p in block.parameters()]
    assert len(set(pointers)) == len(pointers) and model.config == job.model


def test_interrupted_and_resumed_equals_uninterrupted(made, tmp_path):
    start, job, store = made
    if job.training.steps == 0:
        pytest.skip("it takes no step")
    expected, _ = trained(start, job, store, LocalContext(tmp_path / "whole"))
    with pytest.raises(Killed):
        trained(start, job, store, DyingContext(tmp_path / "killed", after_reports=2))
    assert same(expected, trained(start, job, store, LocalContext(tmp_path / "killed"))[0])


def test_what_is_frozen_in_a_phase_does_not_move(made, tmp_path):
    start, job, store = made
    recipe = start.recipe(job, store)
    model = recipe.model_for(0, None)
    frozen = {name: copy.deepcopy(p) for name, p in model.named_parameters() if not p.requires_grad}
    recipe.phases = recipe.phases[:1]
    recipe.model_for = lambda phase, previous: model
    data = load_dataset(job.dataset, "train")
    batches = DenoisingBatches(data, job.training, null_label=10, seed=0, device=torch.device("cpu"))
    run = LocalContext(tmp_path / "run")
    train(recipe, batches=batches, training=job.training, run=run, checkpoint_every_steps=10)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_stored_bytes_are_those_that_are_predicted(made, tmp_path):
    start, job, store = made
    record = compute(job, store, LocalContext(tmp_path / "run"))
    kept = kind_of(job).kept
    assert kind_of(job).result_bytes(job) == record.files[kept.file].bytes == record.metrics["serve_bytes"]
    files = [(need, kind_of(need).kept) for need in job.needs]
    shared = [store.record(n).files[k.file].bytes for n, k in files if k is not None and k.role is Role.INITIALIZE]
    assert record.metrics["initialize_bytes"] == sum(shared)
    for need in job.needs:
        if isinstance(need, InheritedSpec):
            assert kind_of(need).result_bytes(need) == store.record(need).files[INHERITED_FILE].bytes


def test_what_its_artifacts_took_is_charged_to_it_with_the_ancestor(made):
    _, job, store = made
    for need in job.needs:
        if isinstance(need, InheritedSpec):
            metrics = store.record(need).metrics
            assert metrics["one_off_steps"] == 6, "the steps of the ancestor, or its own"
            trained = store.record(need.ancestor or need).metrics
            assert metrics["one_off_s"] >= trained["train_s"] > 0


def test_sizes_that_it_cannot_make_are_refused_in_one_line_and_the_others_start(start):
    setting = setting_for(start, source=source_spec(random_dit(depth=3)) if start.needs_source else None)
    asked = [ModelSize(depth=depth, width=width, num_heads=width // 8) for depth, width in ((1, 8), (2, 16), (5, 16), (3, 32))]
    made = start.sizes(setting, options_for(start), asked)
    for size in asked:
        reason = start.refusal(setting, options_for(start), size)
        assert reason is None or ("\n" not in reason and len(reason) > 10)
        assert start.needs_source or (size in made) == (reason is None)


def test_free_steps_come_on_top_of_those_of_the_coefficients(start):
    setting = setting_for(start, source=source_spec(random_dit(depth=3)) if start.needs_source else None)
    spec = start.spec(setting, options_for(start))
    free = start.steps(replace(setting, counts_free_steps=True), options_for(start), STEPS)
    assert start.name == "given" or free == STEPS + spec.coefficient_steps
    assert start.name == "given" or start.steps(setting, options_for(start), STEPS) == STEPS


def test_a_given_model_is_inherited_from_without_any_step(start, tmp_path):
    store, given = Store(tmp_path / "store"), random_dit(depth=3)
    source = source_spec(given)
    publish_source(source, given, store)
    if not isinstance(start, Inheriting):
        pytest.skip("it inherits from nothing")
    job = base_model(start, setting_for(start, source=source), ModelSize(depth=3, width=16, num_heads=2))
    (inherited,) = job.needs
    assert inherited.needs == (source,) and inherited.total_steps == 0
    record = compute(inherited, store, LocalContext(tmp_path / "context"))
    assert record.metrics["one_off_steps"] == 0
    model = start.recipe(job, store).model_for(0, None)
    assert model.config == job.model and finite(model)


def finite(model) -> bool:
    return all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_an_unknown_one_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="unknown initialization 'magic'; choose from fine, scratch, he, "):
        initialization("magic")
