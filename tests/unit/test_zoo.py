"""Every type of causal language model that transformers ships, tiny: what is observed is so."""

import re
from collections import Counter

import pytest
import zoo
from proofs import prove

from moe_outliers.recording.observed import observe
from moe_outliers.recording.oracles import Oracles

FAST = zoo.here(zoo.FAST)
SLOW = [name for name in zoo.here([*zoo.TYPES, *zoo.VARIANTS]) if name not in FAST]


@pytest.mark.parametrize("name", FAST)
def test_one_of_each_kind_is_what_is_observed(name):
    model = zoo.build(name)
    prove(model, observe(model))


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
