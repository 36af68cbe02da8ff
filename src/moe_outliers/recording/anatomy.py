"""The parts of a decoder that are measured, named by the paths of its modules.

`observed.observe` finds them; everything else reads them here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

SiteKind = Literal["attn_in", "mlp_in"]
MixerKind = Literal["attention", "sliding_attention", "linear_attention", "mlp", "moe"]
ReaderKind = Literal["mixer", "router", "routed", "shared"]
Source = Literal["norm", "stream", "computed"]


class Place(NamedTuple):
    """Where a tensor can be taken by a hook on a module.

    Attributes:
        module: path of the module; empty for the model itself.
        side: whether it is among what the module is called with, or what it returns.
        key: positions and keywords on the way to it, from the outside in; empty if what the module
            returns is the tensor itself, or if it is no argument, but made in the module's code.
    """

    module: str
    side: Literal["input", "output"]
    key: tuple[int | str, ...]

    def take(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any = None) -> Tensor:
        """Return the tensor from what a hook of the module is given.

        Raises:
            LookupError: if it is not there; the message names the place.
        """
        thing: Any = output
        if self.side == "input":
            thing = kwargs if any(isinstance(part, str) for part in self.key[:1]) else args
        try:
            for part in self.key:
                thing = thing[part]
        except (KeyError, IndexError, TypeError):
            thing = None
        if not isinstance(thing, Tensor):
            raise LookupError(f"no tensor at {self.side} {self.key} of {self.module}")
        return thing


@dataclass(frozen=True)
class Mixer:
    """A module that reads a site, and adds what it makes of it to the residual stream.

    Attributes:
        module: its path; that of the block, if the block's own code does it.
        kind: what it is.
        enters: the argument in which it receives the site's tensor.
        residual: the argument in which it receives the residual stream, if it adds to it itself.
    """

    module: str
    kind: MixerKind
    enters: Place
    residual: Place | None


@dataclass(frozen=True)
class Reader:
    """A linear map that receives a site's tensor.

    Attributes:
        parameter: path of its weight.
        axis: of the weight, along which the features lie: 1 of (row, feature), 0 of
            (feature, row), 2 of (expert, row, feature).
        kind: mixer (attention, or a dense MLP); in a mixture of experts: router, routed (the
            experts' gate and up weights), shared (what every token passes).
    """

    parameter: str
    axis: int
    kind: ReaderKind


@dataclass(frozen=True)
class Site:
    """A tensor that enters token mixers, or that enters MLPs.

    Attributes:
        block: number of the decoder block, from 0.
        kind: attn_in if what reads it sees other positions, else mlp_in.
        source: what made it. norm: a norm module wrote it; stream: the residual stream enters as it
            is (gain 1); computed: other code of the model made it, so that gain and z are unknown.
        norm: path of the norm module; empty if there is none.
        norm_reads: where the norm receives h; None if there is no norm.
        mixers: the modules that read it, in order.
        readers: the linear maps that read it, in order.
        unknown: what else reads it, in words; empty if the readers are all.
        scaled: whether it is multiplied by a number on its way into some mixer.
        gated: whether the norm multiplies by something that depends on the token.
    """

    block: int
    kind: SiteKind
    source: Source
    norm: str
    norm_reads: Place | None
    mixers: tuple[Mixer, ...]
    readers: tuple[Reader, ...]
    unknown: tuple[str, ...]
    scaled: bool
    gated: bool

    @property
    def mixer(self) -> str:
        """The kinds of its mixers, joined by +."""
        return "+".join(sorted({mixer.kind for mixer in self.mixers}))

    @property
    def feeds(self) -> str:
        """The kinds of its mixers, joined by +; attention is attention however far it sees."""
        kinds = {mixer.kind.removeprefix("sliding_") for mixer in self.mixers}
        return "+".join(sorted(kinds))

    @property
    def name(self) -> str:
        """Its number and kind, for messages."""
        return f"block {self.block} {self.kind}"


@dataclass(frozen=True)
class Routing:
    """A mixture of experts: how its tokens are sent to experts.

    Attributes:
        block: number of the decoder block.
        mixture: path of the module whose output is the sum of all experts.
        router: path of the module that picks; empty if no module of its own does.
        logits: (token, choice), what a linear map of the router returns; None if no module hands
            them on.
        weights: (token, k), what the picked experts' outputs are multiplied by; None: likewise.
        picked: (token, k), which experts they are, integers; None: likewise.
        choices: experts that the router knows, those that do nothing included.
        top_k: experts picked for a token.
        sorted_by: what the logits went through before the largest were picked, in order: names of
            SCORES, `+path` where a parameter or buffer was added; None if that is not known.
        limited: whether some choices were left out before (groups of experts).
        experts: path of the module that runs the picked experts; empty if no module does it alone.
        called: its arguments (hidden, picked, weights); None if it is not called with these three.
        count: experts that have parameters.
        missing: what could not be found, with the reason; empty if all was.
    """

    block: int
    mixture: str
    router: str
    logits: Place | None
    weights: Place | None
    picked: Place | None
    choices: int
    top_k: int
    sorted_by: tuple[str, ...] | None
    limited: bool
    experts: str
    called: tuple[Place, Place, Place] | None
    count: int
    missing: tuple[str, ...]

    @property
    def sorts(self) -> str:
        """What the router sorts, in short: `logits`, or what they went through."""
        names = [step for step in self.sorted_by or () if step[0] != "+"]
        return " ".join(names) or "logits"

    def steps(self, held: Callable[[str], Tensor]) -> tuple[str | Tensor, ...]:
        """Return `sorted_by` with each parameter itself in place of its path.

        Args:
            held: returns a parameter or buffer of the model by its path.
        """
        return tuple(held(step[1:]) if step[0] == "+" else step for step in self.sorted_by or ())

    def scores(self, logits: Tensor, held: Callable[[str], Tensor]) -> Tensor:
        """Return what is sorted to pick experts.

        Args:
            logits: (token, choice).
            held: returns a parameter or buffer of the model by its path.

        Raises:
            ValueError: if it is not known what is sorted.
        """
        if self.sorted_by is None:
            raise ValueError(f"{self.mixture}: it is not known what is sorted to pick experts")
        scores = logits.float()
        for step in self.sorted_by:
            scores = scores + held(step[1:]) if step[0] == "+" else SCORES[step](scores)
        return scores


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}
"""Functions that logits go through before the largest are picked."""


@dataclass(frozen=True)
class Argument:
    """A tensor that a block is called with, beside the residual stream.

    Attributes:
        key: its place in the call.
        since: the last block on which it depends; -1 if it is known before the first.
        source: where a block before returned it; None if none did.
        fixed: whether it depends on the number of positions alone, not on the text.
    """

    key: tuple[int | str, ...]
    since: int
    source: Place | None
    fixed: bool


@dataclass(frozen=True)
class Block:
    """A decoder block.

    Attributes:
        module: its path.
        kind: the same number for blocks that are built alike.
        enters: where it receives the residual stream.
        leaves: where it returns the residual stream.
        gives: what it returns, with ... in place of every tensor.
        overwrites: whether it writes into tensors that a hook may have seen.
        parameters: parameters and buffers that are used while it runs, by their paths.
        arguments: the other tensors that it is called with.
        between: what happens to the stream after the block before and before this one: names of
            functions; empty if the block receives what the block before returned.
        additive: empty if the block returns its input, times a number, plus what its mixers make;
            else why not.
        beside: modules and functions that read the stream but are no mixers, as they only steer it.
        position_values: values of the largest tensor that has positions as one axis, for each.
        pair_values: values of the largest tensor over pairs of positions, for each pair.
    """

    module: str
    kind: int
    enters: Place
    leaves: Place
    gives: Any
    overwrites: bool
    parameters: tuple[str, ...]
    arguments: tuple[Argument, ...]
    between: tuple[str, ...]
    additive: str
    beside: tuple[str, ...]
    position_values: int
    pair_values: int


@dataclass(frozen=True)
class Anatomy:
    """What a decoder consists of.

    Attributes:
        model_type: of its configuration; for messages.
        width: features of every site.
        body: path of the module that runs the blocks.
        embedding: path of the module that turns ids into the stream.
        blocks: in order of the forward pass.
        sites: in order of the forward pass.
        routings: the mixtures of experts, in order of the forward pass.
        before: parameters and buffers that are used before the first block.
        after: parameters and buffers that are used after the last block.
        vocabulary: number of logits of a position.
        last_norm: path of the norm behind the last block; empty if there is none.
        also_read: blocks whose input or output the logits are made of, beside the stream that the
            last one returns.
        reads_last: whether that norm, or the head if there is none, reads what the last block
            returns as it is.
        head: path of the linear map to the logits.
        before_head: functions between the last norm and the head; empty if it reads the norm.
        after_head: functions between the head and the logits; empty if it makes them.
        unsure: what was seen and is not understood, each with the place and the reason.
    """

    model_type: str
    width: int
    body: str
    embedding: str
    blocks: tuple[Block, ...]
    sites: tuple[Site, ...]
    routings: tuple[Routing, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    vocabulary: int
    last_norm: str
    also_read: tuple[str, ...]
    reads_last: bool
    head: str
    before_head: tuple[str, ...]
    after_head: tuple[str, ...]
    unsure: tuple[str, ...]

    def refuse(self) -> None:
        """Refuse a model some part of which would be measured wrong, or not at all.

        Raises:
            ValueError: the message says which part, and why.
        """
        for reason in self._reasons():
            raise ValueError(f"{self.model_type} cannot be measured: {reason}")

    def _reasons(self) -> Iterator[str]:
        yield from self.unsure
        if self.also_read:
            yield f"its logits are made of what {self.also_read[0]} returns, beside the last block"
        for site in self.sites:
            if site.gated:
                yield f"{site.norm}: its gain depends on the token, so that z is not known"
        blocks = [routing.block for routing in self.routings]
        for routing in self.routings:
            if blocks.count(routing.block) > 1:
                yield f"block {routing.block} has several mixtures of experts"
            for said in routing.missing:
                yield f"{routing.mixture}: {said}"
            if routing.sorted_by is None:
                yield f"{routing.mixture}: it is not known what is sorted to pick experts"
            if routing.called is None:
                yield f"{routing.mixture}: its experts cannot be run one by one"

    def sites_of(self, block: int) -> tuple[Site, ...]:
        """Return the sites of a block."""
        return tuple(site for site in self.sites if site.block == block)

    def routing_of(self, block: int) -> tuple[Routing, ...]:
        """Return the mixtures of experts of a block."""
        return tuple(routing for routing in self.routings if routing.block == block)
