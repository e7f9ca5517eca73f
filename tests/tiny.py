"""Small specs and models that train in seconds."""

import torch

from fine_core.dit import DiT, ModelSize
from fine_core.evaluation.protocol import EvaluationSpec
from fine_core.initializers.fine.learngene import Learngene
from fine_core.sampling.sampler import SamplerSpec
from sweeps.planning.points import PlannedPoint
from trainables.jobs.learngene import LearngeneRecipe
from trainables.jobs.run import run_job
from trainables.methods import transfer_method
from trainables.specs.base import TrainingSpec
from trainables.specs.models import BaseModelSpec, FineSpec, LearngeneSpec, ScratchSpec, model_config
from trainables.specs.options import Options
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.scores import ScoreSpec, null_label
from trainables.specs.transfers import BankSpec, TransferSpec
from trainables.storage.store import Store
from trainables.training.context import LocalContext


def tiny_config(depth: int = 2, width: int = 16):
    return model_config("digits", ModelSize(depth=depth, width=width, num_heads=width // 8), patch_size=2)


def tiny_learngene(steps: int = 8, **training) -> LearngeneSpec:
    return LearngeneSpec(
        dataset="digits",
        model=tiny_config(depth=3),
        rank=16,
        nested_widths=(8,),
        training=TrainingSpec(steps=steps, batch_size=16, **training),
    )


def tiny_base(method: str = "fine", *, steps: int = 8, sigma_steps: int = 4, seed: int = 0, **training) -> BaseModelSpec:
    fine = FineSpec(
        learngene=tiny_learngene(), sigma_init="linear", sigma_steps=sigma_steps, sigma_lr=1e-2, width_mode="nested"
    )
    return BaseModelSpec(
        initialization=fine if method == "fine" else ScratchSpec(),
        model=tiny_config(),
        dataset="digits",
        training=TrainingSpec(steps=steps, batch_size=16, **training),
        seed=seed,
    )


TINY_EVALUATION = EvaluationSpec(num_samples=20, sampler=SamplerSpec(sampling_steps=2), batch_size=8)


def tiny_score(scored, **changes) -> ScoreSpec:
    """The score of a model on its own dataset; of one without, on the digits."""
    dataset = getattr(scored, "dataset", "digits")
    values = {"evaluation": TINY_EVALUATION, "extractor": ExtractorSpec(dataset=dataset), **changes}
    return ScoreSpec(scored=scored, **values)


def tiny_point(model, *, forgetting: bool = True) -> PlannedPoint:
    score = tiny_score(model)
    if model.base is model or not forgetting or model.model.input_size != model.base.model.input_size:
        return PlannedPoint(model=model, score=score)
    digits = {"evaluation": null_label(TINY_EVALUATION), "extractor": ExtractorSpec(dataset="digits")}
    after, before = tiny_score(model, **digits), tiny_score(model.base, **digits)
    return PlannedPoint(model=model, score=score, forgetting=after, forgetting_before=before)


def compute(job, store: Store | str, context: LocalContext, *, every: int = 4, served=None):
    """Run one job in this process; returns its record."""
    store = store if isinstance(store, Store) else Store(store)
    run_job(job, store, context, checkpoint_every_steps=every, served=served)
    return store.record(job)


def tiny_options(method: str, **values) -> tuple[Options, ...]:
    """A method's options: a quarter of each batch is rehearsed at half the weight, unless values by plain names say else."""
    rehearsed = {"retention_weight": 0.5, "source_ratio": 0.25, **values}
    kinds = transfer_method(method).options
    return tuple(
        kind(**{item.name: rehearsed[item.name] for item in kind.fields() if item.name in rehearsed}).canonical()
        for kind in kinds
    )


def tiny_bank(base: BaseModelSpec) -> BankSpec:
    return BankSpec(base=base, num_images=30, sampler=SamplerSpec(sampling_steps=2, guidance_scale=1.5), batch_size=8)


def tiny_transfer(method: str, *, steps: int = 6, target: str = "digits-inverted", **changes) -> TransferSpec:
    base, own = tiny_base("fine"), {}
    for name in {item.name for kind in transfer_method(method).options for item in kind.fields()} & set(changes):
        own[name] = changes.pop(name)
    options = tiny_options(method, **own)
    spec = {
        "base": base,
        "method": method,
        "options": options,
        "bank": tiny_bank(base) if transfer_method(method).uses_bank(options) else None,
        "dataset": target,
        "training": TrainingSpec(steps=steps, batch_size=16, lr=1e-2),
        "seed": 0,
    }
    return TransferSpec(**{**spec, **changes})


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """A model without zeros: through a fresh model's zero output layer most parameters would get no gradient."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_dit(**config) -> DiT:
    return randomize(DiT(tiny_config(**config))).eval()


def random_learngene() -> Learngene:
    return Learngene.from_model(randomize(LearngeneRecipe(tiny_learngene()).model_for(0, None)))


def output(model, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 1, 8, 8, generator=generator)
    with torch.no_grad():
        return model(x, torch.tensor([0, 10, 400, 700, 999]), torch.tensor([0, 3, 9, 10, 1]))


class Killed(Exception):
    """Stands for a process that dies right after a checkpoint."""


class DyingContext(LocalContext):
    def __init__(self, folder, *, after_reports: int) -> None:
        super().__init__(folder)
        self.left = after_reports

    def report(self, metrics, checkpoint) -> None:
        super().report(metrics, checkpoint)
        self.left -= 1
        if self.left == 0:
            raise Killed


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
