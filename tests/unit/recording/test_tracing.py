"""Where values lie after operations that move them about, and what meta tensors are answered."""

import pytest
import torch
from torch import Tensor

from moe_outliers.recording.tracing.answers import Answering
from moe_outliers.recording.tracing.axes import moved
from moe_outliers.recording.tracing.following import _name_of

SHAPE = (2, 11, 6, 5)
ROWS = torch.tensor([3, 1, 1])
MASK = torch.arange(11) % 3 == 0
MOVES = {
    "to": lambda x: x.to(torch.float64),
    "transpose": lambda x: x.transpose(1, -1),
    "permute": lambda x: x.permute(3, 0, 2, 1),
    "mT": lambda x: x.mT,
    "flatten": lambda x: x.flatten(0, 1),
    "flatten others": lambda x: x.flatten(2, 3),
    "unflatten": lambda x: x.unflatten(2, (2, 3)),
    "reshape": lambda x: x.reshape(22, 6, 5),
    "view over all": lambda x: x.view(11, 2, 6, 5),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "expand": lambda x: x[:1].expand(4, 11, 6, 5),
    "repeat": lambda x: x.repeat(3, 1, 1, 1),
    "repeat features": lambda x: x.repeat(1, 1, 1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=0),
    "chunk": lambda x: x.chunk(2, dim=0)[1],
    "chunk features": lambda x: x.chunk(2, dim=-1)[0],
    "split": lambda x: x.split([4, 7], dim=1)[1],
    "select": lambda x: x.select(2, 3),
    "unbind": lambda x: x.unbind(1)[4],
    "index": lambda x: x[1],
    "index of rows": lambda x: x[:, ROWS],
    "mask": lambda x: x[:, MASK],
    "slice": lambda x: x[..., 1:],
    "none": lambda x: x[:, None, ..., 2, :],
    "rows and none": lambda x: x[None, 0, ROWS],
}


class Seen(torch.overrides.TorchFunctionMode):
    """Asks of each operation where an axis is."""

    def __init__(self, axis):
        super().__init__()
        self.axis, self.place = axis, axis

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name, _ = _name_of(func)
        for result in out if isinstance(out, tuple | list) else (out,):
            if isinstance(result, Tensor) and self.place is not None:
                where = moved(name, func, args, kwargs or {}, out=result, axis=self.place)
        self.place = where
        return out


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("name", MOVES)
def test_an_axis_is_where_its_values_are(name, axis):
    if name == "expand" and axis == 0:
        pytest.skip("the axis itself is what grows")
    shape = [size if n == axis else 1 for n, size in enumerate(SHAPE)]
    labels = torch.arange(SHAPE[axis]).view(shape).expand(SHAPE).clone()
    with Seen(axis) as seen:
        out = MOVES[name](labels)
    if seen.place is None:
        return  # lost: it is said so, whatever it is
    shape = [-1 if n == seen.place else 1 for n in range(out.dim())]
    assert torch.equal(out, torch.arange(SHAPE[axis]).view(shape).expand_as(out).to(out.dtype))


@pytest.mark.parametrize("name", ["transpose", "reshape", "flatten", "index of rows", "none", "to"])
def test_the_axis_of_features_is_not_lost(name):
    values = torch.zeros(SHAPE)
    with Seen(3) as seen:
        MOVES[name](values)
    assert seen.place is not None


def test_what_a_meta_tensor_is_asked_has_an_answer():
    with torch.device("meta"), Answering(11):
        ids, floats = torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4)
        assert ids.max().item() == 11
        assert floats.max().item() == 1.0
        assert bool((ids == 0).all())
        assert not bool((ids == 0).any())
        assert torch.equal(ids, ids)
        (place,) = (ids > 0).nonzero()
        assert place.shape == (2,)
        assert int(place[0]) == 0
        assert floats[ids > 0].shape == (1,)
        assert floats[place[0]].shape == (4,)
        assert floats[place[0] : place[1]].shape == (3, 4)
        assert floats[:, torch.zeros(4, dtype=torch.bool)].shape == (3, 4)
        sizes = ids[0].tolist()
        parts = torch.zeros(9, 2).split(sizes)
        assert [len(part) for part in parts] == [9, 0, 0, 0]
        assert torch.bincount(ids.flatten(), minlength=5).shape == (5,)
        assert torch.where(ids > 0)[1].shape == (1,)
        assert torch.where(ids > 0, ids, ids).shape == (3, 4)
