from pathlib import Path

import pytest

from training.config import TrainConfig, by_name, default, large, parse_change, small


def test_one_dial_sets_rows_width_and_history() -> None:
    assert [config().width for config in (small, default, large)] == [32, 64, 128]
    assert [config().max_positives for config in (small, default, large)] == [20_000, 80_000, 320_000]
    assert [(config().layers, config().length) for config in (small, default, large)] == [(1, 30), (2, 50), (3, 50)]
    assert [config().model(("click",)).cross_width for config in (small, default, large)] == [160, 256, 448]


def test_an_unknown_key_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"unknown training setting epochs; known are .*tower_epochs"):
        small().changed(epochs=3)


def test_an_unknown_config_is_an_error_that_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"no training config 'tiny': .*; choose from small, default, large"):
        by_name("tiny")


OWN = """
from training.config import TrainConfig, small


def mine() -> TrainConfig:
    return small().changed(name="mine", towers="own_models:Mine")


def nothing() -> None:
    return None


size = 3
"""


def test_a_config_of_ones_own_is_a_function_on_the_python_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_configs.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = by_name("own_configs:mine")
    assert config == small().changed(name="mine", towers="own_models:Mine")
    assert (config.model(("click",)).towers, config.model(("click",)).ranker) == ("own_models:Mine", "crosses")
    with pytest.raises(ValueError, match="'own_configs:nothing': it returned NoneType, not a TrainConfig"):
        by_name("own_configs:nothing")
    with pytest.raises(ValueError, match="module own_configs has no yours"):
        by_name("own_configs:yours")
    with pytest.raises(ValueError, match="it is of type int, no function"):
        by_name("own_configs:size")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (":mine", "choose from small, default, large, or name a function as module:function"),
        ("no_such_configs:mine", "cannot be imported .*: put its folder on PYTHONPATH"),
    ],
)
def test_a_config_that_cannot_be_found_is_told_with_the_remedy(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        by_name(name)


def test_a_change_from_the_command_line_has_the_type_of_its_key() -> None:
    assert parse_change("tower_epochs=3") == ("tower_epochs", 3)
    assert parse_change("test_share=0.2") == ("test_share", 0.2)
    assert parse_change("device=cuda") == ("device", "cuda")
    assert parse_change("ranker=my_models:Line") == ("ranker", "my_models:Line")


@pytest.mark.parametrize("text", ["tower_epochs", "epochs=3"])
def test_a_change_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write key=value"):
        parse_change(text)


@pytest.mark.parametrize(
    ("key", "value"), [("test_share", 1.0), ("negatives", 0), ("days", 0.0), ("max_test", -1), ("resamples", -1)]
)
def test_a_value_out_of_range_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        small().changed(**{key: value})


def test_zero_test_requests_means_all_of_them() -> None:
    assert small().changed(max_test=0, max_ranked_requests=0).max_test == 0


def test_a_config_survives_json() -> None:
    assert TrainConfig.from_json(large().to_json()) == large()
