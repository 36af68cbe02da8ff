"""No promise without a test, no test without a promise."""

import ast

from faults import COSTS, FAULTS
from snake import ROOT


def marked():
    """Give every test and the faults that it names."""
    for path in sorted(
        [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("packages/*/tests/test_*.py")]
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    text = ast.unparse(mark)
                    if text.startswith("pytest.mark.fault("):
                        yield (
                            f"{path.name}::{node.name}",
                            set(ast.literal_eval(f"({text[18:-1]},)")),
                        )


def test_every_fault_has_a_test_and_every_mark_names_a_fault():
    found = dict(marked())
    named = set().union(*found.values())
    assert named <= set(FAULTS)
    assert set(FAULTS) - named == {n for n, fault in FAULTS.items() if fault.untested}
    assert sorted(FAULTS) == list(range(1, len(FAULTS) + 1))
    assert len(named) >= 100


def test_of_every_fault_it_is_said_what_it_costs():
    assert sorted(number for numbers in COSTS.values() for number in numbers) == sorted(FAULTS)


def test_a_test_whose_name_has_a_number_names_that_fault():
    import re

    for test, numbers in marked():
        name = test.partition("::test_")[2]
        if span := re.match(r"(\d+)_to_(\d+)_", name):
            assert numbers >= set(range(int(span[1]), int(span[2]) + 1)), test
        elif alone := re.match(r"((?:\d+_)+)", name):
            assert numbers >= {int(n) for n in alone[1].strip("_").split("_")}, test
