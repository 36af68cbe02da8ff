"""bitsandbytes as an oracle of what 8-bit rounding does to outliers (CPU)."""

import pytest

torch = pytest.importorskip("torch", reason="the extraction's packages are not installed")
bitsandbytes = pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes has no wheel for this Python or platform"
)

from moe_outliers.recording import reduction  # noqa: E402


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(0)
    x = torch.randn(256, 512)
    x[:, 7] += 40
    x[:, 100] *= 15
    return x.half()


def test_outlier_columns_are_those_of_the_mixed_scheme(x):
    _, _, columns = bitsandbytes.functional.int8_vectorwise_quant(x, threshold=6.0)
    ours = torch.nonzero((x.float().abs() >= 6).any(0)).flatten()
    assert torch.equal(columns.cpu(), ours)


def test_the_error_of_the_token_scheme_is_that_of_its_rounding(x):
    quantised, scale, _ = bitsandbytes.functional.int8_vectorwise_quant(x)
    back = quantised.float() * scale[:, None] / 127
    wide = x.double()
    theirs = float((wide - back).square().sum() / wide.square().sum())
    # it rounds a half-precision quotient: last steps differ
    assert float(reduction.int8_errors(x.float())[1]) == pytest.approx(theirs, rel=0.01)


def test_the_product_of_the_mixed_scheme_has_its_error(x):
    torch.manual_seed(1)
    weight = torch.randn(384, 512) * 0.05
    exact = x.float() @ weight.T
    quantise = bitsandbytes.functional.int8_vectorwise_quant
    a, a_scale, columns = quantise(x, threshold=6.0)
    b, b_scale, _ = quantise(weight.half())
    theirs, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        x, a, b, a_scale, b_scale, columns, None
    )
    outlier = (x.float().abs() >= 6).any(0)
    regular = x.float() * ~outlier
    scale = regular.abs().amax(1, keepdim=True) / 127
    rounded = torch.where(outlier, x.float(), torch.round(regular / scale) * scale)
    w_scale = weight.abs().amax(1, keepdim=True) / 127
    ours = rounded @ (torch.round(weight / w_scale) * w_scale).T
    errors = [float((y.float() - exact).norm() / exact.norm()) for y in (theirs, ours)]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


def test_schemes_come_in_the_published_order(x):
    tensor, token, zeropoint, mixed = reduction.int8_errors(x.float()).tolist()
    assert tensor > token > zeropoint > mixed
