"""Every variable of the statistics file, for every family, against a brute-force computation."""

import numpy as np
import pytest
import torch
from support import reference, tiny

from moe_outliers import texts, tokenization
from moe_outliers.demo import mini_tokenizers
from moe_outliers.demo.miniatures import MINIATURES, PHIMOE, build
from moe_outliers.engine import resident
from moe_outliers.recording import reduction
from moe_outliers.recording.experts import Tap
from moe_outliers.recording.recorder import Recorder
from moe_outliers.storage import parquet, statistics_file

FAMILIES = {**MINIATURES, "mini-phimoe": PHIMOE}
SEQUENCES, TOKENS = 3, 64

FLOATS = {
    "bfloat16": {"token_nll": 5e-2, "router_margin": 1e-4, "expert_total": 0.0},
    "float32": {"token_nll": 1e-4, "router_margin": 1e-6, "expert_total": 0.0},
}
"""Absolute tolerances where a rounding of bfloat16 may fall either way."""


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family") / request.param
    build(request.param, FAMILIES[request.param], folder)
    return request.param, folder


def tokens_of(name):
    """The sequences of one family: ids and delimiters, (sequence, position)."""
    cut = texts.cut("text", texts.read_bundled(), sequences=SEQUENCES, tokens=TOKENS)
    tokenizer = mini_tokenizers.make(FAMILIES[name].tokenizer)
    table = tokenization.windows(cut, tokenizer, tokens=TOKENS, bos="none")
    return tuple(np.array(table[column].to_pylist()) for column in ("ids", "delimiter"))


def loaded(folder, dtype="bfloat16"):
    """Load a miniature, and give values to the biases and corrections that it leaves at zero."""
    model = resident.load(folder, device="cpu", dtype=dtype)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if not value.any():
                value.normal_(0, 0.1, generator=random)
    return model


def measured(model, ids, delimiter, micro_batch, wanted=None):
    """Run the program's own recorder; return the variables by sequence, with gain and offset."""
    recorder = Recorder(model, ids, delimiter, reference.ALPHAS)
    rows = list(range(len(ids))) if wanted is None else wanted
    done = resident.run(model, recorder, rows, micro_batch=micro_batch, progress=lambda line: None)
    found = {row: recorder.result(row) | recorder.norms() for row in done}
    recorder.close()
    return found


def compare(found, expected, dtype):
    assert found.keys() == expected.keys() == statistics_file.VARIABLES.keys()
    for name, variable in statistics_file.VARIABLES.items():
        if variable.dtype.startswith(("int", "uint")):
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
            continue
        tight = 1e-10 if variable.dtype == "float64" else 2e-5
        loose = FLOATS[dtype].get(name, 1e-6)
        np.testing.assert_allclose(found[name], expected[name], tight, loose, err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_every_variable_equals_a_brute_force_computation(checkpoint, dtype, tmp_path):
    name, folder = checkpoint
    ids, delimiter = tokens_of(name)
    if FAMILIES[name].quantised and dtype == "float32":  # transformers 5.17 makes these bfloat16
        folder = tiny.dequantised(folder, tmp_path / "plain", torch.float32)
    model = loaded(folder, dtype)
    found = measured(model, ids, delimiter, micro_batch=1)
    for row in range(SEQUENCES):
        plain = reference.Activations(model, torch.from_numpy(ids[row : row + 1]))
        expected = reference.statistics(model, plain, 0, ids[row], delimiter[row])
        compare(found[row], expected, dtype)


@pytest.mark.parametrize("checkpoint", ["mini-olmoe", "mini-gpt-oss-a"], indirect=True)
def test_a_micro_batch_of_two_equals_brute_force_at_two(checkpoint):
    name, folder = checkpoint
    ids, delimiter = tokens_of(name)
    model = loaded(folder)
    found = measured(model, ids, delimiter, micro_batch=2)
    plain = reference.Activations(model, torch.from_numpy(ids[:2]))
    for row in range(2):
        expected = reference.statistics(model, plain, row, ids[row], delimiter[row])
        compare(found[row], expected, "bfloat16")


@pytest.mark.parametrize("checkpoint", ["mini-qwen3-next", "mini-mixtral"], indirect=True)
def test_a_sequence_is_the_same_alone_and_among_others(checkpoint):
    name, folder = checkpoint
    ids, delimiter = tokens_of(name)
    model = resident.load(folder, device="cpu", dtype="bfloat16")
    among = measured(model, ids, delimiter, micro_batch=1)[1]
    alone = measured(model, ids, delimiter, micro_batch=1, wanted=[1])[1]
    for variable in statistics_file.VARIABLES:
        assert among[variable].tobytes() == alone[variable].tobytes(), variable


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_experts_heard_and_experts_run_one_by_one_give_the_same_bits(
    checkpoint, micro_batch, monkeypatch
):
    name, folder = checkpoint
    ids, delimiter = tokens_of(name)
    model = resident.load(folder, device="cpu", dtype="bfloat16")
    experts = model.model.layers[1].mlp.experts
    if not hasattr(experts, "has_post_expert_norm"):
        pytest.skip("this transformers has no place for a tap")
    assert Tap.fits(experts)
    heard = measured(model, ids, delimiter, micro_batch)
    monkeypatch.setattr(Tap, "fits", lambda experts: False)
    apart = measured(model, ids, delimiter, micro_batch)
    for row, values in heard.items():
        for variable, value in values.items():
            assert value.tobytes() == apart[row][variable].tobytes(), variable


def test_a_value_at_a_threshold_reaches_it():
    x = torch.tensor([[0.0, 0.0, 0.0], [6.0, -6.0, 5.9999995], [3.0, -3.0, -6.0]])
    delimiter = torch.tensor([False, True, False])
    found = reduction.site(x, x, delimiter, [3.0, 6.0])
    assert found["x_count"].tolist() == [[2, 2, 2], [1, 1, 1]]
    assert found["z_count"].tolist() == [[2, 2, 2], [1, 1, 1]]
    assert found["x_positive"].tolist() == [1, 0, 0]
    assert found["x_delimiter"].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("median", "peak", "massive"),
    [(0.05, 99.0, 0), (0.05, -101.0, 1), (0.1, 100.0, 0), (0.25, 250.0, 0), (0.25, 251.0, 1)],
)
def test_massive_is_over_100_and_over_1000_times_the_median(median, peak, massive):
    h = torch.full((3, 9), median)
    h[1, 4] = peak
    assert reduction.residual(h)["residual_massive"] == massive
    assert reference._residual(h.numpy())["residual_massive"] == massive


def test_losses_are_those_of_all_positions_however_they_are_sliced():
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn((n, 16), generator=random) for n in (601, 40))
    ids = torch.randint(40, (601,), generator=random)
    found = reduction.token_nll(hidden, lambda part: part @ weight.T, ids)
    log_p = (hidden @ weight.T).double().log_softmax(1)
    wanted = -log_p[torch.arange(600), ids[1:]]
    assert len(wanted) > 2 * reduction.HEAD_SLICE
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_the_old_threshold_counts_what_rounds_up_to_six():
    """5.984375 is the smallest float32 that bfloat16 rounds to 6."""
    below, at = np.float32(5.984374), np.float32(5.984375)
    assert torch.tensor([below, at]).bfloat16().tolist() == [5.96875, 6.0]


@pytest.mark.fault(85)
def test_values_that_are_not_finite_are_an_error_that_names_the_site(checkpoint):
    name, folder = checkpoint
    ids, delimiter = tokens_of(name)
    model = resident.load(folder, device="cpu", dtype="bfloat16")
    with torch.no_grad():
        model.model.layers[2].post_attention_layernorm.weight[5] = float("inf")
    recorder = Recorder(model, ids, delimiter, reference.ALPHAS)
    (row,) = resident.run(model, recorder, [0], micro_batch=1, progress=lambda line: None)
    with pytest.raises(ValueError, match="NaN or infinite activations at block 2 mlp_in"):
        recorder.result(row)


def test_a_tokens_file_survives_its_round_trip(tmp_path):
    cut = texts.cut("text", texts.read_bundled(), sequences=2, tokens=64)
    table = tokenization.windows(cut, mini_tokenizers.make("bytes-800"), tokens=64, bos="none")
    parquet.write(table, tmp_path / "tokens.parquet")
    assert parquet.read(tmp_path / "tokens.parquet", tokenization.SCHEMA).equals(table)


@pytest.mark.parametrize("checkpoint", ["mini-olmoe"], indirect=True)
def test_a_forward_pass_of_nobody_knows_whom_is_an_error(checkpoint):
    name, folder = checkpoint
    ids, delimiter = tokens_of(name)
    model = resident.load(folder, device="cpu", dtype="bfloat16")
    recorder = Recorder(model, ids, delimiter, reference.ALPHAS)
    some = torch.from_numpy(ids[:1]).long()
    with pytest.raises(RuntimeError, match="nobody said which sequences"):
        model(input_ids=some)
    with recorder.passing([0]):
        model(input_ids=some)
    with pytest.raises(RuntimeError, match="nobody said which sequences"):
        model(input_ids=some)
    recorder.close()
    model(input_ids=some)


@pytest.mark.parametrize(
    ("steps", "score", "share"),
    [
        (("softmax",), lambda p: p.softmax(1), lambda p: p.softmax(1)),
        ((), lambda p: p, lambda p: p.softmax(1)),
        (("sigmoid",), lambda p: p.sigmoid(), lambda p: p.sigmoid() / p.sigmoid().sum(1)[:, None]),
        (("tanh",), lambda p: p.tanh(), lambda p: p.softmax(1)),
    ],
)
def test_a_margin_is_of_what_is_sorted_and_an_entropy_of_what_is_before_the_bias(
    steps, score, share
):
    random = torch.Generator().manual_seed(0)
    logits, bias = torch.randn((20, 9), generator=random), torch.rand(9, generator=random)
    weights, picked = (score(logits) + bias).topk(3)
    _, entropy, margin = reduction.routing(logits, weights, picked, (*steps, bias))
    falling = (score(logits) + bias).sort(descending=True).values
    p = share(logits)
    torch.testing.assert_close(margin, falling[:, 2] - falling[:, 3])
    torch.testing.assert_close(entropy, -(p * p.log()).sum(1))
