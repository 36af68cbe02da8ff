"""What a norm does, found by feeding it known inputs: its kind, gain, offset and epsilon.

Nothing is read from the names of classes, attributes or parameters. A norm is a module whose output
is x = gain * z + offset for every input h, feature by feature, where z is one of

    rms    z = h / sqrt(mean(h^2) + eps)
    layer  z = (h - mean(h)) / sqrt(mean((h - mean(h))^2) + eps)

A `gated` norm multiplies z by something that depends on h itself, so that it has no fixed gain.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 1024.0
"""An input of this size drowns every epsilon; it is a power of two, so that roots are exact."""

CLOSE = 1e-4
"""Relative deviation that is still the same: norms compute in float32 whatever they are given."""

SMALLEST_EXPONENT = -30
"""Inputs down to 2 to this power are tried: an epsilon under 1e-18 counts as 0."""


INFINITE = "makes something infinite of a finite input"


@dataclass(frozen=True, eq=False)
class Norm:
    """What a norm does.

    Attributes:
        kind: rms, layer or gated.
        gain: (feature,), float32; None where it is gated.
        offset: (feature,), float32; None where it is gated.
        eps: what is added to the mean square; NaN where it is gated.
    """

    kind: str
    gain: Tensor | None
    offset: Tensor | None
    eps: float


def normalised(h: Tensor, kind: str, eps: float) -> Tensor:
    """Return z, a norm's own value before gain and offset, in the data type of h.

    Args:
        h: (…, feature), what the norm reads.
        kind: rms or layer.
        eps: what is added to the mean square.
    """
    if kind == "layer":
        h = h - h.mean(-1, keepdim=True)
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


@torch.no_grad()
def gain_and_offset(module: nn.Module, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a norm's gain and offset, each (feature,), float32, without waiting for the device.

    They are those of `probe_norm`, of a module that is known to be a norm with fixed gain.

    Args:
        module: the norm; its parameters must be there.
        width: number of features that it reads.
        device: that holds its parameters.
    """
    gain, offset = _measured(_bare(module, _cast(torch.float64)), _signs(width, device))
    return gain.float(), offset.float()


def look_of(module: nn.Module) -> Any:
    """Describe a norm without the values of its parameters: equal for norms of one kind."""
    plain = (bool, int, float, str, torch.dtype)
    settings = {key: held for key, held in vars(module).items() if isinstance(held, plain)}
    tensors = [*module.named_parameters(), *module.named_buffers()]
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors)
    return type(module), tuple(sorted(settings.items())), shapes, repr(module)


@torch.no_grad()
def probe_norm(module: nn.Module, width: int, dtype: torch.dtype = torch.float32) -> Norm:
    """Find out what a norm does, by what it makes of known inputs.

    Args:
        module: the norm; its parameters must be there. It is not changed, and its hooks are not
            called.
        width: number of features that it reads.
        dtype: of the activations that the model hands it: some norms take their epsilon from it.

    Returns:
        The norm. Gain and offset are the parameters' values to the last bit wherever the norm
        computes nothing but their product with z (or with 1 + weight) and the sum.

    Raises:
        ValueError: if the module is no norm of a kind that is known here; the message says why.
    """
    if width % 2:
        raise ValueError(f"reads an odd number of features ({width})")
    bare = _bare(module, _cast(torch.float64))
    device = next(iter([*module.parameters(), *module.buffers()]), torch.empty(0)).device
    signs = _signs(width, device)
    gain, offset = _measured(bare, signs)
    if not (gain.isfinite().all() and offset.isfinite().all()):
        raise ValueError(INFINITE)
    kind = _kind(bare, gain, offset)
    if kind == "gated":
        return Norm(kind, None, None, float("nan"))
    found = Norm(kind, gain.float(), offset.float(), _rounded(_shrunk(bare, gain, offset, signs)))
    return replace(found, eps=_proven(found, _bare(module, _cast(dtype)), signs, dtype))


def kind_of(module: nn.Module, width: int) -> str:
    """Return the kind of norm that a module is, by what it does with made-up parameters.

    Args:
        module: its parameters may be on the meta device.
        width: number of features that it reads.

    Returns:
        rms, layer or gated; empty if it is no norm.
    """
    random = torch.Generator().manual_seed(0)

    def made_up(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        return (
            torch.rand(tensor.shape, generator=random, dtype=torch.float64).to(tensor.dtype) + 0.5
        )

    try:
        return probe_norm(_bare(module, made_up), width).kind
    except ValueError:
        return ""


def _bare(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a module, with what it holds changed, and without its hooks."""
    twin = copy.copy(module)
    twin.__dict__ = {key: value for key, value in module.__dict__.items() if key != "forward"}
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        setattr(twin, hooks, OrderedDict())
    twin._parameters = {
        name: None if held is None else nn.Parameter(change(held.detach()), requires_grad=False)
        for name, held in module._parameters.items()
    }
    twin._buffers = {
        name: None if held is None else change(held) for name, held in module._buffers.items()
    }
    twin._modules = {
        name: None if child is None else _bare(child, change)
        for name, child in module._modules.items()
    }
    return twin


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            raise ValueError("the parameters of the norm are not there")
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return cast


def _signs(width: int, device: torch.device) -> Tensor:
    """Return an input of mean 0 and mean square 1: z is the input itself, for both kinds."""
    signs = torch.ones(width, dtype=torch.float64, device=device)
    signs[1::2] = -1.0
    return signs


def _measured(bare: nn.Module, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Return gain and offset, float64, by what a norm makes of 0 and of large inputs."""
    inputs = torch.stack([torch.zeros_like(signs), LARGE * signs, -LARGE * signs])
    offset, plus, minus = _ran(bare, inputs)
    return torch.where(offset.any(), (plus - minus) / 2, plus) * signs, offset


def _called(module: nn.Module, h: Tensor) -> Tensor:
    """Return what a module makes of one or several rows of features, in float64."""
    x = _ran(module, h)
    if not x.isfinite().all():
        raise ValueError(INFINITE)
    return x


def _ran(module: nn.Module, h: Tensor) -> Tensor:
    """As `_called`, whatever comes out."""
    try:
        x = module(h.reshape(1, -1, h.shape[-1]))
    except Exception as error:  # whatever a module raises that is no norm
        raise ValueError(f"does not run on one tensor alone: {error}") from error
    if not isinstance(x, Tensor) or x.numel() != h.numel() or not x.is_floating_point():
        raise ValueError("does not return one tensor of the shape that it reads")
    return x.reshape(h.shape).double()


def _trials(like: Tensor) -> Tensor:
    """Return rows with another mean and another spread each, large enough to drown an epsilon."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn((4, len(like)), generator=random, dtype=torch.float64)
    rows = rows * torch.tensor([1.0, 3.0, 0.5, 2.0])[:, None] + torch.tensor([0, 1, -2, 5])[:, None]
    return LARGE * rows.to(like.device)


def _kind(bare: nn.Module, gain: Tensor, offset: Tensor) -> str:
    """Tell the kind of a norm by inputs at which the kinds differ."""
    h = _trials(gain)
    x = _called(bare, h)
    size = gain.abs().max() + offset.abs().max()
    for kind in ("rms", "layer"):
        found = gain * normalised(h, kind, 0.0) + offset
        if (x - found).abs().max() <= CLOSE * size * h.shape[-1] ** 0.5:
            if not size:
                raise ValueError("its output is 0 whatever it reads")
            return kind
    if _gated(bare, h, x):
        return "gated"
    raise ValueError("its output is not gain * z + offset, for no kind of z that is known")


def _gated(bare: nn.Module, h: Tensor, x: Tensor) -> bool:
    """Tell whether an output is z times something: 0 where z is 0, and blind to the input's size.

    So it is with z of the kind rms; a gated LayerNorm is not told from other things.
    """
    blind = (_called(bare, h / LARGE) - x).abs().max() <= 10 * CLOSE * x.abs().max()
    holed = h.clone()
    holed[:, ::3] = 0.0
    y = _called(bare, holed)
    return bool(blind and not y[:, ::3].any() and (y[:, 1::3] != 0).float().mean() > 0.9)


def _proven(found: Norm, own: nn.Module, signs: Tensor, dtype: torch.dtype) -> float:
    """Return the epsilon in the model's data type, by inputs so small that it counts.

    A norm that is given none takes that of its data type, or of the one it computes in.

    Args:
        found: the norm, with the epsilon that it has in float64.
        own: the module, in the data type.
        signs: (feature,), an input of mean 0 and mean square 1.
        dtype: the data type.
    """
    gain, offset = found.gain, found.offset
    if gain is None or offset is None:
        return found.eps
    sizes = [2.0**power for power in range(0, SMALLEST_EXPONENT, -2)]
    h = torch.stack([signs * size for size in sizes]).to(dtype)
    x = _called(own, h)
    step = torch.finfo(dtype).eps
    for eps in (found.eps, step, torch.finfo(torch.float32).eps):
        made = gain * normalised(h.double(), found.kind, eps) + offset
        if ((x - made).abs() <= 8 * step * (gain.abs() + offset.abs()) + 1e-30).all():
            return eps
    raise ValueError(f"its epsilon is none that is added to the mean square ({found.eps:.3g})")


def _shrunk(bare: nn.Module, gain: Tensor, offset: Tensor, signs: Tensor) -> float:
    """Solve gain * t / sqrt(t^2 + eps) for eps, at the first t where eps is most of the root."""
    largest = gain.abs().argmax()
    for power in range(0, SMALLEST_EXPONENT, -1):
        size: float = 2.0**power
        x = _called(bare, size * signs) - offset
        ratio = (x * signs / gain)[largest].item()
        if ratio < 0.7:
            return float(size**2 * (1 / ratio**2 - 1)) if ratio > 0 else float("nan")
    return 0.0


def _rounded(value: float) -> float:
    """Return the short decimal, or the power of two, that a measured value stands for."""
    if value > 0:
        power = 2.0 ** round(torch.tensor(value, dtype=torch.float64).log2().item())
        for short in (float(f"{value:.1e}"), float(f"{value:.3e}"), power):
            if abs(short - value) <= CLOSE * value:
                return short
    return value
