"""Architectures are found by name; a name that none has is told with what to do."""

from pathlib import Path

import pytest

from headrace.models.architectures import RANKERS, TOWERS, ArchitectureError, ranker_class, ranker_of, towers_of
from headrace.models.config import ModelConfig
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers
from tests.unit.models import tiny_shop
from tests.unit.models.foreign import Line, Mean

FITTED = tiny_shop.preprocessing()


def test_the_names_of_this_package_are_its_classes() -> None:
    config = ModelConfig(width=8)
    assert (config.towers, config.ranker) == (*TOWERS, *RANKERS)
    assert type(towers_of(FITTED, config)) is TwoTowers
    assert type(ranker_of(FITTED, config)) is Ranker


def test_any_class_on_the_python_path_is_an_architecture() -> None:
    here = "tests.unit.models.foreign"
    config = ModelConfig(width=8, towers=f"{here}:Mean", ranker=f"{here}:Line")
    assert type(towers_of(FITTED, config)) is Mean
    assert type(ranker_of(FITTED, config)) is Line
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("casual", "no towers 'casual': .* choose from causal, or name a class as module:Class"),
        (":Mean", "no towers ':Mean': .* choose from causal, or name a class as module:Class"),
        ("no_such:Mean", "no_such cannot be imported .*: put its folder on PYTHONPATH, wherever it is needed"),
        ("tests.unit.models.foreign:Median", "module tests.unit.models.foreign has no Median"),
        ("tests.unit.models.foreign:Line", "it is no subclass of Towers"),
        ("headrace.models.base:Towers", "the class lacks items, users"),
    ],
)
def test_a_name_that_no_towers_have_is_told_with_the_remedy(name: str, said: str) -> None:
    with pytest.raises(ArchitectureError, match=said):
        towers_of(FITTED, ModelConfig(width=8, towers=name))


def test_a_ranker_that_lacks_a_method_is_told_which() -> None:
    with pytest.raises(ArchitectureError, match="the class lacks encode, raw_logits"):
        ranker_class("headrace.models.base:PlainRanker")


def test_a_module_that_is_not_named_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_models.py").write_text("raise ImportError('needs a package that is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    assert ModelConfig(towers="broken_models:Own").towers == "broken_models:Own"
    with pytest.raises(ArchitectureError, match="needs a package that is not there"):
        towers_of(FITTED, ModelConfig(towers="broken_models:Own"))
