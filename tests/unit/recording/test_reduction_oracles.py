"""The reduction against what other people's code makes of the same numbers."""

import pytest
import torch

from moe_outliers.recording import reduction

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outliers", [0, 3])
def test_int8_errors_are_those_of_bitsandbytes(seed, outliers):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn((40, 96), generator=random).clamp(-5, 5)
    # The scales of bitsandbytes count the small values of an outlier feature: here it has none.
    x[:, :outliers] = x[:, :outliers].sign() * 50
    x = x.half()
    errors = reduction.int8_errors(x.float())

    def error(threshold):
        quantised, scales, columns = bitsandbytes.functional.int8_vectorwise_quant(x, threshold)
        restored = quantised.float() * scales[:, None] / 127
        if columns is not None:
            restored[:, columns] = x[:, columns].float()
        return (x.float() - restored).square().sum() / x.float().square().sum()

    scheme = dict(zip(("tensor", "token", "zeropoint", "mixed"), errors, strict=True))
    assert scheme["token"] == pytest.approx(error(0.0).item(), rel=1e-3)
    assert scheme["mixed"] == pytest.approx(error(6.0).item(), rel=1e-3)
    assert (scheme["mixed"] < scheme["token"] / 2) == bool(outliers)
