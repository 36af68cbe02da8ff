"""Mixtures of experts in a followed run: what routes tokens, to how many, and who reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from moe_outliers.recording.anatomy import SCORES, Place, Reader, ReaderKind, Routing
from moe_outliers.recording.tracing.axes import MOVES
from moe_outliers.recording.tracing.contractions import MATRICES
from moe_outliers.recording.tracing.following import Following
from moe_outliers.recording.tracing.groups import Group
from moe_outliers.recording.tracing.trail import Call, Pick, Read, Value, words

GATHERED = MOVES | {"cat", "stack", "concat", "masked_fill", "where", "clamp", "joined"}
"""What may happen to picked indices while they still say who was picked."""

LEFT_OUT = words("masked_fill where scatter")
"""How choices are taken out before the largest scores are picked."""


@dataclass
class Decision:
    """One choice of experts, while it is put together.

    Attributes:
        model: that ran.
        picks: the operations whose result names the experts, in order.
        group: the reads of the mixture of experts.
        calls: the runs of modules within the block.
        missing: what could not be found.
    """

    model: nn.Module
    picks: list[Pick]
    group: Group
    calls: list[Call]
    experts: Call | None = None
    router: Call | None = None
    picked: Value | None = None
    missing: list[str] = field(default_factory=list)

    @cached_property
    def routing(self) -> Routing:
        """What is told of it."""
        return _routing(self)

    @property
    def reads(self) -> frozenset[Read]:
        """The reads that the choice depends on, or the weights of the chosen."""
        values = [pick.scores for pick in self.picks]
        if self.experts is not None and self.picked is not None:
            inputs = self.experts.inputs.values()
            values += [one for one in inputs if one.shape == self.picked.shape]
        return frozenset[Read]().union(*(value.reads | value.gates for value in values))


def decisions_of(model: nn.Module, run: Following, groups: Sequence[Group]) -> list[Decision]:
    """Find where experts are chosen: where the largest of some scores are picked in an MLP.

    Args:
        model: that ran.
        run: what was followed.
        groups: all reads, put together.
    """
    found = []
    for number, block in enumerate(run.blocks):
        calls = [call for call in run.calls if block in call.frames]
        here = [group for group in groups if group.block == number]
        mixtures = [group for group in here if not group.mixing]
        picks = [pick for pick in run.ledger.picks if pick.block == number]
        decisions = []
        for holder in [*mixtures, None]:
            mine = [pick for pick in picks if _holder(pick, here) is holder]
            if mine and (decision := _decision(model, mine, holder, mixtures, calls)) is not None:
                decisions.append(decision)
        told = {decision.group for decision in decisions}
        decisions += [
            decision
            for group in mixtures
            if group.adds and group not in told and (decision := _unpicked(model, group, calls))
        ]
        found += decisions
    return found


def _unpicked(model: nn.Module, group: Group, calls: list[Call]) -> Decision | None:
    """Find experts that are told picks which no scores were sorted for: by the token's id."""
    for call in calls:
        values = list(call.inputs.values()) if group.holds(call) else []
        picked = [value for value in values if value.integer and len(value.shape) == 2]
        if len(values) != 3 or len(picked) != 1 or not any(value.points for value in values):
            continue
        if sum(value.shape == picked[0].shape for value in values) == 2:
            decision = Decision(model, [], group, calls, experts=call, picked=picked[0])
            decision.missing.append("what is picked does not depend on scores")
            return decision
    return None


def _holder(pick: Pick, groups: Iterable[Group]) -> Group | None:
    return next((group for group in groups if group.holds(pick.frames[-1])), None)


def _decision(
    model: nn.Module,
    picks: list[Pick],
    holder: Group | None,
    mixtures: Sequence[Group],
    calls: list[Call],
) -> Decision | None:
    """Find who is told the picks, and which of them count: not those of groups of experts."""
    within = {call for pick in picks for call in pick.frames}
    for call in calls:
        for value in () if call in within else call.inputs.values():
            named = [pick for pick in picks if _names(value, pick)]
            group = next((one for one in mixtures if one.adds and one.holds(call)), None)
            if named and group is not None:
                decision = Decision(model, named, group, calls, experts=call, picked=value)
                decision.router = _router(decision)
                return decision
    if holder is None or not holder.adds:
        return None
    decision = Decision(model, picks[-1:], holder, calls)
    decision.router = _router(decision)
    decision.missing.append("no module is told which experts were picked")
    return decision


def _names(value: Value, pick: Pick) -> bool:
    """Tell whether integers are the picked indices, moved about or put together."""
    waiting, seen = [value], {id(value)}
    while waiting:
        one = waiting.pop()
        if one.root == pick.picked.root:
            return True
        fresh = [part for part in one.parents if id(part) not in seen]
        if one.how in GATHERED:
            waiting.extend(fresh)
            seen.update(map(id, fresh))
    return False


def _router(decision: Decision) -> Call | None:
    """Find the module that picks: the innermost whose results hold the picks."""
    for call in reversed(decision.picks[0].frames if decision.picks else ()):
        if call.begins or call is decision.group.mixer:
            return None
        if any(_names(value, decision.picks[0]) for value in call.outputs.values()):
            return call
    return None


def _routing(decision: Decision) -> Routing:
    """Describe a choice of experts."""
    router, experts, missing = decision.router, decision.experts, decision.missing
    picked = _place(decision.picked, decision)
    shape = decision.picked.shape if decision.picked else decision.picks[0].picked.shape
    logits: Place | None
    weights = _weights(decision, shape)
    sorted_by, limited, logits = _scores(decision)
    called = _called(decision, weights)
    count = _count(decision)
    for thing, place in (("logits", logits), ("weights", weights), ("picks", picked)):
        if place is None:
            missing.append(f"no module hands on the {thing}")
    if experts is not None and called is None:
        missing.append(f"{experts.path} is not called with hidden states, picks and weights alone")
    return Routing(
        block=decision.group.block,
        mixture=decision.group.path,
        router="" if router is None else router.path,
        logits=logits,
        weights=weights,
        picked=picked,
        choices=decision.picks[0].scores.shape[-1] if decision.picks else count,
        top_k=shape[-1],
        sorted_by=sorted_by,
        limited=limited,
        experts="" if experts is None else experts.path,
        called=called,
        count=count,
        missing=tuple(missing),
    )


def _place(value: Value | None, decision: Decision, size: int = 0) -> Place | None:
    """Find a module that hands on a tensor: the router, else the innermost that has it.

    Args:
        value: what is known of the tensor.
        decision: whose modules are asked.
        size: of its last axis, if a part of it will do.
    """
    if value is None:
        return None
    size = size or value.shape[-1]

    def is_it(other: Value) -> bool:
        whole = other.root == value.root
        part = other.how in MOVES and any(one.root == value.root for one in other.parents)
        return (whole or part) and other.shape[-1] == size

    first = [] if decision.router is None else [decision.router]
    inner = sorted(decision.calls, key=lambda call: -len(call.frames))
    for call in [*first, *inner]:
        for key, other in call.outputs.items():
            if is_it(other):
                return Place(call.path, "output", key)
    for call in inner:
        for key, other in call.inputs.items():
            if is_it(other):
                return Place(call.path, "input", key)
    return None


def _weights(decision: Decision, shape: tuple[int, ...]) -> Place | None:
    """Find what the experts' outputs are multiplied by: as many numbers as there are picks."""
    for call, side in ((decision.router, "output"), (decision.experts, "input")):
        if call is None:
            continue
        values = call.outputs if side == "output" else call.inputs
        for key, value in values.items():
            if value.shape == shape and not value.integer:
                return Place(call.path, side, key)  # type: ignore[arg-type] # one of two words
    return None


def _called(decision: Decision, weights: Place | None) -> tuple[Place, Place, Place] | None:
    """Return the three arguments of the experts, if they are called with these."""
    call = decision.experts
    if call is None or len(call.inputs) != 3 or weights is None:
        return None
    keys: list[tuple[int | str, ...] | None] = [None, None, None]
    for key, value in call.inputs.items():
        if value.integer:
            keys[1] = key
        elif decision.picked is not None and value.shape == decision.picked.shape:
            keys[2] = key
        else:
            keys[0] = key
    if None in keys:
        return None
    hidden, picked, weighed = (Place(call.path, "input", key or ()) for key in keys)
    return hidden, picked, weighed


def _scores(decision: Decision) -> tuple[tuple[str, ...] | None, bool, Place | None]:
    """Follow what was sorted back to the logits.

    Returns:
        What the logits went through, in order, or None; whether choices were left out; the logits.
    """
    if not decision.picks:
        return None, False, None
    steps: list[str] = []
    limited = False
    trail: list[tuple[int, Value]] = []
    value = decision.picks[0].scores
    known = True
    while True:
        trail.append((len(steps), value))
        if value.how in MATRICES:
            break
        parents = [
            one
            for one in value.parents
            if one.reads and (one.shape[-1] == value.shape[-1] or value.how in MOVES)
        ]
        others = [one for one in value.parents if one not in parents]
        if value.how in LEFT_OUT and parents:
            limited = True
        elif value.how == "add" and len(parents) == 1 and others and others[0].parameter:
            steps.append(f"+{others[0].parameter}")
        elif len(parents) == 1 and value.how in SCORES:
            steps.append(value.how)
        elif len(parents) != 1 or value.how not in MOVES:
            known = False
            break
        value = parents[0]
    for number, candidate in reversed(trail):
        place = _place(candidate, decision, decision.picks[0].scores.shape[-1])
        if place is not None:
            return (tuple(reversed(steps[:number])) if known else None), limited, place
    return (tuple(reversed(steps)) if known else None), limited, None


def _count(decision: Decision) -> int:
    """Count the experts that have parameters: what zero experts lack, others share an axis of."""
    model = decision.model
    routed = [one for one in readers_of(decision.group, [decision], model) if one.kind == "routed"]
    if not routed:
        return 0
    stacked = [one for one in routed if model.get_parameter(one.parameter).dim() == 3]
    if stacked:
        holder = model.get_submodule(stacked[0].parameter.rpartition(".")[0])
        sizes = [len(weight) for weight in holder.parameters(recurse=False) if weight.dim() == 3]
        return min(sizes)
    listed = _listed(routed[0].parameter, decision.group.path, model)
    return len(listed) or (decision.picks[0].scores.shape[-1] if decision.picks else 0)


def readers_of(group: Group, decisions: Sequence[Decision], model: nn.Module) -> list[Reader]:
    """Return the linear maps that receive a group's tensor as it is.

    Args:
        group: the reads.
        decisions: all choices of experts.
        model: that ran.
    """
    mixtures = [one for one in decisions if one.group is group]
    experts = [one.experts for one in mixtures if one.experts is not None]
    routers = frozenset[Read]().union(*(one.reads for one in decisions))
    ran = {call.path for one in mixtures for call in one.calls}
    found: dict[str, Reader] = {}
    for read in group.reads:
        if not read.parameter or read.value.root != group.entry.root:
            continue
        kind: ReaderKind = "shared" if mixtures else "mixer"
        listed = _listed(read.parameter, group.path, model) if mixtures else {}
        if read in routers:
            kind, listed = "router", {}
        elif (
            any(call in read.frames for call in experts)
            or (mixtures and model.get_parameter(read.parameter).dim() == 3)
            or not ran.issuperset(listed)  # without numbers, a loop over experts visits some
        ):
            kind = "routed"
        for path in listed.values() if kind == "routed" and listed else [read.parameter]:
            found.setdefault(path, Reader(path, read.axis, kind))
    return list(found.values())


def _listed(path: str, mixture: str, model: nn.Module) -> dict[str, str]:
    """Return the same parameter of every entry of a list of modules within a mixture, by entry."""
    parts, above = path.split("."), len(mixture.split("."))
    for at in range(above, len(parts)):
        holder = model.get_submodule(".".join(parts[:at]))
        if isinstance(holder, nn.ModuleList):
            paths = (".".join([*parts[:at], str(number)]) for number in range(len(holder)))
            return {entry: ".".join([entry, *parts[at + 1 :]]) for entry in paths}
    return {}
