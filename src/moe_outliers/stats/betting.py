"""The betting interval of a mean of values in [0, 1]: valid at every n, for any distribution.

A bootstrap learns nothing of a value that no text has shown. This interval does not rely on what
was seen: it bets against each mean in turn, in a game that is fair if that is the true mean, and
drops the means whose bets win too much. It is wide, and holds where the bootstrap does not.
"""

import math

import numpy as np

from moe_outliers.stats import Array

ORDERS = 100
"""Orders of the texts over which the bets' capital is averaged, so that no order decides."""

STEPS = 1000
"""The means that are tried are 0, .001 … 1."""

PRIOR = 1 / 4
"""The variance before any text: the largest that values in [0, 1] can have."""

CHUNK = 2_000_000
"""Stakes that are held at a time."""


def orders(rng: np.random.Generator, n: int) -> Array:
    """Draw the orders in which n texts are taken, (order, text)."""
    return rng.permuted(np.tile(np.arange(n), (ORDERS, 1)), axis=1)


def of_means(values: Array, order: Array, *, confidence: float) -> tuple[Array, Array]:
    """Return the ends of the hedged-capital betting interval.

    Args:
        values: (text, quantity), in [0, 1], of independent texts.
        order: (order, text), as `orders` draws it.
        confidence: nominal level, in (0, 1): the interval covers at least that often.

    Returns:
        Lower and upper end, each (quantity,): the convex hull of the means that are not dropped,
        of the grid 0, .001 … 1; NaN where all are. There is no running intersection.

    Source: Waudby-Smith and Ramdas 2024 (JRSS-B 86), section 4.2, with truncation at 1/2.
    """
    quantities = values.shape[1]
    low, high = np.full((2, quantities), np.nan)
    size = max(1, CHUNK // order.size)
    for start in range(0, quantities, size):
        part = slice(start, start + size)
        low[part], high[part] = _ends(values[:, part], order, 1 - confidence)
    return low, high


def _stakes(taken: Array, alpha: float) -> Array:
    """Return the stake of each bet, from the values before it, (order, text, quantity).

    Args:
        taken: (order, text, quantity), the values in each order.
        alpha: 1 less the confidence.
    """
    n = taken.shape[1]
    number = np.arange(2, n + 2)[:, None]
    centre = (0.5 + np.cumsum(taken, axis=1)) / number
    spread = (PRIOR + np.cumsum((taken - centre) ** 2, axis=1)) / number
    before = np.concatenate([np.full_like(spread[:, :1], PRIOR), spread[:, :-1]], axis=1)
    return np.sqrt(2 * math.log(2 / alpha) / (n * before))


def _capital(taken: Array, stake: Array, mean: Array) -> tuple[Array, Array]:
    most_up = np.divide(0.5, mean, out=np.full(mean.shape, np.inf), where=mean > 0)
    most_down = np.divide(0.5, 1 - mean, out=np.full(mean.shape, np.inf), where=mean < 1)
    off = taken - mean
    with np.errstate(over="ignore"):  # a capital that is too large for a number is large enough
        up = np.exp(np.log1p(np.minimum(stake, most_up) * off).sum(axis=1))
        down = np.exp(np.log1p(-np.minimum(stake, most_down) * off).sum(axis=1))
    return up, down


def _ends(values: Array, order: Array, alpha: float) -> tuple[Array, Array]:
    """Find the smallest and the largest mean that is kept.

    The capital of each side only falls, or only rises, with the mean. So a bisection on one side
    alone finds a mean beyond which all are dropped; from there the few that the other side drops
    too are passed one by one.
    """
    taken = np.clip(values, 0, 1)[order]
    stake = _stakes(taken, alpha)

    def both(place: Array) -> tuple[Array, Array]:
        return _capital(taken, stake, place / STEPS)

    def kept(place: Array) -> Array:
        return np.maximum(*both(place)).mean(axis=0) / 2 < 1 / alpha

    ends = []
    for side, step in ((0, 1), (1, -1)):
        dropped = np.full(values.shape[1], -1 if step == 1 else STEPS + 1)
        open_ = np.full(values.shape[1], STEPS + 1 if step == 1 else -1)
        while (np.abs(open_ - dropped) > 1).any():
            middle = np.clip((dropped + open_) // 2, 0, STEPS)
            won = both(middle)[side].mean(axis=0) / 2 >= 1 / alpha
            undecided = np.abs(open_ - dropped) > 1
            dropped = np.where(undecided & won, middle, dropped)
            open_ = np.where(undecided & ~won, middle, open_)
        place = open_
        while True:
            inside = (place >= 0) & (place <= STEPS)
            off = inside & ~kept(np.clip(place, 0, STEPS))
            if not off.any():
                break
            place = np.where(off, place + step, place)
        ends.append(np.where(inside, place / STEPS, np.nan))
    return ends[0], ends[1]
