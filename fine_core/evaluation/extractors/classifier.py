"""A small classifier whose penultimate features replace Inception's on the built-in datasets.

Scores on these features are not comparable with Inception FID: every protocol states the extractor's name and hash.
"""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fine_core.checkpoints.native import load_strictly, load_tensors, save_tensors
from fine_core.data.pixels import to_uint8
from fine_core.data.registry import DatasetInfo, ImageSet, dataset_info, load_dataset
from fine_core.randomness import stream_generator, stream_seed

NUM_FEATURES = 64
EPOCHS, BATCH_SIZE, PEAK_LR = 20, 64, 3e-3


class ClassifierExtractor(nn.Module):
    """uint8 images (N, C, H, H) to features (N, 64) and the logits (N, classes) computed from them."""

    num_features = NUM_FEATURES

    def __init__(self, dataset: str) -> None:
        super().__init__()
        self.dataset = dataset
        info: DatasetInfo = dataset_info(dataset)
        self.trunk = nn.Sequential(
            nn.Conv2d(info.channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (info.image_size // 2) ** 2, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, info.num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images.float() / 127.5 - 1)
        return {"features": features, "logits": self.head(features)}

    @property
    def name(self) -> str:
        """Name and hash of the weights, as stated in protocols."""
        digest = hashlib.sha256()
        for _, tensor in sorted(self.state_dict().items()):
            digest.update(tensor.cpu().numpy().tobytes())
        return f"{self.dataset}-classifier-{NUM_FEATURES}@{digest.hexdigest()[:12]}"


def train_extractor(dataset: str, *, seed: int) -> tuple[ClassifierExtractor, float]:
    """Train the classifier on the `pool` split; returns it with its accuracy on `held_out`. Deterministic per machine."""
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(seed, "extractor-init"))
        model = ClassifierExtractor(dataset)
    train, held_out = load_dataset(dataset, "pool"), load_dataset(dataset, "held_out")
    images = to_uint8(train.images)
    total_steps = EPOCHS * -(-len(train) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=total_steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(train), generator=stream_generator(seed, "extractor-epoch", epoch))
        for rows in order.split(BATCH_SIZE):
            loss = F.cross_entropy(model(images[rows])["logits"], train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    _normalize_features(model, images)
    return model.eval(), classification_accuracy(model, held_out)


@torch.no_grad()
def _normalize_features(model: ClassifierExtractor, images: Tensor) -> None:
    """Scale the features to mean square 1, which KID's cubic kernel expects; the predictions stay the same."""
    scale = model(images)["features"].square().mean().sqrt()
    model.trunk[-2].weight /= scale
    model.trunk[-2].bias /= scale
    model.head.weight *= scale


@torch.no_grad()
def classification_accuracy(model: ClassifierExtractor, data: ImageSet) -> float:
    predictions = model(to_uint8(data.images))["logits"].argmax(dim=1)
    return (predictions == data.labels).float().mean().item()


def save_extractor(model: ClassifierExtractor, path: str | os.PathLike) -> None:
    save_tensors(path, model.state_dict(), kind="classifier-extractor", config={"dataset": model.dataset})


def load_extractor(path: str | os.PathLike) -> ClassifierExtractor:
    """Load an extractor. Raises CheckpointError if the file is damaged or of another kind."""
    tensors, config = load_tensors(path, kind="classifier-extractor")
    with torch.device("meta"):
        model = ClassifierExtractor(config["dataset"])
    load_strictly(model, tensors, path)
    return model.eval()
