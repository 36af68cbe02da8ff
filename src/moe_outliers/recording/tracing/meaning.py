"""What a followed run means: the anatomy of the model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from moe_outliers.recording.anatomy import Anatomy, Argument, Block, Place, Site
from moe_outliers.recording.tracing.axes import MOVES
from moe_outliers.recording.tracing.contractions import MATRICES
from moe_outliers.recording.tracing.following import Following
from moe_outliers.recording.tracing.groups import Group, groups_of
from moe_outliers.recording.tracing.ledger import OUTSIDE
from moe_outliers.recording.tracing.routes import decisions_of
from moe_outliers.recording.tracing.sites import Sites
from moe_outliers.recording.tracing.trail import SAME, Call, Key, Value


class RefusedError(Exception):
    """A model cannot be measured; the message says why."""


def anatomy_of(model: Any, run: Following, output: Any) -> Anatomy:
    """Put together what a run has shown.

    Args:
        model: that ran.
        run: what was followed.
        output: of the model.

    Raises:
        RefusedError: if the model cannot be measured.
    """
    _refuse(run)
    unsure: list[str] = []
    groups = groups_of(run, unsure.append)
    for group in groups:
        if group.source == "stream" and group.point.root not in _stream(run, group.block):
            group.source = "computed"  # part of the stream, and something added to it
    decisions = decisions_of(model, run, groups)
    making = Sites(model, run, decisions)
    sites = making.of(groups)
    _refuse_reads(run, groups, sites)
    return Anatomy(
        model_type=model.config.model_type,
        width=next(group.entry.shape[-1] for group in groups if group.adds),
        body=run.blocks[0].frames[_common(run.blocks) - 1].path,
        embedding=run.embedding,
        blocks=_blocks(run, groups, sites),
        sites=tuple(sites),
        routings=tuple(decision.routing for decision in decisions),
        before=_used(run, -1),
        after=_used(run, len(run.blocks)),
        unsure=(*unsure, *making.unsure),
        **_head(model, run, output),
    )


def _refuse(run: Following) -> None:
    """Refuse a model whose blocks cannot be taken for a plain stack."""
    seen: set[str] = set()
    for call, (key, _) in zip(run.blocks, run.entries, strict=True):
        if call.path in seen:
            raise RefusedError(f"{call.path} runs more than once in a forward pass")
        seen.add(call.path)
        if not key:
            raise RefusedError(f"{call.path} is called without the residual stream")
        if _left(call) is None:
            raise RefusedError(f"{call.path} returns nothing of the residual stream")
    for addition in run.ledger.additions:
        if addition.block == OUTSIDE:
            path = addition.frames[-1].path
            raise RefusedError(f"{path} adds to the residual stream outside of the blocks")


def _refuse_reads(run: Following, groups: Sequence[Group], sites: Sequence[Site]) -> None:
    """Refuse a model whose mixers were not understood, or that hooks could not tell apart."""
    for group in groups:
        if group.mixing and not group.adds:
            raise RefusedError(
                f"{group.path} reads the residual stream and sees other positions, but what it "
                "makes was not seen to be added to the stream"
            )
        if not any(read.adds or read.steers for read in group.reads):
            raise RefusedError(
                f"{group.path} reads the residual stream, but what it makes was not seen to reach "
                "the stream again"
            )
    widths = {group.entry.shape[-1] for group in groups if group.adds}
    if not widths:
        raise RefusedError("nothing was seen to read the residual stream and to add to it")
    if len(widths) > 1:
        raise RefusedError(f"its sites have several widths: {sorted(widths)}")
    times = Counter(call.path for call in run.calls)
    for site in sites:
        for path in (site.norm, *(mixer.module for mixer in site.mixers)):
            if times[path] > 1:
                raise RefusedError(f"{path} runs {times[path]} times in a forward pass")


def _left(call: Call) -> tuple[Key, Value] | None:
    """Return the residual stream among what a block returns."""
    found = [(key, value) for key, value in call.outputs.items() if value.points]
    plain = [(key, value) for key, value in found if value.exact]
    return next(iter(plain or found), None)


def _common(blocks: Sequence[Call]) -> int:
    """Count the runs of modules that all blocks are within."""
    first = blocks[0].frames
    return sum(all(frame in call.frames for call in blocks) for frame in first)


def _stream(run: Following, number: int) -> set[int]:
    """Return the roots of all that the residual stream is on its way through a block."""
    left = _left(run.blocks[number])
    waiting = [run.entries[number][1]] + ([left[1]] if left else [])
    seen: set[int] = set()
    roots: set[int] = set()
    while waiting:
        value = waiting.pop()
        if value.points and id(value) not in seen:  # times a number, it has the same root
            seen.add(id(value))
            roots.add(value.root)
            waiting.extend(value.parents)
    return roots


# -- blocks --------------------------------------------------------------------------------------


def _blocks(run: Following, groups: Sequence[Group], sites: Sequence[Site]) -> tuple[Block, ...]:
    kinds: dict[Any, int] = {}
    blocks: list[Block] = []
    for number, call in enumerate(run.blocks):
        key, entry = run.entries[number]
        left = _left(call) or ((), entry)  # never: a block without is refused before
        mine = [site for site in sites if site.block == number]
        beside = [group for group in groups if group.block == number and not group.adds]
        largest = run.largest.get(number, [0, 0])
        blocks.append(
            Block(
                module=call.path,
                kind=kinds.setdefault(_look(call, mine), len(kinds)),
                enters=Place(call.path, "input", key),
                leaves=Place(call.path, "output", left[0]),
                gives=call.gives,
                overwrites=number in run.overwritten,
                parameters=_used(run, number),
                arguments=tuple(
                    Argument(place, value.depth, _returned(run, number, value), value.fixed)
                    for place, value in call.inputs.items()
                    if place != key
                ),
                between=_between(run, number),
                additive=_additive(run, number, groups),
                beside=tuple(dict.fromkeys(group.path for group in beside)),
                position_values=largest[0],
                pair_values=largest[1],
            )
        )
    return tuple(blocks)


def _look(call: Call, sites: Sequence[Site]) -> Any:
    """Describe a block without its number: equal for blocks that are built alike."""
    inside = len(call.path)
    parameters = tuple((n, tuple(p.shape), p.dtype) for n, p in call.module.named_parameters())
    looks = []
    for site in sites:
        mixers = tuple((mixer.module[inside:], mixer.kind) for mixer in site.mixers)
        looks.append((site.kind, site.source, site.norm[inside:], site.scaled, mixers))
    return parameters, tuple(looks)


def _used(run: Following, number: int) -> tuple[str, ...]:
    """Name the parameters that were used in a block, or before (-1) or after all.

    One that has several names is used by that of a module that ran there.
    """
    around = {frame.path for frame in run.blocks[0].frames}
    ran = {call.path for call in run.calls if _when(run, call) == number} | around
    found: list[str] = []
    for paths, blocks in run.used.items():
        if number in blocks:
            mine = [path for path in paths if path.rpartition(".")[0] in ran]
            found += mine or paths
    return tuple(sorted(found))


def _when(run: Following, call: Call) -> int:
    """Return the number of the block that a module ran in; as `Following.used` counts."""
    if call.block != OUTSIDE or call.number < run.blocks[0].number:
        return call.block
    return len(run.blocks)


def _returned(run: Following, number: int, value: Value) -> Place | None:
    """Find the block before a block that returned what it is called with."""
    for call in reversed(run.blocks[:number]):
        for key, other in call.outputs.items():
            if other.root == value.root:
                return Place(call.path, "output", key)
    return None


def _between(run: Following, number: int) -> tuple[str, ...]:
    """Name what happens to the stream between the block before and this one."""
    if number == 0:
        return ()
    left = _left(run.blocks[number - 1])
    entry = run.entries[number][1]
    if left is None:
        return ()
    found = []
    for value in entry.within():
        if value.root == left[1].root or value.depth < number - 1:
            break
        if value is not entry or entry.how != "stream":  # a new name for the same tensor
            found.append(value.how)
    return tuple(found)


def _additive(run: Following, number: int, groups: Sequence[Group]) -> str:
    """Say why a block is not its input plus what its mixers make; empty if it is."""
    for group in groups:
        if group.block == number and group.adds and group.mixer is None:
            return f"{group.path} has a mixer in its own code"
    made = {addition.result: addition for addition in run.ledger.additions}
    entry, left = run.entries[number][1], _left(run.blocks[number])
    value = entry if left is None else left[1]
    while value.root != entry.root:
        addition = made.get(value.root)
        if addition is None:
            return f"the stream goes through {value.how}"
        if not addition.plain:
            return f"{addition.frames[-1].path} multiplies the stream by more than one number"
        value = addition.main
    return ""


# -- what comes after -----------------------------------------------------------------------------


def _head(model: nn.Module, run: Following, output: Any) -> dict[str, Any]:
    """Find the last norm, the head, and what else happens to the logits."""
    logits = run.known(output["logits"]) if "logits" in output else None
    if logits is None:
        raise RefusedError("it returns no logits that are made of its residual stream")
    trail = list(logits.within())
    linear = next((value for value in trail if value.how in MATRICES), None)
    if linear is None:
        raise RefusedError("its logits are made by no linear map")
    after = [value.how for value in trail[: trail.index(linear)]]
    hidden = linear.parents[0]
    before: list[str] = []
    norm, read = "", hidden
    for value in hidden.within():
        point = next((point for point in value.points if value.root == point.root), None)
        if point is not None:
            before += ["mul"] if value.factor != SAME else []
            norm = point.frames[-1].path if point.kind != "stream" else ""
            read = point.fed or value
            break
        if not value.constant:
            before.append(value.how)
    left = _left(run.blocks[-1])
    head = next((call for call in run.calls if not call.inner and _returns(call, linear)), None)
    return {
        "vocabulary": logits.shape[-1],
        "last_norm": norm,
        "also_read": _also_read(run, logits),
        "reads_last": left is not None
        and (read.root, read.factor) == (left[1].root, left[1].factor),
        "head": "" if head is None else head.path,
        "before_head": tuple(name for name in reversed(before) if name not in MOVES),
        "after_head": tuple(name for name in reversed(after) if name not in MOVES),
    }


def _also_read(run: Following, logits: Value) -> tuple[str, ...]:
    """Name the blocks of which the logits are made beside what the last one returns as stream."""
    left = _left(run.blocks[-1])
    made = {value.root: call.path for call in run.blocks for value in call.outputs.values()}
    made |= {
        entry.root: call.path
        for call, (_, entry) in zip(run.blocks, run.entries, strict=True)
        if entry.root not in made
    }
    waiting, seen, found = [logits], set[int](), []
    while waiting:
        value = waiting.pop()
        if id(value) in seen or (left is not None and value.root == left[1].root):
            continue
        seen.add(id(value))
        if value.root in made:
            found.append(made[value.root])
        else:
            waiting.extend(value.parents)
    return tuple(sorted(set(found)))


def _returns(call: Call, value: Value) -> bool:
    return any(other.root == value.root for other in call.outputs.values())
