"""Samples do not depend on how the work is split; guidance and every scheduler do what they say."""

import pytest
import torch

from fine_core.data.pixels import to_uint8
from fine_core.denoiser import LABEL
from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.evaluation.protocol import EvaluationSpec, Protocol
from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.parameterizations.ddpm import tables
from fine_core.randomness import stream_generator, stream_seed
from fine_core.sampling.draw import draw_batch, sample_images
from fine_core.sampling.sampler import SamplerSpec
from fine_core.sampling.schedulers import SAMPLERS, make_scheduler, samplers_for
from tests.unit.test_dit import randomized


@pytest.fixture(scope="module", params=[False, True], ids=["eps", "learned-variance"])
def model(request) -> DiT:
    size = ModelSize(depth=1, width=16, num_heads=2)
    torch.manual_seed(0)
    model = DiT(DiTConfig(size=size, input_size=4, in_channels=1, num_classes=3, learn_sigma=request.param)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_depends_on_its_index_and_on_nothing_drawn_before(model, sampler):
    spec, labels = SamplerSpec(sampler=sampler, sampling_steps=4), torch.arange(4) % 3
    first, second, again = (draw_batch(model, {LABEL: labels}, spec, seed=5, index=index) for index in (0, 1, 0))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert first.dtype == torch.float32 and first.shape == (4, 1, 4, 4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_called_by_its_name_and_steps_from_the_noise_to_the_data(name, model):
    assert SAMPLERS[name].name == name and set(SAMPLERS[name].schedulers) <= set(PARAMETERIZATIONS)
    scheduler = make_scheduler(name, model.config)
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) == 5 and (scheduler.timesteps.diff() < 0).all()


def test_every_parameterization_has_a_sampler():
    assert all(samplers_for(name) for name in PARAMETERIZATIONS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_network_is_sampled_to_its_one_image(name, model):
    """Where all data are one image, the best prediction leads to it from any noise."""
    image, config = torch.full((1, 1, 4, 4), 0.5), model.config

    class Perfect(torch.nn.Module):
        def forward(self, x, t, y):
            at = tables(x.device)
            signal, noise = (at[name][t.long()][:, None, None, None] for name in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"))
            eps = (x - signal * image) / noise
            return torch.cat([eps, -torch.ones_like(eps)], dim=1)[:, : config.out_channels]

    perfect = Perfect()
    perfect.config = config
    spec, labels = SamplerSpec(sampler=name, sampling_steps=20), torch.tensor([0, 1, 2])
    images = sample_images(perfect, {LABEL: labels}, spec, generator=stream_generator(0, "test"))
    torch.testing.assert_close(images, image.expand(3, -1, -1, -1), atol=0.02, rtol=0)


def test_guidance_reaches_the_images_and_scale_one_is_none(model):
    def draw(scale):
        generator = stream_generator(0, "test")
        return sample_images(
            model, {LABEL: torch.tensor([0, 1])}, SamplerSpec(sampling_steps=3, guidance_scale=scale), generator=generator
        )

    assert not torch.equal(draw(1.0), draw(4.0))
    null = {LABEL: torch.full((2,), model.config.num_classes)}
    generator = stream_generator(0, "test")
    unconditional = sample_images(model, null, SamplerSpec(sampling_steps=3, guidance_scale=4.0), generator=generator)
    plain = sample_images(model, null, SamplerSpec(sampling_steps=3), generator=stream_generator(0, "test"))
    torch.testing.assert_close(unconditional, plain)  # guiding the null class towards itself changes nothing


def test_bytes_are_those_of_the_public_code():
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]


def test_streams_differ_by_name_key_and_seed():
    seeds = {stream_seed(*key) for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1)]}
    assert len(seeds) == 5 and stream_seed(3, "x", 4) == stream_seed(3, "x", 4)


@pytest.mark.parametrize(("options", "message"), [({"sampler": "euler"}, "ddim"), ({"sampling_steps": 0}, "between 1")])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerSpec(**options)


def test_the_protocol_of_the_paper_is_that_of_the_released_code():
    """Against a loop over respaced betas, written from the papers: 25 of 1,000 timesteps from 0 to 999, guidance on three of
    four channels, the variance between beta and its posterior (arXiv 2102.09672, section 3.1 and equation 19)."""
    model = randomized(
        DiTConfig(size=ModelSize(depth=1, width=16, num_heads=2), input_size=4, patch_size=2, in_channels=4, num_classes=3),
        seed=3,
    ).eval()
    labels, steps, scale = torch.tensor([0, 2]), 25, 1.5
    spec = SamplerSpec(sampler="ddpm-dit", sampling_steps=steps, guidance_scale=scale)
    images = sample_images(model, {LABEL: labels}, spec, generator=torch.Generator().manual_seed(5))

    kept = [round(999 / (steps - 1) * index) for index in range(steps)]
    assert (kept[0], kept[-1], len(set(kept))) == (0, 999, steps)
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), signal[:-1]])
    betas = 1 - signal / before
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, 4, 4, generator=generator).double()
    null = torch.full_like(labels, 3)
    for index in reversed(range(steps)):
        t = torch.full((2,), float(kept[index]))
        with torch.no_grad():
            own, free = model(x.float(), t, labels).double(), model(x.float(), t, null).double()
        eps, fraction = own[:, :4].clone(), (own[:, 4:] + 1) / 2
        eps[:, :3] = free[:, :3] + scale * (own[:, :3] - free[:, :3])
        x0 = (x - (1 - signal[index]).sqrt() * eps) / signal[index].sqrt()
        mean = betas[index] * before[index].sqrt() / (1 - signal[index]) * x0
        mean = mean + (1 - before[index]) * (1 - betas[index]).sqrt() / (1 - signal[index]) * x
        x = mean
        if index:
            posterior = betas[index] * (1 - before[index]) / (1 - signal[index])
            log_variance = fraction * betas[index].log() + (1 - fraction) * posterior.log()
            x = x + (0.5 * log_variance).exp() * torch.randn(2, 4, 4, 4, generator=generator).double()
    torch.testing.assert_close(images.double(), x, atol=2e-4, rtol=2e-4)


def test_guidance_is_one_pass_of_twice_the_batch_and_none_without_labels(model):
    passes = []
    watched = model.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    spec = SamplerSpec(sampling_steps=3, guidance_scale=4.0)
    for labels, expected in ((torch.tensor([0, 1]), [4] * 3), (torch.full((2,), model.config.num_classes), [2] * 3)):
        passes.clear()
        sample_images(model, {LABEL: labels}, spec, generator=stream_generator(0, "test"))
        assert passes == expected
    watched.remove()


def test_a_precision_is_part_of_the_protocol_and_rounds_alone(model):
    def draw(precision):
        spec = SamplerSpec(sampling_steps=3, precision=precision)
        return sample_images(model, {LABEL: torch.tensor([0, 1])}, spec, generator=stream_generator(0, "test"))

    plain, rounded = draw("fp32"), draw("bf16")
    assert rounded.dtype == torch.float32 and not torch.equal(plain, rounded)
    assert (plain - rounded).norm() < 0.05 * plain.norm()
    evaluation = EvaluationSpec(num_samples=10, sampler=SamplerSpec(precision="bf16"))
    assert " | bf16 | " in str(Protocol.of(evaluation, extractor="x", reference="y"))


def test_out_of_memory_takes_fewer_samples_at_once(model, monkeypatch):
    labels, spec = torch.tensor([0, 1, 2, 0, 1]), SamplerSpec(sampling_steps=3, guidance_scale=2.0)
    whole = sample_images(model, {LABEL: labels}, spec, generator=stream_generator(0, "test"))
    sizes, forward = [], model.forward

    def limited(x, t, y):
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(x))
        return forward(x, t, y)

    monkeypatch.setattr(model, "forward", limited)
    images = sample_images(model, {LABEL: labels}, spec, generator=stream_generator(0, "test"))
    torch.testing.assert_close(images, whole, atol=1e-4, rtol=1e-4)
    assert sizes == [3, 3, 3, 1] * 3, "ten, five, then three at once"
    monkeypatch.setattr(model, "forward", lambda x, t, y: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError):
        sample_images(model, {LABEL: labels}, spec, generator=stream_generator(0, "test"))
