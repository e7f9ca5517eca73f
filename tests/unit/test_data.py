"""Datasets: domains made of the same real digits, and scenes whose maps agree with what is rendered."""

import pytest
import torch

from fine_core.data.registry import DATASETS, SPLITS, load_dataset
from fine_core.data.shapes import BACKGROUND, FLOOR, SOLID, SOLIDS, render_scenes

SMALL = [name for name in DATASETS if "shapes-all" not in name and not name.endswith("-32")]  # the others render for long


@pytest.mark.parametrize("name", SMALL)
def test_every_dataset_is_what_its_entry_says(name):
    info = DATASETS[name]
    train, pool, held_out = (load_dataset(name, split) for split in SPLITS)
    for part in (train, pool, held_out):
        assert part.images.shape[1:] == (info.channels, info.image_size, info.image_size)
        assert part.images.min() >= -1 and part.images.max() <= 1 and part.images.dtype == torch.float32
        assert part.labels.unique().tolist() == list(range(info.num_classes))
    limit = info.train_per_class
    assert len(train) == (len(pool) if limit is None else limit * info.num_classes)
    assert set(map(hash, map(str, train.images[:5].tolist()))) <= set(map(hash, map(str, pool.images.tolist())))
    assert info.features_of is None or DATASETS[info.features_of].image_size == info.image_size


def test_domains_are_the_same_images_changed():
    digits, inverted = load_dataset("digits", "pool").images, load_dataset("digits-inverted", "pool").images
    assert torch.equal(inverted, -digits)
    rotated = load_dataset("digits-rotated-few", "pool").images
    assert torch.equal(rotated.rot90(-1, dims=(2, 3)), digits)
    large = load_dataset("digits-16", "pool").images
    small_again = torch.nn.functional.interpolate(large, scale_factor=0.5, mode="area")
    assert (small_again - digits).abs().mean() < 0.1


def scenes(image_size: int = 24, kinds: int = len(SOLIDS), seed: int = 0):
    labels = torch.arange(3 * kinds) % kinds
    return render_scenes(labels, tuple(SOLIDS), image_size=image_size, generator=torch.Generator().manual_seed(seed))


def test_scenes_have_every_map_and_every_surface():
    s = scenes()
    n = len(s.labels)
    assert s.images.shape == (n, 3, 24, 24) and s.depth.shape == s.edges.shape == s.segmentation.shape == (n, 24, 24)
    for surface in (BACKGROUND, FLOOR, SOLID):
        assert ((s.segmentation == surface).flatten(1).sum(dim=1) > 5).all()
    assert torch.allclose(s.normals.norm(dim=1), torch.ones(n, 24, 24), atol=1e-4)
    assert (s.depth > 0).all() and s.edges.any() and not s.edges.all()


def test_maps_agree_with_each_other():
    s = scenes()
    floor, wall = s.segmentation == FLOOR, s.segmentation == BACKGROUND
    assert (s.normals[:, 1][floor] == 1).all() and (s.normals[:, 2][wall] == 1).all()
    changes = s.segmentation[:, :, 1:] != s.segmentation[:, :, :-1]
    assert s.edges[:, :, :-1][changes].all(), "a change of surface is an edge"
    facing = (s.normals * torch.tensor([0.0, 0.3, 0.95])[:, None, None]).sum(dim=1)[s.segmentation == SOLID]
    assert (facing > -0.2).float().mean() > 0.97, "visible surfaces face the camera"


def test_what_is_drawn_at_random_is_independent():
    from fine_core.data.shapes import _draw_layout

    layout = _draw_layout(4000, torch.Generator().manual_seed(0))
    drawn = torch.stack([
        layout.yaw, layout.scale, layout.position[:, 0], layout.position[:, 2], layout.pattern[:, 0], layout.pattern[:, 1],
        *layout.colors.mean(dim=2).T, layout.light[:, 0],
    ])  # fmt: skip
    bins = drawn.argsort(dim=1).argsort(dim=1) * 5 // 4000  # a kind of dependence that no correlation shows would still
    for i in range(len(drawn)):
        for j in range(i):
            together = torch.zeros(5, 5).index_put((bins[i], bins[j]), torch.ones(4000), accumulate=True)
            assert ((together - 160).square() / 160).sum() < 70, (i, j)  # chi-squared with 16 degrees of freedom


def test_a_sphere_is_where_geometry_puts_it():
    s = render_scenes(torch.zeros(20, dtype=torch.long), ("sphere",), image_size=64, generator=torch.Generator().manual_seed(1))
    shapes = (s.segmentation == SOLID).float()
    height, width = shapes.amax(dim=2).sum(dim=1), shapes.amax(dim=1).sum(dim=1)
    assert (height / width - 1).abs().max() < 0.2, "round"
    area = shapes.sum(dim=(1, 2))
    assert (area / (height * width / 4 * torch.pi) - 1).abs().max() < 0.1


def test_the_seed_fixes_a_scene_and_larger_pictures_show_the_same_one():
    assert torch.equal(scenes().images, scenes().images) and not torch.equal(scenes().images, scenes(seed=1).images)
    small = torch.nn.functional.avg_pool2d(scenes(image_size=48).images, 2)
    assert (small - scenes().images).abs().mean() < 0.03


def test_unknown_dataset_is_named():
    with pytest.raises(ValueError, match="unknown dataset 'cats'"):
        load_dataset("cats", "train")
