"""Every type of causal language model that transformers ships, tiny: what is observed is so.

And what is measured is the same streamed, resident, and by plain transformers.
"""

import re
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support import zoo
from support.proofs import prove
from torch import nn

from moe_outliers.checkpoint import headers
from moe_outliers.checkpoint.source import Folder
from moe_outliers.engine import resident, streamed
from moe_outliers.recording.observed import observe
from moe_outliers.recording.oracles import NotAsObservedError, Oracles
from moe_outliers.recording.recorder import Recorder

FAST = zoo.here(zoo.FAST)
SLOW = [name for name in zoo.here([*zoo.TYPES, *zoo.VARIANTS]) if name not in FAST]


@pytest.mark.parametrize("name", FAST)
def test_one_of_each_kind_is_what_is_observed(name):
    model = zoo.build(name)
    prove(model, observe(model))


IDS = zoo.ids(3)
"""Three texts of two micro-batches, (sequence, position)."""


def losses(model):
    """Losses of the logits of plain transformers, (sequence, target)."""
    found = []
    for ids in IDS.split(2):
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits.float()
        per_token = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        found.append(per_token.view(len(ids), -1))
    return torch.cat(found).numpy()


def recorded(model, run):
    """Run the texts; return their variables, and the norms', by name."""
    delimiter = np.zeros(IDS.shape, dtype=bool)
    delimiter[:, 5::9] = True
    recorder = Recorder(model, IDS.numpy().astype("int32"), delimiter, [3.0, 6.0])
    done = run(recorder, [0, 1, 2], micro_batch=2, progress=lambda line: None)
    results = [recorder.result(row) for row in done]
    recorder.close()
    return {n: np.stack([r[n] for r in results]) for n in results[0]} | recorder.norms()


def stream(folder):
    with closing(Folder(folder, headers.shards(folder))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="float32")
        return recorded(engine.model, engine.run)


def hold(folder):
    model = resident.load(folder, device="cpu", dtype="float32")
    return recorded(model, lambda *args, **how: resident.run(model, *args, **how))


def saved(name, folder):
    """Write a tiny checkpoint; return its model."""
    model = zoo.build(name)
    model.save_pretrained(folder, max_shard_size="100KB")
    if type(model.config).model_type != zoo.config_of(name).model_type:  # a part was saved
        zoo.config_of(name).save_pretrained(folder)
    return model


def prove_engines(name, folder):
    """Both engines give equal bits, and the losses of plain transformers.

    The head's last bits may depend on the number of positions: the last has no target.
    """
    wanted, found = losses(saved(name, folder)), {}
    for engine in (hold, stream):
        if engine is hold and name in zoo.STREAMED_ALONE:
            with pytest.raises(ValueError, match=re.escape(zoo.STREAMED_ALONE[name])):
                engine(folder)
        else:
            found[engine] = engine(folder)
            np.testing.assert_allclose(found[engine]["token_nll"], wanted, rtol=0, atol=2e-6)
            assert np.isfinite(found[engine]["token_nll"]).all()
    first, *rest = found.values()
    for other in rest:
        assert first.keys() == other.keys()
        for variable, value in first.items():
            assert value.tobytes() == other[variable].tobytes(), variable


MEASURED = [name for name in SLOW if name not in zoo.UNMEASURED]


@pytest.mark.parametrize("name", [name for name in FAST if name not in zoo.UNMEASURED])
def test_one_of_each_kind_is_the_same_streamed_resident_and_plain(name, tmp_path):
    prove_engines(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_every_type_is_the_same_streamed_resident_and_plain(name, tmp_path):
    prove_engines(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.here(zoo.UNMEASURED))
def test_what_would_be_measured_in_part_is_refused_with_the_reason(name, tmp_path):
    saved(name, tmp_path)
    for run in (hold, stream):
        with pytest.raises(ValueError, match=re.escape(zoo.UNMEASURED[name])):
            run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_type_is_what_is_observed(name):
    model = zoo.build(name)
    anatomy = observe(model)
    prove(model, anatomy)
    oracles = Oracles(model, anatomy)
    zoo.run(model)
    oracles.finish()


def test_every_type_that_transformers_ships_is_in_the_zoo():
    lists = [zoo.TYPES, zoo.LARGE, zoo.REFUSED, zoo.LEFT_OUT]
    known = Counter(name for names in lists for name in names)
    missing = sorted(set(zoo.types()) - set(known))
    assert not missing, f"add to tests/zoo.py: {', '.join(missing)}"
    assert not [name for name, times in known.items() if times > 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.here(sorted(zoo.LARGE)))
def test_types_without_a_tiny_configuration_are_observed_at_full_size(name):
    model = zoo.outline(name)
    anatomy = observe(model)
    text = model.config.get_text_config(decoder=True)
    assert not anatomy.unsure
    assert anatomy.width == text.hidden_size
    assert len(anatomy.blocks) == getattr(text, "decoder_layers", text.num_hidden_layers)
    assert {site.block for site in anatomy.sites} == set(range(len(anatomy.blocks)))


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.here(zoo.REFUSED))
def test_what_cannot_be_measured_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=re.escape(zoo.REFUSED[name])):
        observe(zoo.outline(name))


def test_what_depends_on_the_text_and_was_taken_for_fixed_stops_the_run(tmp_path):
    zoo.build("gemma4_text").save_pretrained(tmp_path)
    with closing(Folder(tmp_path, headers.shards(tmp_path))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="float32")
        blocks = [
            replace(block, arguments=tuple(replace(one, fixed=True) for one in block.arguments))
            for block in engine.anatomy.blocks
        ]
        engine.anatomy = replace(engine.anatomy, blocks=tuple(blocks))
        with pytest.raises(NotAsObservedError, match=r"layers\.0 is called with something of the"):
            recorded(engine.model, partial(one_by_one, engine))


def one_by_one(engine, recorder, wanted, *, micro_batch, progress):
    return engine.run(recorder, wanted, micro_batch=1, progress=progress)
