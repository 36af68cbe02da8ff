"""Weights as a checkpoint stores them: plain, or quantised values with their scales."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from moe_outliers.checkpoint.config import Quantisation
from moe_outliers.checkpoint.headers import Tensor

PLAIN = ("BF16", "F16", "F32", "F64")
"""Types of weights that are not quantised."""

FP8 = ("F8_E4M3", "F8_E5M2")
"""Types of weights that are quantised, one scale for each rectangular block."""

COMPANIONS = {
    "mxfp4": (("_blocks", "_scales"),),
    "fp8": (("", "_scale_inv"), (".weight", ".scale"), (".weight", ".qscale_weight")),
}
"""Endings of the tensors that together hold one quantised weight: its values, and their scales."""

ACTIVATION_SCALES = {"fp8": (".activation_scale", "_activation_scale")}
"""Endings of scales that belong to activations: weights are computed without them."""


@dataclass(frozen=True)
class Stored:
    """One weight of a checkpoint.

    Attributes:
        name: its name, without the ending of its companions.
        values, scales: where its values lie, and the scales of quantised ones.
        block: rows and columns that share one scale of FP8; None for any other weight.
    """

    name: str
    values: Tensor
    scales: Tensor | None = None
    block: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape: MXFP4 stores (expert, row, block, 16 bytes of two values)."""
        if self.scales is not None and self.values.dtype == "U8":
            experts, rows, blocks, pairs = self.values.shape
            return experts, blocks * pairs * 2, rows
        return self.values.shape


def weights(index: Mapping[str, Tensor], quantised: Quantisation | None) -> dict[str, Stored]:
    """Pair the values and scales of each weight of a checkpoint; leave out activations' scales."""
    method = quantised.method if quantised else ""
    scales = dict(_scales(index, method))
    taken = {companion for _, companion in scales.values()}
    endings = ACTIVATION_SCALES.get(method, ())
    found = {}
    for name, tensor in index.items():
        if name in scales:
            stem, companion = scales[name]
            found[stem] = Stored(stem, tensor, index[companion])
        elif name not in taken and not (endings and name.endswith(endings)):
            found[name] = Stored(name, tensor)
    return found


def _scales(index: Mapping[str, Tensor], method: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the name of quantised values, and with it the weight's name and that of its scales."""
    for of_values, of_scales in COMPANIONS.get(method, ()):
        for name, tensor in index.items():
            stem = name.removesuffix(of_values)
            there = name.endswith(of_values) and stem + of_scales in index
            # A tensor called `scale` is a scale only beside 8-bit values.
            if there and (of_scales in ("_scales", "_scale_inv") or tensor.dtype in FP8):
                yield name, (stem if method == "mxfp4" else name, stem + of_scales)


def checked(stored: Stored, quantised: Quantisation | None) -> Stored:
    """Make sure that a stored tensor is a weight, plain or quantised with its scales.

    Returns:
        The same, with the size of the blocks that share a scale.

    Raises:
        ValueError: if it is none, or its scales are not those of the blocks that config.json names.
    """
    values, scales = stored.values, stored.scales
    if scales is None:
        fits = values.dtype in PLAIN
    elif values.dtype == "U8":
        fits = scales.dtype == "U8" and (*scales.shape, 16) == values.shape
    else:
        kinds = (*PLAIN, "F8_E8M0", *(["U8"] if quantised and quantised.exponents else []))
        fits = values.dtype in FP8 and scales.dtype in kinds and len(values.shape) == 2
    if not fits:
        held = f", with scales {scales.dtype} {list(scales.shape)}" if scales else ""
        raise ValueError(
            f"{stored.name} is stored as {values.dtype} {list(values.shape)}{held}: these are no "
            "weights; the checkpoint is damaged, or quantised in a way that is not known here"
        )
    if scales is not None and values.dtype in FP8:
        return replace(stored, block=_block(stored.name, values, scales, quantised))
    return stored


def _block(
    name: str, values: Tensor, scales: Tensor, quantised: Quantisation | None
) -> tuple[int, int]:
    """Return how many rows and columns of a matrix share one scale.

    The size of the blocks is what config.json states, never the quotient of the two shapes: the
    last blocks of a matrix may be smaller than the others.

    Raises:
        ValueError: if the scales are neither one, nor one a row, nor one a block of that size.
    """
    rows, columns = values.shape
    if scales.shape in ((), (1,), (1, 1)):
        return rows, columns
    if scales.shape in ((rows,), (rows, 1)):
        return 1, columns
    stated = quantised.block if quantised else None
    said = "names none"
    if stated:
        grid = -(-rows // stated[0]), -(-columns // stated[1])
        if grid == scales.shape:
            return stated
        said = f"names {stated[0]} by {stated[1]}, which makes {list(grid)} scales"
    raise ValueError(
        f"{name} is stored as {values.dtype} {list(values.shape)}, with scales {scales.dtype} "
        f"{list(scales.shape)}: these are no weights as config.json describes them; of the blocks "
        f"that share a scale (weight_block_size) it {said}"
    )
