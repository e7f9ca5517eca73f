"""Diffusion transformer (DiT) of any size, with the parameter names and numerics of the public DiT checkpoints.

Peebles & Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, section 3 (adaLN-Zero variant).

Shapes: N batch, C channels, H image height = width, T tokens, D width, P patch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import torch
from timm.layers import Attention, Mlp, PatchEmbed, freq_bands
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fine_core.parameterizations import PARAMETERIZATIONS

FREQUENCY_DIM = 256  # width of the sinusoidal timestep features
MLP_RATIO = 4
MAX_DEPTH = 1000  # a typing error must not fill the memory while parameters are counted


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Size of a DiT: `depth` blocks of `width` channels with `num_heads` attention heads.

    Raises ValueError if a field is not positive or `depth` above MAX_DEPTH, if `width` does not divide into `num_heads` heads,
    or if it is no multiple of 4 (the 2-D sin-cos positions need four equal parts).
    """

    depth: int
    width: int
    num_heads: int

    def __post_init__(self) -> None:
        _require(self.depth >= 1, f"depth is {self.depth}; it must be at least 1")
        _require(self.depth <= MAX_DEPTH, f"depth is {self.depth}; it must be at most {MAX_DEPTH}")
        _require(self.num_heads >= 1, f"num_heads is {self.num_heads}; it must be at least 1")
        _require(
            self.width >= 1 and self.width % self.num_heads == 0,
            f"width {self.width} is not divisible by {self.num_heads} heads; it must be a multiple of num_heads",
        )
        _require(self.width % 4 == 0, f"width {self.width} is not a multiple of 4, which sin-cos positions need")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def name(self) -> str:
        return f"L{self.depth}-D{self.width}"

    def at_width(self, width: int) -> ModelSize:
        """The same depth at another width; heads keep their size."""
        return ModelSize(depth=self.depth, width=width, num_heads=width // self.head_dim)


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Everything that fixes a DiT's parameter shapes and numerics.

    `input_size` is the height and width of the (latent) image. `timestep_freq_shift` is 0 in the public checkpoints;
    diffusers' `DiTTransformer2DModel` uses 1: it divides the frequencies' exponent by one less. `position_scale`
    divides the coordinates of the sin-cos positions: 2 for a model that was trained at half the resolution.
    `parameterization` names what the network predicts (see `fine_core.parameterizations`). `has_null_label` is False for a
    model that was trained without dropped labels: the last row of its table means nothing, and it cannot be guided.

    Raises ValueError if a number is not positive, the patches do not fit, or the parameterization is unknown.
    """

    size: ModelSize
    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    num_classes: int = 1000
    learn_sigma: bool = True
    timestep_freq_shift: int = 0
    position_scale: int = 1
    # Ids and files leave out a field that has the value that it was introduced with: those of before stay as they are.
    parameterization: str = field(default="ddpm", metadata={"introduced": "ddpm"})
    has_null_label: bool = field(default=True, metadata={"introduced": True})

    def __post_init__(self) -> None:
        for name in ("input_size", "patch_size", "in_channels", "num_classes", "position_scale"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        _require(
            self.input_size % self.patch_size == 0,
            f"input_size {self.input_size} is not divisible by patch_size {self.patch_size}",
        )
        _require(
            self.parameterization in PARAMETERIZATIONS,
            f"unknown parameterization {self.parameterization!r}; choose one of {', '.join(PARAMETERIZATIONS)}",
        )

    @property
    def num_tokens(self) -> int:
        return (self.input_size // self.patch_size) ** 2

    @property
    def out_channels(self) -> int:
        return PARAMETERIZATIONS[self.parameterization].out_channels(self.in_channels, learn_sigma=self.learn_sigma)

    def at_resolution(self, input_size: int) -> DiTConfig:
        """The same model for images that are larger by an integer factor f: PE(i, j) of the small grid becomes PE(i/f, j/f)
        (DiffFit, arXiv 2304.06648, section 3.3). The weights stay valid. Raises ValueError for other sizes."""
        _require(
            input_size % self.input_size == 0,
            f"images of {input_size} pixels are no whole multiple of the model's {self.input_size}",
        )
        return replace(self, input_size=input_size, position_scale=self.position_scale * input_size // self.input_size)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)  # (N, T, D)


class TimestepEmbedder(nn.Module):
    """Timesteps (N,) to embeddings (N, D): cosine and sine features, then a two-layer MLP."""

    def __init__(self, width: int, freq_shift: int) -> None:
        super().__init__()
        self.freq_shift = freq_shift
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_DIM, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = FREQUENCY_DIM // 2
        # Same order of operations as in the public code: at t = 999 a different rounding changes the output.
        exponents = -math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / (half - self.freq_shift)
        angles = t[:, None].float() * exponents.exp()
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (N, 256)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Labels (N,) to embeddings (N, D). The last row of the table is the null class of classifier-free guidance."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the conditioning (adaLN-Zero)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, hidden_features=MLP_RATIO * width, act_layer=partial(nn.GELU, approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_attn.unsqueeze(1) * self.attn(_modulate(self.norm1(x), shift_attn, scale_attn))
        return x + gate_mlp.unsqueeze(1) * self.mlp(_modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Tokens (N, T, D) to patches (N, T, P * P * out_channels)."""

    def __init__(self, width: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


def position_table(config: DiTConfig) -> Tensor:
    """Fixed 2-D sin-cos positions (1, T, D): [sin x, cos x, sin y, cos y], x along a row."""
    coordinates = torch.arange(config.input_size // config.patch_size, dtype=torch.float32) / config.position_scale
    y, x = torch.meshgrid(coordinates, coordinates, indexing="ij")
    bands = freq_bands(config.size.width // 4, temperature=10_000.0, step=1)
    parts = [wave(axis.flatten()[:, None] * bands) for axis in (x, y) for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1).unsqueeze(0)


def _recomputed(block: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    """A block that keeps its input alone, and computes the rest again in the backward pass."""
    weights = dict(block.named_parameters())  # those of this pass: a FINE model lends its blocks other ones each time
    return checkpoint(lambda x, c: functional_call(block, weights, (x, c)), x, c, use_reentrant=False)


class DiT(nn.Module):
    """Diffusion transformer. `forward` draws no random numbers: the training loop drops labels.

    With `recomputes` (activation checkpointing) blocks take less memory in training, and a third more time.
    """

    recomputes: bool = False

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        size = config.size
        self.x_embedder = PatchEmbed(config.input_size, config.patch_size, config.in_channels, size.width)
        self.t_embedder = TimestepEmbedder(size.width, config.timestep_freq_shift)
        self.y_embedder = LabelEmbedder(config.num_classes, size.width)
        self.pos_embed = nn.Parameter(position_table(config), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(size.width, size.num_heads) for _ in range(size.depth))
        self.final_layer = FinalLayer(size.width, config.patch_size, config.out_channels)
        self._initialize()

    def _initialize(self) -> None:
        """DiT's own initialization: Xavier linears, zero adaLN and output (every block starts as the identity)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        for modulation in [*(block.adaLN_modulation for block in self.blocks), self.final_layer.adaLN_modulation]:
            nn.init.zeros_(modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict what the model's parameterization asks for: the noise (and variance, if learned) for DDPM.

        x: noisy images (N, C, H, H); t: what the parameterization tells of the time (N,), for DDPM the timestep, 0 = data side;
        y: labels (N,), `num_classes` = null class.
        Returns (N, out_channels, H, H).
        """
        x = self.x_embedder(x) + self.pos_embed  # (N, T, D)
        c = self.t_embedder(t) + self.y_embedder(y)  # (N, D)
        for block in self.blocks:
            x = _recomputed(block, x, c) if self.recomputes and torch.is_grad_enabled() else block(x, c)
        return self._unpatchify(self.final_layer(x, c))

    def at_resolution(self, input_size: int) -> DiT:
        """The same weights for images of another size (see `DiTConfig.at_resolution`). Returns self for its own size."""
        if input_size == self.config.input_size:
            return self
        model = DiT(self.config.at_resolution(input_size)).to(self.pos_embed.device)
        model.load_state_dict({**self.state_dict(), "pos_embed": model.pos_embed})
        return model

    def _unpatchify(self, x: Tensor) -> Tensor:
        p, channels = self.config.patch_size, self.config.out_channels
        g = self.config.input_size // p
        x = x.reshape(x.shape[0], g, g, p, p, channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], channels, g * p, g * p)


@lru_cache(maxsize=4096)
def count_parameters(config: DiTConfig) -> int:
    """Parameters of a dense DiT, including the fixed position table. Allocates nothing."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DiT(config).parameters())


def count_macs(config: DiTConfig) -> int:
    """Multiply-accumulates of one forward pass of one image (matrix products, both attention products included)."""
    T, D, L = config.num_tokens, config.size.width, config.size.depth
    patch = config.patch_size**2
    block = T * (4 + 2 * MLP_RATIO) * D * D + 2 * T * T * D + 6 * D * D
    embedders = T * patch * config.in_channels * D + FREQUENCY_DIM * D + D * D
    final = 2 * D * D + T * D * patch * config.out_channels
    return L * block + embedders + final


def _preset(depth: int, width: int, num_heads: int, patch_size: int) -> DiTConfig:
    return DiTConfig(size=ModelSize(depth=depth, width=width, num_heads=num_heads), patch_size=patch_size)


DIT_SIZES: dict[str, DiTConfig] = {
    f"DiT-{name}/{patch_size}": _preset(depth, width, num_heads, patch_size)
    for name, depth, width, num_heads in [
        ("S", 12, 384, 6),
        ("B", 12, 768, 12),
        ("L", 24, 1024, 16),
        ("XL", 28, 1152, 16),
    ]
    for patch_size in (2, 4, 8)
}
