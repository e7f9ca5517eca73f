"""Small specs that train in seconds."""

from fine_core.dit import ModelSize
from fine_core.evaluation import EvaluationSpec
from fine_core.sampling import SamplerSpec
from trainables.spec import (
    ExtractorSpec,
    FineSpec,
    LearngeneSpec,
    ScratchSpec,
    TrainingSpec,
    TrialSpec,
    model_config,
)


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
