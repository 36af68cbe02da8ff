"""The kernels against their reference: in Triton's interpreter here, compiled on a GPU."""

import os

import pytest
import torch
from support import running

triton = pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from moe_outliers.recording import choose, reducer, reduction  # noqa: E402
from moe_outliers.recording.gpu import launch  # noqa: E402

ALPHAS = [3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0]
EXACT_ON_SITES = ["x_min", "x_max", "x_first", "x_count", "x_positive", "x_delimiter"]
EXACT_ON_SITES += ["position_max", "position_feature"]


def to_bfloat16(x):
    """Round as the kernels do: Triton's interpreter cuts float32 off where a GPU rounds it."""
    if DEVICE == "cuda":
        return x.bfloat16()
    return (x.float().view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()


def activations(positions, width, dtype, seed, scale=2.0):
    """Draw activations with some large features, ties and zeros among them."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn((positions, width), generator=random) * scale
    x[:, 3::17] *= 8
    x[5] = 0.0
    x[7] = 1.5
    x[:, 2] = x[:, 1]
    return x.to(dtype).to(DEVICE)


def masks(count, positions):
    delimiter = torch.zeros((count, positions), dtype=torch.bool)
    for number in range(count - 1):  # the last sequence has no delimiter
        delimiter[number, 4 + number :: 11] = True
    return delimiter.to(DEVICE)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("positions", "width"), [(70, 96), (128, 64)])
def test_sites_are_reduced_as_the_reference_does(positions, width, dtype, layer_norm):
    hs = [activations(positions, width, dtype, seed) for seed in range(3)]
    gain = torch.linspace(0.5, 6, width, device=DEVICE)
    xs = [
        (reduction.normalised(h, eps=1e-6, layer_norm=layer_norm) * gain + layer_norm).to(dtype)
        for h in hs
    ]
    delimiter = masks(3, positions)
    hits = torch.zeros((3, positions, width), dtype=torch.bool, device=DEVICE)
    hits[:, 0, 0] = True
    found = launch.sites(
        xs,
        hs,
        launch.kinds(delimiter),
        list(hits),
        alphas=torch.tensor(ALPHAS, device=DEVICE),
        eps=1e-6,
        layer_norm=layer_norm,
    )
    for number, (x, h) in enumerate(zip(xs, hs, strict=True)):
        z = reduction.normalised(h, eps=1e-6, layer_norm=layer_norm)
        wanted = reduction.site(x, z, delimiter[number].clone(), ALPHAS)
        assert set(wanted) == set(found)
        for name, value in wanted.items():
            got = found[name][number].to(value.dtype)
            if name in EXACT_ON_SITES:
                assert torch.equal(got, value), name
            elif name == "z_count":
                assert (got - value).abs().sum() <= 2, name
            else:
                torch.testing.assert_close(got, value, rtol=2e-6, atol=1e-9, msg=name)
        wanted_hits = to_bfloat16(x).abs() >= 6
        wanted_hits[0, 0] = True
        assert torch.equal(hits[number], wanted_hits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_residual_stream_is_reduced_as_the_reference_does(dtype):
    hs = [activations(70, 97, dtype, seed) for seed in range(2)]
    hs[0][9, 40] = -5000.0
    found = launch.residuals(hs)
    for number, h in enumerate(hs):
        wanted = reduction.residual(h)
        assert set(wanted) == set(found)
        for name, value in wanted.items():
            assert torch.equal(found[name][number].to(value.dtype), value), name
    assert found["residual_massive"].tolist() == [1, 0]


@pytest.mark.parametrize("weights_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_are_reduced_as_the_reference_does(dtype, weights_dtype):
    random = torch.Generator().manual_seed(5)
    raw = torch.stack([activations(70, 97, dtype, seed) for seed in range(3)], dim=1)
    weights = torch.rand((70, 3), generator=random).to(weights_dtype).to(DEVICE)
    picked = torch.stack([torch.randperm(8, generator=random)[:3] for _ in range(70)]).to(DEVICE)
    picked += picked >= 4  # nobody picks the fourth
    raw[11], weights[11], picked[11] = raw[3], weights[3], picked[3]
    weighted = raw.float() * weights.float()[..., None]
    if torch.promote_types(dtype, weights_dtype) == torch.bfloat16:
        weighted = to_bfloat16(weighted)
    wanted = reduction.experts(raw, weighted, picked, 9)
    two = (torch.cat([part, part.flip(0)]) for part in (weights, picked))
    order = torch.randperm(2 * picked.numel(), generator=random).to(DEVICE)
    both = torch.cat([raw, raw.flip(0)]).view(-1, 97)[order]
    found, other = launch.experts(reducer.Picks(both, order, *two), 9, 2)
    assert found["expert_max_position"][4] == -1
    for name, value in wanted.items():
        assert torch.equal(found[name].to(value.dtype), value), name
    backwards = reduction.experts(raw.flip(0), weighted.flip(0), picked.flip(0), 9)
    for name, value in backwards.items():
        assert torch.equal(other[name].to(value.dtype), value), name


@pytest.mark.parametrize("functions", [("softmax",), ("sigmoid",), ("softplus", "sqrt"), ()])
def test_routers_are_reduced_as_the_reference_does(functions):
    random = torch.Generator().manual_seed(6)
    bias = torch.rand(9, generator=random).to(DEVICE)
    steps = (*functions, bias) if functions == ("sigmoid",) else functions
    outputs = []
    for _ in range(3):
        logits = torch.randn((70, 9), generator=random).to(DEVICE)
        weights, picked = logits.softmax(1).topk(3, sorted=False)
        outputs.append((logits, weights.bfloat16(), picked))
    found = launch.routers(outputs, steps)
    for number, output in enumerate(outputs):
        wanted = reduction.router(*output, steps)
        assert torch.equal(found["route"][number], wanted["route"])
        for name in ("router_entropy", "router_margin"):
            torch.testing.assert_close(found[name][number].float(), wanted[name])


def test_a_sequence_alone_gives_the_same_bits_as_among_others():
    hs = [activations(70, 96, torch.bfloat16, seed) for seed in range(5)]
    kinds = launch.kinds(masks(5, 70))
    alphas = torch.tensor(ALPHAS, device=DEVICE)

    def reduce(numbers):
        hits = [torch.zeros((70, 96), dtype=torch.bool, device=DEVICE) for _ in numbers]
        some = [hs[n] for n in numbers]
        kind = kinds[numbers].contiguous()
        found = launch.sites(some, some, kind, hits, alphas=alphas, eps=1e-6, layer_norm=False)
        return found | launch.residuals(some)

    together, alone = reduce([0, 1, 2, 3, 4]), reduce([3])
    for name, value in alone.items():
        assert torch.equal(together[name][3], value[0]), name


@pytest.mark.parametrize(("name", "held"), [("glm4_moe", 10**9), ("phimoe", 40_000)])
def test_a_model_is_reduced_alike_whole_and_streamed(name, held, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(reducer, "HELD_BYTES", held)
    folder = tiny_checkpoint(name)
    how = {"wanted": [0, 1], "kernels": True, "device": DEVICE, "dtype": "float32"}
    whole = running.hold(folder, **how)
    assert running.stream(folder, **how) == whole
    reference = running.hold(folder, **how | {"kernels": False})
    differ = {key[1] for key in whole if whole[key] != reference[key]}
    sums = {"power_sum", "token_kurtosis", "int8_error", "router_entropy", "router_margin"}
    cut_off = {"union_count"} if DEVICE == "cpu" else set()
    assert differ <= sums | cut_off | {"z_max"}


def test_kernels_that_are_wrong_or_do_not_compile_are_not_used(monkeypatch):
    agree, right = choose.agree.__wrapped__, launch.residuals
    assert agree(DEVICE)
    monkeypatch.setattr(launch, "residuals", lambda hs: {n: v + 1 for n, v in right(hs).items()})
    assert not agree(DEVICE)
    monkeypatch.setattr(launch, "residuals", right)
    monkeypatch.setattr(launch.site_kernels, "site_rows", None)
    assert not agree(DEVICE)
