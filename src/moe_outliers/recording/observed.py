"""Finds the parts of a decoder that are measured by watching it run once, without its weights.

A twin of the model is made on the meta device and called with a few token ids: no number is
computed. What its modules hand to each other says where the residual stream is read and written.
Nothing depends on the name of a family, module or argument.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from moe_outliers.recording.anatomy import Anatomy
from moe_outliers.recording.tracing.answers import Answering
from moe_outliers.recording.tracing.following import Following
from moe_outliers.recording.tracing.meaning import RefusedError, anatomy_of
from moe_outliers.recording.tracing.trail import Value

PRIMES = (11, 13, 17, 19, 23, 29, 31, 37)
"""Numbers of token ids to run with: one is taken that divides no size of a parameter."""

FAR = 1 << 20
"""A position that no window reaches from the first."""

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
"""What holds the decoder blocks of a model."""


_known: dict[tuple[type, str], Anatomy] = {}


def observe(model: Any) -> Anatomy:
    """Find out what a decoder consists of, in a few seconds and without its weights.

    What is asked a second time of the same class and configuration is known.

    Args:
        model: a causal language model of transformers; only its class and its configuration are
            used, so it does not matter where its weights are.

    Returns:
        Its parts, by the paths of its modules. What was seen and not understood is in `unsure`.

    Raises:
        ValueError: if it is no decoder that can be measured; the message says why.
    """
    key = type(model), model.config.to_json_string(use_diff=False)
    if key not in _known:
        try:
            _known[key] = anatomy_of(*_followed(model))
        except RefusedError as reason:
            where = f"{model.config.model_type} ({type(model).__name__})"
            raise ValueError(f"{where} cannot be measured: {reason}") from None
    return _known[key]


def _followed(model: Any) -> tuple[Any, Following, Any]:
    """Run a twin of the model, and follow its residual stream.

    Raises:
        RefusedError: if it does not run.
    """
    try:
        twin = _twin(model)
        tokens = _tokens(twin)
        ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
        with torch.no_grad(), torch.device("meta"):
            with _own_masks(None), Answering(tokens):
                blocks = _blocks(twin, ids)
            following = Following(twin, _embedding(twin), blocks, ids)
            with _own_masks(following.tell), following:
                return twin, following, twin(input_ids=ids, use_cache=False)
    except RefusedError:
        raise
    except Exception as error:  # whatever the code of a model raises without numbers
        said = f"{type(error).__name__}: {error}"[:300]
        raise RefusedError(
            f"transformers {transformers.__version__} does not run it on token ids alone without "
            f"its weights: {said}"
        ) from error


def _twin(model: Any) -> Any:
    """Make the same model without weights, and with code that needs no numbers."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    with torch.device("meta"), Answering(PRIMES[0]), torch.no_grad():
        twin = type(model)(config).eval()
    for module in twin.modules():
        if isinstance(getattr(module, "config", None), transformers.PretrainedConfig):
            module.config._experts_implementation_internal = "batched_mm"
    return twin


def _tokens(twin: nn.Module) -> int:
    sizes = {size for tensor in twin.parameters() for size in tensor.shape}
    for prime in PRIMES:
        if all(size % prime for size in sizes):
            return prime
    raise RefusedError(f"each of {PRIMES} divides a size of a parameter")


def _embedding(twin: Any) -> nn.Module:
    try:
        embedding = twin.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        embedding = None
    if not isinstance(embedding, nn.Module):
        raise RefusedError("it does not say what embeds its token ids (get_input_embeddings)")
    return embedding


def _blocks(twin: nn.Module, ids: Tensor) -> list[nn.Module]:
    """Find the decoder blocks: the entries of the largest list of modules that runs.

    Raises:
        RefusedError: if there is no such list.
    """
    ran: set[nn.Module] = set()

    def note(module: nn.Module, args: Any) -> None:
        ran.add(module)

    handles = [module.register_forward_pre_hook(note) for module in twin.modules()]
    try:
        twin(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found: list[tuple[int, list[nn.Module]]] = []
    for module in twin.modules():
        entries = [entry for entry in module.children() if entry in ran]
        if isinstance(module, LISTS) and entries:
            found.append((sum(p.numel() for p in module.parameters()), entries))
    if not found:
        raise RefusedError("it has no list of modules that could be its decoder blocks")
    return max(found, key=lambda one: one[0])[1]


@contextmanager
def _own_masks(tell: Callable[[Tensor, Value], None] | None) -> Iterator[None]:
    """Let transformers take masks that are made here: they need no numbers.

    Args:
        tell: takes each mask, and whether it leaves out positions that are far away.
    """

    def mask(batch_size: int, q_length: int, kv_length: int, *offsets: int, **more: Any) -> Tensor:
        shape = (batch_size, 1, q_length, kv_length)
        eager = torch.zeros(shape, dtype=more.get("dtype", torch.float32), device="meta")
        if tell is not None:
            tell(eager, Value(shape, constant=True, windowed=_windowed(more)))
        return eager

    before = dict(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping)
    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = mask
    try:
        yield
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS._local_mapping = before


def _windowed(more: dict[str, Any]) -> bool:
    """Tell whether a mask hides the first position from one that is far away."""
    with torch._C.DisableTorchFunction():
        first, far = torch.zeros((), dtype=torch.long), torch.tensor(FAR)
        try:
            return not bool(more["mask_function"](first, first, far, first))
        except Exception:  # it asks tensors that are not there
            return more.get("local_size") is not None
