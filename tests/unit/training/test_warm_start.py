"""What a new model takes over from an old one."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from headrace.models.bundle import Bundle
from headrace.models.config import CART, CLICK, PURCHASE, ModelConfig
from headrace.models.encoders import CodeEmbedding
from headrace.models.preprocessing import Preprocessing, Vocabulary
from headrace.models.ranker import Ranker
from headrace.models.scorer import Scorer
from headrace.models.towers import TwoTowers
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import MODEL, T_US
from training.warm_start import Trained, begin_from, has_seen, warmed

OLD = tiny_shop.bundle()


def fresh(kind: type[nn.Module], preprocessing: Preprocessing, model: ModelConfig = MODEL) -> nn.Module:
    torch.manual_seed(7)
    return kind(preprocessing, model)


def trained(part: nn.Module, preprocessing: Preprocessing, model: ModelConfig = MODEL) -> Trained:
    return Trained(part.state_dict(), preprocessing, model)


def warm(
    kind: type[nn.Module], preprocessing: Preprocessing, model: ModelConfig = MODEL
) -> tuple[nn.Module, tuple[str, ...]]:
    old = OLD.towers if kind is TwoTowers else OLD.ranker
    own = fresh(kind, preprocessing, model)
    found = warmed(trained(old, OLD.preprocessing), trained(own, preprocessing, model))
    own.load_state_dict(found.state)
    return own.eval(), found.fresh


def scorer(preprocessing: Preprocessing, towers: nn.Module, ranker: nn.Module) -> Scorer:
    return replace(OLD, preprocessing=preprocessing, towers=towers, ranker=ranker).scorer()


def test_with_the_same_vocabularies_the_new_models_score_as_the_champion_before_they_are_fitted() -> None:
    towers, fresh_towers = warm(TwoTowers, OLD.preprocessing)
    ranker, fresh_ranker = warm(Ranker, OLD.preprocessing)
    assert fresh_towers == fresh_ranker == ()
    begun, champion = scorer(OLD.preprocessing, towers, ranker), OLD.scorer()
    items = {**OLD.snapshot.features, "item_activity__views_1h": [3, 0, None, 1]}
    for row in range(3):
        user = tiny_shop.request_of(row)
        assert np.array_equal(begun.user_vector(user, T_US), champion.user_vector(user, T_US))
        assert np.array_equal(begun.rank(user, items, T_US), champion.rank(user, items, T_US))
    assert np.array_equal(begun.item_vectors(items), champion.item_vectors(items))


def test_a_row_follows_its_string_and_a_new_string_begins_as_what_the_old_model_took_it_for() -> None:
    """Items were a, b, c in this order and are c, e, a, b; nobody knew e."""
    grown = replace(OLD.preprocessing, ids=Vocabulary(["c", "e", "a", "b"]))
    towers, fresh_towers = warm(TwoTowers, grown)
    assert fresh_towers == ()
    old = OLD.towers.item_encoder.ids.table.weight
    new = towers.item_encoder.ids.table.weight
    assert OLD.preprocessing.ids.values == ["a", "b", "c"]
    assert torch.equal(new, old[[0, 1, 4, 1, 2, 3]])  # missing, the bucket, then c, e, a, b


def test_buckets_of_another_number_begin_at_the_mean_of_the_old_ones() -> None:
    old = replace(OLD.preprocessing, ids=Vocabulary(["a"], buckets=2))
    new = replace(OLD.preprocessing, ids=Vocabulary(["a"], buckets=3))
    before, after = fresh(TwoTowers, old), fresh(TwoTowers, new)
    key = "item_encoder.ids.table.weight"
    rows = before.state_dict()[key]
    found = warmed(trained(before, old), trained(after, new)).state[key]
    mean = (rows[1] + rows[2]) / 2
    assert torch.equal(found, torch.stack([rows[0], mean, mean, mean, rows[3]]))


def test_a_category_is_found_by_its_name_and_not_by_its_place() -> None:
    names = list(OLD.preprocessing.content_categories)
    turned = {name: OLD.preprocessing.content_categories[name] for name in reversed(names)}
    towers, kept = warm(TwoTowers, replace(OLD.preprocessing, content_categories=turned))
    assert kept == ()
    assert torch.equal(
        towers.item_encoder.categories[1].table.weight, OLD.towers.item_encoder.categories[0].table.weight
    )
    _, fresh_ranker = warm(Ranker, replace(OLD.preprocessing, content_categories=turned))
    assert fresh_ranker == ("project_item.weight",)  # its matches are by place


def test_a_projection_that_reads_other_numbers_keeps_its_fresh_start() -> None:
    renamed = tuple(replace(number, name=f"{number.name}_new") for number in OLD.preprocessing.user_numbers)
    other = replace(OLD.preprocessing, user_numbers=renamed)
    towers, kept = warm(TwoTowers, other)
    assert kept == ("user_encoder.numbers.weight",)
    assert torch.equal(towers.user_encoder.numbers.weight, fresh(TwoTowers, other).user_encoder.numbers.weight)
    assert set(warm(Ranker, other)[1]) == {"user_encoder.numbers.weight", "project_user.weight"}


def test_other_outcomes_and_other_heads_mean_something_else_in_the_same_shape() -> None:
    bought = replace(MODEL, outcomes=(CLICK, PURCHASE))
    assert set(warm(Ranker, OLD.preprocessing, bought)[1]) == {
        "out_crossed.weight", "out_crossed.bias", "out_deep.weight", "position_bias.weight",
    }  # fmt: skip
    assert MODEL.outcomes == (CLICK, CART)
    heads = warm(Ranker, OLD.preprocessing, replace(MODEL, heads=4))[1]
    assert set(heads) == {"query.weight", "query.bias", "key.weight", "key.bias"}


def test_a_longer_history_and_one_more_layer_keep_what_fits() -> None:
    longer = replace(OLD.preprocessing, length=5)
    _, kept = warm(TwoTowers, longer, replace(MODEL, layers=3))
    nearness = {"blocks.0.nearness", "blocks.1.nearness"}
    assert nearness < set(kept)
    assert {key.split(".")[1] for key in set(kept) - nearness} == {"2"}


def test_a_feature_that_the_old_model_did_not_have_begins_afresh() -> None:
    users = tiny_shop.users().append_column("user_profile__plan", pa.array(["free", "paid", None]))
    more = Preprocessing.fit(
        users, tiny_shop.catalogue(), tiny_shop.activity(), {"a": 3, "b": 2, "c": 1}, now_us=0, length=3
    )
    _, kept = warm(TwoTowers, more)
    place = list(more.user_categories).index("user_profile__plan")
    assert kept == (f"user_encoder.categories.{place}.table.weight",)


def test_what_begins_afresh_is_named(caplog: pytest.LogCaptureFixture) -> None:
    own = fresh(TwoTowers, replace(OLD.preprocessing, length=5))
    with caplog.at_level(logging.INFO, "training.warm_start"):
        begin_from(OLD, OLD.towers, own, replace(OLD.preprocessing, length=5), MODEL)
    tensors = len(own.state_dict())
    assert caplog.messages == [
        f"TwoTowers: {tensors - 2} of {tensors} tensors begin as those of bundle first; 2 begin afresh",
        "afresh begin blocks.0.nearness, blocks.1.nearness",
    ]


class Others(TwoTowers):
    """The same tensors under the same names, which may mean something else."""

    def __init__(self, preprocessing: Preprocessing, model: ModelConfig) -> None:
        super().__init__(preprocessing, model)
        self.colours = CodeEmbedding(Vocabulary(["red", "blue"]), model.width)


def fresh_after(old: nn.Module, new: nn.Module, preprocessing: Preprocessing, caplog: pytest.LogCaptureFixture) -> str:
    """What is said to have kept the start of the new model."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "training.warm_start"):
        begin_from(OLD, old, new, preprocessing, MODEL)
    return caplog.messages[1].removeprefix("afresh begin ")


def test_of_a_champion_of_another_class_only_encoders_are_taken_over(caplog: pytest.LogCaptureFixture) -> None:
    own = fresh(Others, OLD.preprocessing)
    kept = fresh_after(OLD.towers, own, OLD.preprocessing, caplog).split(", ")
    assert {key.split(".")[0] for key in kept} == {"start", "blocks", "norm", "out", "colours"}
    assert torch.equal(own.item_encoder.ids.table.weight, OLD.towers.item_encoder.ids.table.weight)


def test_a_class_of_ones_own_goes_on_from_itself_but_for_codes_that_nobody_knows_the_strings_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, own = Others(OLD.preprocessing, MODEL), fresh(Others, OLD.preprocessing)
    assert fresh_after(before, own, OLD.preprocessing, caplog) == "colours.table.weight"
    renamed = tuple(replace(number, name=f"{number.name}_new") for number in OLD.preprocessing.user_numbers)
    other = replace(OLD.preprocessing, user_numbers=renamed)
    kept = fresh_after(before, fresh(Others, other), other, caplog).split(", ")
    assert {"start", "user_encoder.numbers.weight", "out.weight"} < set(kept)


def test_weights_that_have_learnt_from_the_test_are_no_start() -> None:
    champion: Bundle = OLD
    assert has_seen(champion, champion.manifest.cut_us) is None
    said = has_seen(champion, champion.manifest.cut_us - 1)
    assert said is not None
    assert said.startswith(f"both models begin from nothing and not as those of bundle {champion.version}")
