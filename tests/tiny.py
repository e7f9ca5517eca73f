"""Small specs and models that train in seconds."""

import torch

from fine_core.dit import DiT, ModelSize
from fine_core.evaluation.protocol import EvaluationSpec
from fine_core.initializers.fine.learngene import Learngene
from fine_core.retention import RetentionSchedule
from fine_core.sampling.sampler import SamplerSpec
from trainables.initializations.fine import LearngeneRecipe
from trainables.methods import transfer_method
from trainables.specs.base import TrainingSpec
from trainables.specs.models import FineSpec, LearngeneSpec, ScratchSpec, TrialSpec, model_config
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.transfers import BankSpec, RehearsalSpec, TransferSpec
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


def tiny_trial(method: str = "fine", *, steps: int = 8, sigma_steps: int = 4, seed: int = 0, **training) -> TrialSpec:
    fine = FineSpec(
        learngene=tiny_learngene(), sigma_init="linear", sigma_steps=sigma_steps, sigma_lr=1e-2, width_mode="nested"
    )
    return TrialSpec(
        initialization=fine if method == "fine" else ScratchSpec(),
        model=tiny_config(),
        dataset="digits",
        training=TrainingSpec(steps=steps, batch_size=16, **training),
        evaluation=EvaluationSpec(num_samples=20, sampler=SamplerSpec(sampling_steps=2), batch_size=8),
        extractor=ExtractorSpec(dataset="digits"),
        seed=seed,
    )


def tiny_rehearsal(schedule: str = "linear", **changes) -> RehearsalSpec:
    values = {"weighting": "sampling", "retention_weight": 0.5, **changes}
    source_ratio = 0.25 if values["retention_weight"] > 0 else None
    return RehearsalSpec(schedule=RetentionSchedule.parse(schedule), source_ratio=source_ratio, **values)


def tiny_bank(base: TrialSpec) -> BankSpec:
    return BankSpec(base=base, num_images=30, sampler=SamplerSpec(sampling_steps=2, guidance_scale=1.5), batch_size=8)


def tiny_transfer(method: str, *, steps: int = 6, target: str = "digits-inverted", **changes) -> TransferSpec:
    base = tiny_trial("fine")
    rehearsal = tiny_rehearsal() if transfer_method(method).rehearses else None
    spec = {
        "base": base,
        "method": method,
        "rehearsal": rehearsal,
        "bank": tiny_bank(base) if transfer_method(method).uses_bank else None,
        "gamma_span": 0.5 if transfer_method(method).uses_scales else None,
        "dataset": target,
        "training": TrainingSpec(steps=steps, batch_size=16, lr=1e-2),
        "evaluation": base.evaluation,
        "extractor": ExtractorSpec(dataset=target),
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
