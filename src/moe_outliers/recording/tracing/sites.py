"""The sites of a followed run: what enters the mixers, and who reads it."""

from collections.abc import Iterator, Sequence
from typing import Any

from moe_outliers.recording.anatomy import Mixer, MixerKind, Place, Site, SiteKind
from moe_outliers.recording.tracing.exceptions import WINDOWED
from moe_outliers.recording.tracing.following import Following
from moe_outliers.recording.tracing.groups import Group
from moe_outliers.recording.tracing.routes import Decision, readers_of
from moe_outliers.recording.tracing.trail import SAME


class Sites:
    """Makes sites of groups of reads.

    Attributes:
        unsure: what was seen and is not understood.
    """

    def __init__(self, model: Any, run: Following, decisions: Sequence[Decision]) -> None:
        self._model, self._run, self._decisions = model, run, decisions
        self.unsure: list[str] = []

    def of(self, groups: Sequence[Group]) -> list[Site]:
        """Return the sites, in order of the forward pass.

        Args:
            groups: all reads; those of the same tensor make a site, if what they make is added to
                the stream.
        """
        together: dict[Any, list[Group]] = {}
        for group in groups:
            if group.adds:
                kind: SiteKind = "attn_in" if group.mixing else "mlp_in"
                same = (group.block, group.entry.root, group.source, kind)
                together.setdefault(same, []).append(group)
        ordered = sorted(together.items(), key=lambda one: one[1][0].reads[0].number)
        return [self._site(kind, several) for (_, _, _, kind), several in ordered]

    def _site(self, kind: SiteKind, groups: Sequence[Group]) -> Site:
        first = groups[0]
        normed = first.source == "norm"
        norm = first.point.frames[-1] if normed else None
        readers = {
            reader.parameter: reader
            for group in groups
            for reader in readers_of(group, self._decisions, self._model)
        }
        site = Site(
            block=first.block,
            kind=kind,
            source=first.source,
            norm=norm.path if norm else "",
            norm_reads=Place(norm.path, "input", next(iter(norm.inputs))) if norm else None,
            mixers=tuple(map(self._mixer, groups)),
            readers=tuple(readers.values()),
            unknown=tuple(dict.fromkeys(self._unknown(groups))),
            scaled=normed and any(group.entry.factor != SAME for group in groups),
            gated=first.point.kind == "gated",
        )
        if not normed and any(group.mixer is None for group in groups):
            self.unsure.append(f"{site.name}: the code of {first.path} reads it, and no module")
        if first.source == "computed":
            self.unsure.append(f"{site.name}: enters {first.path}, but no norm module wrote it")
        return site

    def _mixer(self, group: Group) -> Mixer:
        residual = None
        for addition in self._run.ledger.additions:
            if group.mixer is not None and group.mixer in addition.frames:
                for key, value in group.mixer.inputs.items():
                    if value.root == addition.onto and residual is None:
                        residual = Place(group.path, "input", key)
        return Mixer(group.path, self._kind(group), group.enters, residual)

    def _kind(self, group: Group) -> MixerKind:
        attention = [mixing for mixing in group.mixing if mixing.kind == "attention"]
        if attention:
            config, windowed = self._model.config, all(mixing.windowed for mixing in attention)
            if config.model_type in WINDOWED:
                windowed = WINDOWED[config.model_type](config, group.block)
            return "sliding_attention" if windowed else "attention"
        if group.mixing:
            return "linear_attention"
        return "moe" if any(one.group is group for one in self._decisions) else "mlp"

    def _unknown(self, groups: Sequence[Group]) -> Iterator[str]:
        """Say what reads a site and is no linear map of it."""
        for group in groups:
            for read in group.reads:
                if read.value.root != group.entry.root:
                    yield f"{read.frames[-1].path}: {read.value.how} before the linear map"
                elif not read.parameter:
                    yield f"{read.frames[-1].path}: not a parameter as it is stored"
        point = groups[0].point
        if groups[0].source == "norm":
            for addition in self._run.ledger.additions:
                if addition.onto == point.root:
                    yield f"{addition.frames[-1].path}: added to the residual stream"
            if point in self._run.ledger.loose:
                yield f"{point.frames[-1].path}: {self._run.ledger.loose[point]}, no linear map"
            if point.kind == "gated":
                yield f"{point.frames[-1].path}: its gain depends on the token"
        for decision in self._decisions:
            routing = decision.routing
            if decision.group in groups and routing.choices > routing.count:
                idle = routing.choices - routing.count
                yield f"{routing.mixture}: {idle} of {routing.choices} choices have no parameters"
