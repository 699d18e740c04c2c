import re
from pathlib import Path

import pytest

from training.changes import parse_change, parse_changes
from training.config import TrainConfig, by_name, configured, default, large, of_size, small


def test_one_dial_sets_rows_width_and_history() -> None:
    assert [config().width for config in (small, default, large)] == [32, 64, 128]
    assert [config().max_positives for config in (small, default, large)] == [20_000, 80_000, 320_000]
    assert [(config().layers, config().length) for config in (small, default, large)] == [(1, 30), (2, 50), (3, 50)]
    assert [config().model(("click",)).cross_width for config in (small, default, large)] == [160, 256, 448]


def test_an_unknown_key_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"unknown training setting epochs=3; known are .*tower_epochs"):
        small().changed(epochs=3)


def test_an_unknown_config_is_an_error_that_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"no training config 'tiny': choose from small, default, large"):
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
        (":mine", "choose from small, default, large, or name a function of your own as module:function"),
        ("no_such_configs:mine", "cannot be imported .*: put its folder on PYTHONPATH"),
    ],
)
def test_a_config_that_cannot_be_found_is_told_with_the_remedy(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        by_name(name)


def test_a_change_from_the_command_line_has_the_type_of_its_key() -> None:
    assert parse_change("tower_epochs=3", TrainConfig) == ("tower_epochs", 3)
    assert parse_change("test_share=0.2", TrainConfig) == ("test_share", 0.2)
    assert parse_change("device=cuda", TrainConfig) == ("device", "cuda")
    assert parse_change("ranker=my_models:Line", TrainConfig) == ("ranker", "my_models:Line")
    assert parse_changes(["seed=1", "days=2", "seed=3"], TrainConfig) == {"seed": 3, "days": 2.0}


def test_a_change_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot read 'tower_epochs': write key=value with a key of .*tower_epochs"):
        parse_change("tower_epochs", TrainConfig)
    with pytest.raises(
        ValueError, match=r"no setting 'learning_rte': did you mean learning_rate\? Known are averaging"
    ):
        parse_change("learning_rte=3", TrainConfig)
    with pytest.raises(ValueError, match=r"no setting .max_tests.: did you mean max_test\? Known are max_test, seed$"):
        parse_change("max_tests=3", TrainConfig, ("seed", "max_test"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tower_epochs=many", "tower_epochs is 'many': write tower_epochs=VALUE with a whole number"),
        ("tower_epochs=1.5", "tower_epochs is '1.5': write tower_epochs=VALUE with a whole number"),
        ("learning_rate=", "learning_rate is '': write learning_rate=VALUE with a number"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key_and_the_remedy(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        parse_change(text, TrainConfig)


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("days", 0.0, "above 0"),
        ("days", float("nan"), "finite"),
        ("days", float("inf"), "finite"),
        ("test_share", 1.0, "between 0 and 1"),
        ("validation_share", 1.0, "from 0 to 1, 1 left out"),
        ("test_days", -1.0, "0 or more"),
        ("validation_days", -0.5, "0 or more"),
        ("outcome_hours", 0.0, "above 0"),
        ("max_test", -1, "0 or more"),
        ("resamples", -1, "0 or more"),
        ("list_length", 1, "at least 2: of one candidate there is no order"),
        ("width", 33, "a multiple of heads, which is 2"),
        ("heads", 0, "at least 1"),
        ("dropout", 1.0, "from 0 to 1, 1 left out"),
        ("averaging", 1.0, "from 0 to 1, 1 left out"),
        ("learning_rate", 0.0, "above 0"),
        ("weight_decay", -0.1, "0 or more"),
        ("tower_epochs", 0, "at least 1"),
        ("layers", -3, "at least 1"),
        ("layers", 65, "at most 64"),
        ("seed", -1, "0 or more"),
        ("seed", 2**32, "at most 4,294,967,295"),
        ("days", 1e300, "at most 36,525"),
        ("test_days", 1e300, "at most 36,525"),
        ("validation_days", 40_000.0, "at most 36,525"),
        ("outcome_hours", 1e300, "at most 876,600"),
        ("width", 2_000_000_000, "at most 8,192"),
        ("cross_width", 8_193, "at most 8,192"),
        ("length", 8_193, "at most 8,192"),
        ("size", 65, "at most 64"),
        ("threads", 2_000, "at most 1,024"),
        ("max_test", 2**31, "at most 2,147,483,647"),
        ("exact_below", -1, "0 or more"),
        ("resamples", 99, "0, for no intervals, or at least 100: fewer give no ends of an interval"),
        ("name", "a/b", "a word without a slash: folders bear it"),
        ("index_recall", 0.9, "from 0.95 to 1"),
        ("index_recall", 1.01, "from 0.95 to 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key: str, value: float | str, bound: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{key} is {value}; it must be {bound}')}$"):
        small().changed(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("index_recall", 0.95), ("index_recall", 1.0), ("dropout", 0.0), ("validation_share", 0.0), ("test_days", 0.0),
     ("seed", 2**32 - 1), ("days", 36_525.0), ("resamples", 0), ("resamples", 100), ("width", 8_192)],
)  # fmt: skip
def test_a_bound_itself_is_taken(key: str, value: float) -> None:
    assert getattr(small().changed(**{key: value}), key) == value


def test_a_size_from_the_command_line_derives_what_grows_with_it_and_other_changes_come_after() -> None:
    three = configured("small", {"size": 3, "width": 34})
    assert three == of_size("size-3", 3).changed(width=34)
    assert (three.name, three.layers, three.width, three.cross_width) == ("size-3", 3, 34, 352)
    assert configured("small", {"seed": 4, "size": 1}) == small().changed(seed=4)
    assert configured("large", {}) == large()
    with pytest.raises(ValueError, match=r"^size is 0; it must be at least 1$"):
        configured("small", {"size": 0})
    with pytest.raises(ValueError, match=r"^size is 1000000; it must be at most 64$"):
        configured("small", {"size": 1_000_000})


def test_a_size_for_a_config_of_ones_own_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"^size is 3, but .* let own_configs:mine begin with `of_size\(name, 3\)`"):
        configured("own_configs:mine", {"size": 3})


def test_zero_test_requests_means_all_of_them() -> None:
    assert small().changed(max_test=0, max_ranked_requests=0).max_test == 0


def test_a_config_survives_json() -> None:
    assert TrainConfig.from_json(large().to_json()) == large()
