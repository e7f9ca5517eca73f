"""Procedural RGB scenes of any resolution: one solid on a textured floor before a wall, with depth, normals, edges and masks.

Solids are signed distance functions, found by sphere tracing (Hart, "Sphere tracing", The Visual Computer 1996).
World: x right, y up, z towards the camera. Shapes: N scenes, H image height = width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BACKGROUND, FLOOR, SOLID = 0, 1, 2  # values of the segmentation
CAMERA_HEIGHT, CAMERA_DISTANCE, CAMERA_PITCH, FOCAL_LENGTH = 1.3, 3.2, 0.3, 1.7
WALL_Z = -1.6
NUM_MARCH_STEPS, HIT_DISTANCE, NORMAL_STEP = 28, 8e-3, 1e-3
EDGE_DEPTH = 0.25  # smallest jump in depth that counts as an edge
OVERSAMPLING = 2  # colours are averaged over this many rays along each side of a pixel
SCENES_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Rendered scenes. images (N, 3, H, H) in [-1, 1]; depth (N, H, H) along the viewing axis; normals (N, 3, H, H), unit,
    in world axes; edges (N, H, H) bool; segmentation (N, H, H) with BACKGROUND, FLOOR, SOLID; labels (N,)."""

    images: Tensor
    depth: Tensor
    normals: Tensor
    edges: Tensor
    segmentation: Tensor
    labels: Tensor


def _length(*parts: Tensor) -> Tensor:
    return torch.stack(parts).norm(dim=0)


def _box(p: Tensor, x: float, y: float, z: float) -> Tensor:
    q = p.abs() - torch.tensor([x, y, z])
    return q.clamp(min=0).norm(dim=-1) + q.amax(dim=-1).clamp(max=0)


def _sphere(p: Tensor, radius: float, x: float = 0.0) -> Tensor:
    return (p - torch.tensor([x, 0.0, 0.0])).norm(dim=-1) - radius


def _cylinder(p: Tensor) -> Tensor:
    d = torch.stack([_length(p[..., 0], p[..., 2]) - 0.42, p[..., 1].abs() - 0.5], dim=-1)
    return d.clamp(min=0).norm(dim=-1) + d.amax(dim=-1).clamp(max=0)


def _cone(p: Tensor) -> Tensor:
    slope = math.hypot(0.55, 1.0)
    side = (_length(p[..., 0], p[..., 2]) - 0.55 * (0.5 - p[..., 1])) / slope
    return torch.maximum(side, -0.5 - p[..., 1])


def _torus(p: Tensor) -> Tensor:
    return _length(_length(p[..., 0], p[..., 1]) - 0.37, p[..., 2]) - 0.15


def _octahedron(p: Tensor) -> Tensor:
    return (p.abs().sum(dim=-1) - 0.6) / math.sqrt(3)


def _capsule(p: Tensor, radius: float = 0.26, half_length: float = 0.34) -> Tensor:
    x = p[..., 0] - p[..., 0].clamp(-half_length, half_length)
    return _length(x, p[..., 1], p[..., 2]) - radius


def _disc(p: Tensor) -> Tensor:
    return ((p / torch.tensor([0.6, 0.25, 0.6])).norm(dim=-1) - 1) * 0.25


def _cross(p: Tensor) -> Tensor:
    return torch.minimum(_box(p, 0.5, 0.16, 0.16), _box(p, 0.16, 0.5, 0.16))


def _dumbbell(p: Tensor) -> Tensor:
    return torch.minimum(torch.minimum(_sphere(p, 0.3, -0.36), _sphere(p, 0.3, 0.36)), _capsule(p, 0.12, 0.4))


SOLIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sphere": lambda p: _sphere(p, 0.5),
    "box": lambda p: _box(p, 0.42, 0.42, 0.42),
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "octahedron": _octahedron,
    "capsule": _capsule,
    "disc": _disc,
    "cross": _cross,
    "dumbbell": _dumbbell,
}


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Random parameters of each scene. The first dimension of every tensor is N."""

    position: Tensor  # (N, 3)
    scale: Tensor  # (N,)
    yaw: Tensor  # (N,)
    colors: Tensor  # (N, 3 surfaces, 3), indexed by the segmentation
    light: Tensor  # (N, 3)
    pattern: Tensor  # (N, 2): frequency and phase of the floor's stripes

    def rows(self, index: Tensor) -> _Layout:
        return _Layout(**{name: value[index] for name, value in vars(self).items()})


def _draw_layout(num_scenes: int, generator: torch.Generator) -> _Layout:
    u = torch.rand(num_scenes, 20, generator=generator)
    scale = 1.3 + 0.5 * u[:, 0]
    position = torch.stack([1.0 * u[:, 1] - 0.5, 0.5 * scale, 0.8 * u[:, 2] - 0.4], dim=1)
    hue = torch.stack([torch.zeros(num_scenes), 2.1 * torch.ones(num_scenes), 4.2 * torch.ones(num_scenes)], dim=1)
    shades = 0.5 + 0.35 * torch.cos(hue[:, None] + 6.3 * u[:, 3:6, None] + 0.3 * u[:, 6:15].reshape(-1, 3, 3))
    light = F.normalize(torch.stack([1.6 * u[:, 15] - 0.8, torch.ones(num_scenes), 0.4 + 0.6 * u[:, 16]], dim=1), dim=1)
    pattern = torch.stack([3.0 + 3.0 * u[:, 17], 6.3 * u[:, 18]], dim=1)
    return _Layout(position=position, scale=scale, yaw=6.3 * u[:, 19], colors=shades, light=light, pattern=pattern)


def render_scenes(labels: Tensor, solids: tuple[str, ...], *, image_size: int, generator: torch.Generator) -> Scenes:
    """Render one scene for each label (N,), an index into `solids`; everything else is drawn from `generator`."""
    layout = _draw_layout(len(labels), generator)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("images", "depth", "normals", "edges", "segmentation")}
    rows = []
    for kind, name in enumerate(solids):
        for chosen in (labels == kind).nonzero().squeeze(1).split(SCENES_AT_A_TIME):
            rows.append(chosen)
            some = layout.rows(chosen)
            fine_color, *_ = _render(SOLIDS[name], some, image_size * OVERSAMPLING)
            _, depth, normals, segmentation = _render(SOLIDS[name], some, image_size)
            parts["images"].append(F.avg_pool2d(fine_color, OVERSAMPLING) * 2 - 1)
            parts["depth"].append(depth)
            parts["normals"].append(normals)
            parts["segmentation"].append(segmentation)
            parts["edges"].append(_edges(segmentation, depth))
    order = torch.cat(rows).argsort()
    return Scenes(labels=labels, **{name: torch.cat(values)[order] for name, values in parts.items()})


def _rays(image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Origin (3,), unit directions (H, H, 3), first row on top, and the viewing axis (3,)."""
    centers = (torch.arange(image_size) + 0.5) / image_size * 2 - 1
    y, x = torch.meshgrid(-centers, centers, indexing="ij")
    sin, cos = math.sin(CAMERA_PITCH), math.cos(CAMERA_PITCH)
    directions = torch.stack([x, y * cos - FOCAL_LENGTH * sin, -y * sin - FOCAL_LENGTH * cos], dim=-1)
    return torch.tensor([0.0, CAMERA_HEIGHT, CAMERA_DISTANCE]), F.normalize(directions, dim=-1), torch.tensor([0.0, -sin, -cos])


def _about_y(angle: Tensor) -> Tensor:
    """Rotations (N, 3, 3) that take row vectors from the world to a solid turned by `angle` (N,)."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, zero, -sin, zero, one, zero, sin, zero, cos], dim=1).reshape(-1, 3, 3)


def _render(solid: Callable[[Tensor], Tensor], layout: _Layout, image_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colours (N, 3, H, H) in [0, 1], depth (N, H, H), normals (N, 3, H, H) and segmentation (N, H, H)."""
    origin, directions, axis = _rays(image_size)
    rotation = _about_y(layout.yaw)  # (N, 3, 3)
    scale = layout.scale[:, None, None]
    # Rays are transformed once into the solid's coordinates, where it has unit size; lengths along a ray keep their unit.
    local_origin = ((origin - layout.position) / layout.scale[:, None])[:, None] @ rotation  # (N, 1, 3)
    local_directions = directions @ rotation[:, None] / scale[..., None]  # (N, H, H, 3)

    def distance(along: Tensor) -> Tensor:
        return solid(local_origin[:, None] + along[..., None] * local_directions) * scale

    travelled = gap = torch.zeros(len(scale), image_size, image_size)
    for _ in range(NUM_MARCH_STEPS):
        gap = distance(travelled)
        travelled = travelled + gap
    to_floor = torch.where(directions[..., 1] < 0, -origin[1] / directions[..., 1], math.inf)
    to_wall = (WALL_Z - origin[2]) / directions[..., 2]
    behind = torch.minimum(to_floor, to_wall).expand_as(travelled)
    hit = (gap < HIT_DISTANCE) & (travelled < behind)
    far = torch.where(to_floor < to_wall, FLOOR, BACKGROUND).expand_as(hit)
    segmentation = torch.where(hit, SOLID, far)
    points = origin + torch.where(hit, travelled, behind)[..., None] * directions
    depth = (points - origin) @ axis

    surface = local_origin[:, None] + travelled[..., None] * local_directions
    offsets = NORMAL_STEP * torch.eye(3)
    gradient = torch.stack([solid(surface + offset) - solid(surface - offset) for offset in offsets], dim=-1)
    solid_normals = F.normalize(gradient, dim=-1) @ rotation[:, None].mT
    flat = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])[far]  # normals of the wall and of the floor
    normals = torch.where(hit[..., None], solid_normals, flat)

    color = layout.colors[torch.arange(len(hit))[:, None, None], segmentation]  # (N, H, H, 3)
    frequency, phase = layout.pattern[:, 0, None, None], layout.pattern[:, 1, None, None]
    stripes = torch.sin(frequency * (points[..., 0] + 0.5 * points[..., 2]) + phase) * torch.sin(frequency * points[..., 2])
    bands = torch.sin(9.0 * points[..., 1] + phase)
    texture = torch.where(segmentation == FLOOR, 1 + 0.35 * stripes, torch.where(hit, 1 + 0.15 * bands, 1.0))
    lambert = (normals * layout.light[:, None, None]).sum(dim=-1).clamp(min=0)
    shaded = color * (texture * (0.35 + 0.65 * lambert))[..., None]
    return shaded.clamp(0, 1).permute(0, 3, 1, 2), depth, normals.permute(0, 3, 1, 2), segmentation


def _edges(segmentation: Tensor, depth: Tensor) -> Tensor:
    """Pixels whose right or lower neighbour lies on another surface or at a clearly different depth."""
    edges = torch.zeros_like(segmentation, dtype=torch.bool)
    for dim in (1, 2):
        length = segmentation.shape[dim] - 1
        other_surface = segmentation.narrow(dim, 0, length) != segmentation.narrow(dim, 1, length)
        step = (depth.narrow(dim, 0, length) - depth.narrow(dim, 1, length)).abs()
        edges.narrow(dim, 0, length).logical_or_(other_surface | (step > EDGE_DEPTH))
    return edges
