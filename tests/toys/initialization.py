"""Toy: every block is a scaled copy of a block of an ancestor, which is made once for all sizes."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import torch
from torch import nn

from fine_core.checkpoints.native import load_model, save_model
from fine_core.dit import DiT, DiTConfig, ModelSize
from trainables.initializations.base import Initialization, Setting
from trainables.jobs.context import JobContext, Result
from trainables.jobs.kind import JobKind, Kept, Role
from trainables.jobs.shapes import model_file_bytes
from trainables.specs.base import JobSpec
from trainables.specs.identity import spec
from trainables.specs.models import BaseModelSpec, InitializationSpec
from trainables.specs.options import Choice, Options, option
from trainables.storage.files import MODEL_FILE
from trainables.storage.store import Store
from trainables.training.phase import Phase


@spec("toy-ancestor")
class AncestorSpec(JobSpec):
    kind: ClassVar[str] = "toy-ancestor"
    model: DiTConfig
    seed: int = 0


@spec("toy-start")
class ToySpec(InitializationSpec):
    name: ClassVar[str] = "toy-start"
    ancestor: AncestorSpec
    scale: float

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.ancestor,)

    @property
    def details(self) -> dict[str, Any]:
        return {"scale": self.scale}


@spec("toy-start-options")
class ToyOptions(Options):
    group: ClassVar[str] = "toy-start"
    scale: float = option(1.0, "factor of the copied weights", search=Choice(name="scale", values=(0.5, 1.0)))


class AncestorKind(JobKind):
    name = "toy-ancestor"
    kept: ClassVar = Kept(file=MODEL_FILE, role=Role.INITIALIZE, seconds="make_s")

    def stage(self, job: AncestorSpec) -> str:
        return "source"

    def result_bytes(self, job: AncestorSpec) -> int:
        return model_file_bytes(job.model)

    def run(self, job: AncestorSpec, context: JobContext) -> Result:
        started = time.perf_counter()
        torch.manual_seed(job.seed)
        save_model(DiT(job.model), context.folder / MODEL_FILE)
        return Result(metrics={"make_s": time.perf_counter() - started})


class ToyRecipe:
    skips_parameters = False

    def __init__(self, job: BaseModelSpec, start: ToySpec, ancestor: DiT) -> None:
        self.job, self.start, self.ancestor = job, start, ancestor
        self.phases = (Phase(name="free", steps=job.training.steps, lr=job.training.lr),)

    def model_for(self, phase: int, previous: nn.Module | None) -> DiT:
        model = DiT(self.job.model)
        blocks = self.ancestor.blocks
        model.load_state_dict({k: v for k, v in self.ancestor.state_dict().items() if "blocks" not in k}, strict=False)
        for index, block in enumerate(model.blocks):
            scaled = {k: self.start.scale * v for k, v in blocks[index % len(blocks)].state_dict().items()}
            block.load_state_dict(scaled)
        return model

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


class Toy(Initialization):
    name = "toy-start"
    summary = "scaled copies of an ancestor's blocks"
    options = ToyOptions
    kinds = (AncestorKind(),)

    def spec(self, setting: Setting, options: Options | None) -> ToySpec:
        return ToySpec(ancestor=AncestorSpec(model=setting.largest), scale=options.scale)

    def refusal(self, setting: Setting, options: Options | None, size: ModelSize) -> str | None:
        width = setting.largest.size.width
        return None if size.width == width else f"it makes no width but the ancestor's, {width}"

    def recipe(self, job: BaseModelSpec, store: Store) -> ToyRecipe:
        (ancestor,) = job.needs
        return ToyRecipe(job, job.initialization, load_model(store.fetch(ancestor, MODEL_FILE), expect=ancestor.model))
