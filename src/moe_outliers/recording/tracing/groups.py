"""Who reads what: the reads of a followed run, put together by tensor and by mixer."""

from collections.abc import Callable
from dataclasses import dataclass, field

from moe_outliers.recording.anatomy import Place, Source
from moe_outliers.recording.tracing.following import Following
from moe_outliers.recording.tracing.ledger import OUTSIDE, mixer_of
from moe_outliers.recording.tracing.trail import (
    TIMES_TOKEN,
    Call,
    Key,
    Mixing,
    Point,
    Read,
    Value,
)


@dataclass(eq=False)
class Group:
    """The reads of one tensor by one mixer.

    Attributes:
        block: number of the decoder block.
        point: the stream, or what a norm returned, that the tensor is or is made of.
        source: whether it is that point, and of which kind.
        mixer: the run of the module that holds the reads; None where the code of the block does.
        enters: where the tensor enters.
        entry: what is known of the tensor.
        reads: in order.
        mixing: where one position sees others: within the mixer, whatever enters it where, or
            behind it if it is but a map.
    """

    block: int
    point: Point
    source: Source
    mixer: Call | None
    enters: Place
    entry: Value
    reads: list[Read] = field(default_factory=list)
    mixing: list[Mixing] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Path of the mixer."""
        return self.enters.module

    @property
    def adds(self) -> bool:
        """Whether anything that it makes is added to the stream."""
        return any(read.adds for read in self.reads)

    def holds(self, call: Call) -> bool:
        """Tell whether a run of a module is the mixer's, or within it."""
        return self.mixer is not None and self.mixer in (*call.frames, call)


def groups_of(run: Following, tell: Callable[[str], None]) -> list[Group]:
    """Put the reads within blocks together.

    Args:
        run: what was followed.
        tell: takes what is not understood, in words.
    """
    groups: dict[tuple[int, Source, int | str], Group] = {}
    for read in run.ledger.reads:
        if read.block == OUTSIDE:
            continue
        group = _group(read)
        if group is None:
            tell(f"{read.frames[-1].path}: what it reads did not come with the call of its module")
            continue
        mixer = group.mixer.number if group.mixer else read.parameter
        key = (group.entry.root, group.source, mixer)
        groups.setdefault(key, group).reads.append(read)
    for group in groups.values():
        same = [
            one for one in groups.values() if one.mixer is not None and one.mixer is group.mixer
        ]
        group.mixing = [mixing for one in same or [group] for mixing in _mixing(one)]
    return list(groups.values())


def _mixing(group: Group) -> list[Mixing]:
    found = [mixing for read in group.reads for mixing in read.mixing]
    if group.mixer is None or (group.mixer.inner == 0 and len(group.reads) == 1):
        return found
    return [mixing for mixing in found if group.mixer in mixing.frames]


def _group(read: Read) -> Group | None:
    """Find what entered the outermost module that holds a read."""
    value = read.value
    point = next((point for point in value.points if value.holds(point)), None)
    if point is None:
        point = max(value.points, key=lambda point: point.number)
    mixer = mixer_of(read.frames, point)
    if mixer is None:
        place = Place(read.frames[-1].path, "input", ())
        return Group(read.block, point, _source(value, point), None, place, value)
    entered = _entered(mixer, point)
    if entered is None:
        return None
    key, entry = entered
    place = Place(mixer.path, "input", key)
    return Group(read.block, point, _source(entry, point), mixer, place, entry)


def _entered(mixer: Call, point: Point) -> tuple[Key, Value] | None:
    """Return the input of a module that is a point, or is made of it."""
    exact = [(key, value) for key, value in mixer.inputs.items() if _is(value, point)]
    made = [(key, value) for key, value in mixer.inputs.items() if point in value.points]
    return next(iter(exact or made), None)


def _source(entry: Value, point: Point) -> Source:
    if not _is(entry, point):
        return "computed"
    return "stream" if point.kind == "stream" else "norm"


def _is(value: Value, point: Point) -> bool:
    """Tell whether a tensor is a point, times one number at most.

    The stream times a number for each position may be a norm that is written out.
    """
    return value.holds(point) and value.factor != TIMES_TOKEN
