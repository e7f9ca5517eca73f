"""What every metric of the registry keeps to, whichever it is."""

import importlib
import pkgutil

import pytest
import torch

from fine_core.evaluation import metrics as package
from fine_core.evaluation.features import Features
from fine_core.evaluation.metrics import DEFAULT_METRICS, METRICS
from fine_core.evaluation.metrics.asked import MetricUnavailable, compute_metrics, needs_of, obtainable
from fine_core.evaluation.metrics.base import IN_WORDS, OF_SAMPLES_ALONE, Metric
from fine_core.evaluation.reference import Reference, ReferenceBuilder
from fine_core.evaluation.samples import SampleBuilder, Samples, fields_of

EQUAL = {"fid": 0, "sfid": 0, "kid": 0, "mind": 0, "precision": 1, "recall": 1, "density": 1, "coverage": 1}
EQUAL["inception_score"] = 4  # it knows no reference; these images are surely of one of four classes each
TOLERANCE = {"kid": 0.1, "inception_score": 0.3, "density": 0.01}  # subsets, splits, and points on the surface of a ball
ALL = frozenset(IN_WORDS)
each = pytest.mark.parametrize("name", METRICS)


def images(num_images: int, *, seed: int, shift: float = 0.0, spread: float = 1.0) -> Features:
    """Features that are normal in every direction; the further from the reference's, the less sure their classes."""
    generator = torch.Generator().manual_seed(seed)
    pooled = shift + spread * torch.randn(num_images, 6, generator=generator)
    certainty = 8 / (1 + abs(shift) + abs(spread - 1))
    classes = torch.randint(4, (num_images,), generator=generator)
    return Features(pooled=pooled, spatial=pooled.repeat(1, 2), logits=certainty * torch.eye(4)[classes])


def reference_of(features: Features) -> Reference:
    builder = ReferenceBuilder()
    builder.add(features)
    return builder.build()


def samples_of(features: Features, *, fields=ALL, batch_size: int = 64, num_workers: int = 1) -> Samples:
    """As so many workers take them in, each its own batches."""
    parts = [SampleBuilder(fields) for _ in range(num_workers)]
    for batch, rows in enumerate(torch.arange(len(features)).split(batch_size)):
        own = Features(pooled=features.pooled[rows], spatial=features.spatial[rows], logits=features.logits[rows])
        parts[batch % num_workers].add(own, batch=batch)
    return SampleBuilder.join(parts)


def score(name: str, features: Features, *, seed: int = 0) -> float:
    return METRICS[name].compute(reference_of(images(300, seed=0)), samples_of(features), seed=seed)


def better(name: str, a: float, b: float) -> bool:
    return a < b if METRICS[name].lower_is_better else a > b


def test_every_metric_of_the_package_is_registered_under_a_name_of_its_own():
    modules = [importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)]
    defined = [value for module in modules for value in vars(module).values() if isinstance(value, Metric)]
    assert sorted(metric.name for metric in defined) == sorted(METRICS) and set(DEFAULT_METRICS) <= set(METRICS)
    assert len({metric.label for metric in defined}) == len(defined)
    assert all(name.isidentifier() and set(METRICS[name].needs) <= ALL for name in METRICS)


@each
def test_an_equal_set_has_the_known_value(name):
    assert score(name, images(300, seed=0)) == pytest.approx(EQUAL[name], abs=TOLERANCE.get(name, 1e-6))


@each
def test_worse_sets_score_worse(name):
    near = score(name, images(250, seed=1))
    for worse in ({"shift": 1.5}, {"shift": 4.0}, {"spread": 0.01, "shift": 3.0}):
        assert better(name, near, score(name, images(250, seed=1, **worse))), worse


@each
def test_a_score_is_one_finite_number_that_its_seed_determines(name):
    fakes = images(250, seed=1, shift=0.5)
    value = score(name, fakes, seed=3)
    assert isinstance(value, float) and value == score(name, fakes, seed=3)
    assert score(name, fakes, seed=4) == pytest.approx(value, rel=0.5), "another seed moves it a little"
    state = torch.random.get_rng_state()
    score(name, fakes)
    assert torch.equal(torch.random.get_rng_state(), state), "and the global stream is left alone"


@each
def test_a_metric_reads_no_more_than_it_says(name):
    needs = needs_of([name])
    fakes = samples_of(images(250, seed=1), fields=needs)
    whole = reference_of(images(300, seed=0))
    kept = Reference(**{field: getattr(whole, field) if field in needs else None for field in whole.fields})
    value = METRICS[name].compute(kept, fakes, seed=0)
    assert value == METRICS[name].compute(whole, samples_of(images(250, seed=1)), seed=0)


@each
@pytest.mark.parametrize("missing", IN_WORDS)
def test_a_need_that_is_missing_is_said_in_one_line(name, missing):
    left = ALL - {missing}
    if missing not in METRICS[name].needs:
        assert obtainable((name,), of_samples=left, of_reference=left) == (name,)
        return
    with pytest.raises(MetricUnavailable) as caught:
        obtainable((name,), of_samples=left, of_reference=ALL)
    remedy = "fronts are by FID" if name == "fid" else f"leave {name} out of the metrics"
    expected = f"{name} needs {IN_WORDS[missing]}, which the extractor does not give; {remedy}"
    assert str(caught.value) == expected
    if missing not in OF_SAMPLES_ALONE:
        with pytest.raises(MetricUnavailable, match=f"^{name} needs .* of the reference, which does not have them; {remedy}"):
            obtainable((name,), of_samples=ALL, of_reference=left)


@each
def test_several_workers_agree_with_one(name):
    fakes, reference = images(250, seed=1, shift=0.5), reference_of(images(300, seed=0))
    alone = METRICS[name].compute(reference, samples_of(fakes, batch_size=250), seed=0)
    for num_workers in (1, 2, 9):  # of nine, some have no batch
        shared = METRICS[name].compute(reference, samples_of(fakes, batch_size=40, num_workers=num_workers), seed=0)
        assert shared == pytest.approx(alone, rel=1e-6)


def test_of_the_default_metrics_those_are_computed_that_can_be_had_and_no_others():
    fakes = images(50, seed=1)
    given = Features(pooled=fakes.pooled, spatial=fakes.spatial, logits=None)
    of = {"of_samples": fields_of(given), "of_reference": {"pooled"}}
    assert obtainable(DEFAULT_METRICS, **of) == ("fid",)
    with pytest.raises(MetricUnavailable, match="mind needs the features of single images of the reference"):
        obtainable((*DEFAULT_METRICS, "mind"), **of)
    with pytest.raises(MetricUnavailable, match="inception_score needs class logits, which the extractor does not give"):
        obtainable(("fid", "inception_score"), **of)
    reference = reference_of(images(60, seed=0))
    found = compute_metrics(("fid", "mind"), reference, samples_of(fakes), num_samples=50, seed=0)
    assert list(found) == ["fid", "mind"]
    with pytest.raises(ValueError, match="the protocol asks for 60 samples, 50 were drawn"):
        compute_metrics(("fid",), reference, samples_of(fakes), num_samples=60, seed=0)


def test_only_what_is_needed_is_kept():
    kept = samples_of(images(50, seed=1), fields=needs_of(["fid", "inception_score"]))
    assert kept.pooled is not None and kept.logits is not None and kept.spatial is None and kept.features is None
