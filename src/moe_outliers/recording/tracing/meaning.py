"""What a followed run means: the anatomy of the model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from moe_outliers.recording.anatomy import (
    Anatomy,
    Argument,
    Block,
    Mixer,
    MixerKind,
    Place,
    Site,
    SiteKind,
)
from moe_outliers.recording.exceptions import WINDOWED
from moe_outliers.recording.tracing.axes import MOVES
from moe_outliers.recording.tracing.contractions import MATRICES
from moe_outliers.recording.tracing.following import Following
from moe_outliers.recording.tracing.groups import Group, groups_of
from moe_outliers.recording.tracing.ledger import OUTSIDE
from moe_outliers.recording.tracing.routes import (
    Decision,
    decisions_of,
    readers_of,
    routing_of,
)
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
        if group.mixing and not group.adds:
            raise RefusedError(
                f"{group.path} reads the residual stream and sees other positions, but what it "
                "makes was not seen to be added to the stream"
            )
    decisions = decisions_of(run, groups)
    sites = _sites(model, run, groups, decisions, unsure)
    if not sites:
        raise RefusedError("nothing was seen to read the residual stream and to add to it")
    _refuse_shared(run, sites)
    widths = {group.entry.shape[-1] for group in groups if group.adds}
    if len(widths) > 1:
        raise RefusedError(f"its sites have several widths: {sorted(widths)}")
    head = _head(model, run, output)
    return Anatomy(
        model_type=model.config.model_type,
        width=widths.pop(),
        body=run.blocks[0].frames[_common(run.blocks) - 1].path,
        embedding=run.embedding,
        blocks=_blocks(run, groups, sites),
        sites=tuple(sites),
        routings=tuple(routing_of(decision, model) for decision in decisions),
        unsure=tuple(unsure),
        **head,
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


def _refuse_shared(run: Following, sites: Sequence[Site]) -> None:
    """Refuse a model with a norm or mixer that several blocks run: hooks could not tell which."""
    times = Counter(call.path for call in run.calls)
    for site in sites:
        for path in (site.norm, *(mixer.module for mixer in site.mixers)):
            if path and times[path] > 1 and path != run.blocks[site.block].path:
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


# -- sites ----------------------------------------------------------------------------------------


def _sites(
    model: Any,
    run: Following,
    groups: Sequence[Group],
    decisions: Sequence[Decision],
    unsure: list[str],
) -> list[Site]:
    together: dict[Any, list[Group]] = {}
    for group in groups:
        if group.adds:
            kind: SiteKind = "attn_in" if group.mixing else "mlp_in"
            same = (group.block, group.entry.root, group.source, kind)
            together.setdefault(same, []).append(group)
    ordered = sorted(together.items(), key=lambda one: one[1][0].reads[0].number)
    sites = []
    for (_, _, _, kind), several in ordered:
        site = _site(model, run, kind, several, decisions)
        sites.append(site)
        if site.source != "norm" and any(group.mixer is None for group in several):
            unsure.append(f"{site.name}: the code of {several[0].path} reads it, and no module")
        if site.source == "computed":
            unsure.append(f"{site.name}: enters {several[0].path}, but no norm module wrote it")
    return sites


def _site(
    model: Any,
    run: Following,
    kind: SiteKind,
    groups: Sequence[Group],
    decisions: Sequence[Decision],
) -> Site:
    first = groups[0]
    normed = first.source == "norm"
    norm = first.point.frames[-1] if normed else None
    readers = [reader for group in groups for reader in readers_of(group, decisions, model)]
    return Site(
        block=first.block,
        kind=kind,
        source=first.source,
        norm=norm.path if norm else "",
        norm_reads=Place(norm.path, "input", next(iter(norm.inputs))) if norm else None,
        mixers=tuple(_mixer(model, run, one, decisions) for one in groups),
        readers=tuple({reader.parameter: reader for reader in readers}.values()),
        unknown=tuple(dict.fromkeys(_unknown(run, groups) + _idle(model, groups, decisions))),
        scaled=normed and any(group.entry.factor != SAME for group in groups),
    )


def _mixer(model: Any, run: Following, group: Group, decisions: Sequence[Decision]) -> Mixer:
    residual = None
    for addition in run.ledger.additions:
        if group.mixer is not None and group.mixer in addition.frames:
            for key, value in group.mixer.inputs.items():
                if value.root == addition.onto and residual is None:
                    residual = Place(group.path, "input", key)
    kind = _kind(group, decisions)
    windowed = WINDOWED.get(model.config.model_type)
    if windowed is not None and kind == "attention" and windowed(model.config, group.block):
        kind = "sliding_attention"
    return Mixer(group.path, kind, group.enters, residual)


def _kind(group: Group, decisions: Sequence[Decision]) -> MixerKind:
    attention = [mixing for mixing in group.mixing if mixing.kind == "attention"]
    if attention:
        windowed = all(mixing.windowed for mixing in attention)
        return "sliding_attention" if windowed else "attention"
    if group.mixing:
        return "linear_attention"
    return "moe" if any(decision.group is group for decision in decisions) else "mlp"


def _unknown(run: Following, groups: Sequence[Group]) -> list[str]:
    """Say what reads a site and is no linear map of it."""
    found = []
    for group in groups:
        for read in group.reads:
            if read.value.root != group.entry.root:
                found.append(f"{read.frames[-1].path}: {read.value.how} before the linear map")
            elif not read.parameter:
                found.append(f"{read.frames[-1].path}: not a parameter as it is stored")
    point = groups[0].point
    if groups[0].source == "norm":
        found += [f"{addition.frames[-1].path}: added to the residual stream"
                  for addition in run.ledger.additions if addition.onto == point.root]  # fmt: skip
        if point in run.ledger.loose:
            found.append(f"{run.ledger.loose[point]} with the residual stream")
        if point.kind == "gated":
            found.append(f"{point.frames[-1].path}: its gain depends on the token")
    return found


def _idle(model: nn.Module, groups: Sequence[Group], decisions: Sequence[Decision]) -> list[str]:
    """Say where experts may be picked that have no parameters: what they make is not known."""
    routings = [routing_of(one, model) for one in decisions if one.group in groups]
    return [
        f"{one.mixture}: {one.choices - one.count} of {one.choices} choices have no parameters"
        for one in routings
        if one.choices > one.count
    ]


# -- blocks ---------------------------------------------------------------------------------------


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
                arguments=tuple(
                    Argument(place, value.depth)
                    for place, value in call.inputs.items()
                    if place != key
                ),
                between=_between(run, number),
                additive=_additive(run, number, entry, left[1]),
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


def _between(run: Following, number: int) -> tuple[str, ...]:
    """Name what happens to the stream between the block before and this one."""
    if number == 0:
        return ()
    left = _left(run.blocks[number - 1])
    entry = run.entries[number][1]
    if left is None or entry.root == left[1].root:
        return ()
    found = []
    for value in entry.within():
        if value.root == left[1].root or value.depth < number - 1:
            break
        found.append(value.how)
    return tuple(name for name in found if name not in MOVES) or ("moved",)


def _additive(run: Following, number: int, entry: Value, left: Value) -> str:
    """Say why a block is not its input plus what its mixers make; empty if it is."""
    made = {addition.result: addition for addition in run.ledger.additions}
    value = left
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
    norm = ""
    for value in hidden.within():
        point = next((point for point in value.points if value.root == point.root), None)
        if point is not None:
            norm = point.frames[-1].path if point.kind != "stream" else ""
            break
        if not value.constant:
            before.append(value.how)
    head = next((call for call in run.calls if not call.inner and _returns(call, linear)), None)
    return {
        "last_norm": norm,
        "head": "" if head is None else head.path,
        "before_head": tuple(name for name in reversed(before) if name not in MOVES),
        "after_head": tuple(name for name in reversed(after) if name not in MOVES),
    }


def _returns(call: Call, value: Value) -> bool:
    return any(other.root == value.root for other in call.outputs.values())
