import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.models import columns
from headrace.models.encoders import ItemEncoder
from headrace.models.preprocessing import (
    GAP_BUCKETS,
    MISSING,
    Catalogue,
    Number,
    Numbers,
    Preprocessing,
    Vocabulary,
    gap_buckets,
)
from headrace.settings import DAY_US, MICROS
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US


def test_a_known_value_has_its_own_code_and_a_missing_one_has_zero() -> None:
    vocabulary = Vocabulary(["x", "y"])
    assert [vocabulary.code(value) for value in ("x", "y", None, "", float("nan"))] == [2, 3, MISSING, MISSING, MISSING]


def test_an_unseen_value_falls_into_a_bucket_that_depends_on_the_value_alone() -> None:
    one, two = Vocabulary(["x"], buckets=4), Vocabulary(["x", "y"], buckets=4)
    assert one.code("never seen") == two.code("never seen")
    assert 1 <= one.code("never seen") <= 4
    assert len({one.code(f"value {number}") for number in range(100)}) == 4


def test_the_most_frequent_values_are_kept_and_the_rest_share_the_buckets() -> None:
    cut = Vocabulary.fit({"rare": 1, "often": 9, "some": 3, "": 99}, max_size=2, buckets=5)
    assert (cut.values, cut.buckets) == (["often", "some"], 5)
    whole = Vocabulary.fit({"rare": 1, "often": 9}, max_size=2, buckets=5)
    assert (whole.values, whole.buckets) == (["often", "rare"], 1)


def test_a_count_that_is_null_or_negative_reads_as_zero() -> None:
    number = Number("views", "count", mean=0.0, std=1.0)
    values = Numbers((number,)).apply(np.array([[math.e - 1], [np.nan], [-3.0], [0.0]]))
    assert values.ravel().tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])


def test_a_measure_that_is_missing_reads_as_the_mean_and_sets_its_flag() -> None:
    number = Number.fit("price", "measure", np.array([0.0, math.e**2 - 1, np.nan]))
    assert (number.mean, number.std) == (pytest.approx(1.0), pytest.approx(1.0))
    assert Numbers((number,)).apply(np.array([[0.0], [np.nan]])).tolist() == [[-1.0, 0.0], [0.0, 1.0]]


def test_a_feature_of_one_value_alone_is_centred_and_not_divided_by_zero() -> None:
    assert Numbers((Number.fit("price", "measure", np.array([5.0, 5.0])),)).apply(np.array([[5.0]])).tolist() == [
        [0.0, 0.0]
    ]
    assert Numbers((Number.fit("price", "measure", np.array([np.nan])),)).apply(np.array([[np.nan]])).tolist() == [
        [0.0, 1.0]
    ]


def test_gaps_are_powers_of_two_of_a_second() -> None:
    ago = np.array([0, 1, 2, 3, 7, 10**12]) * MICROS
    assert gap_buckets(np.array([T_US]), T_US - ago).tolist() == [1, 2, 2, 3, 4, GAP_BUCKETS - 1]


def test_a_history_ends_in_the_last_place_and_is_padded_with_zeros() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row)
    assert users.items_BL.tolist() == [[0, 2, 3], [0, 0, 4], [0, 0, 0]]
    assert users.gaps_BL.tolist() == [[0, 3, 2], [0, 0, 3], [0, 0, 0]]


def test_lists_of_unequal_length_are_cut_to_their_newest_common_part() -> None:
    fitted = tiny_shop.preprocessing()
    features = {
        "user_activity__recent_items": [["a", "b"]],
        "user_activity__recent_types": [["click"]],
        "user_activity__recent_times": [[T_US - MICROS] * 3],
    }
    users = fitted.users(features, np.array([T_US]), {"a": 2, "b": 3}.__getitem__)  # type: ignore[arg-type]
    assert users.items_BL.tolist() == [[0, 0, 3]]
    assert users.gaps_BL.tolist() == [[0, 0, 2]]


def test_training_and_a_request_make_the_same_tensors() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    trained = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row)
    for row in range(3):
        request = {name: [value] for name, value in tiny_shop.request_of(row).items()}
        served = fitted.users(request, np.array([T_US]), shop.row)
        for ours, theirs in zip(served, trained.rows(torch.tensor([row])), strict=True):
            assert torch.equal(ours, theirs)


def test_one_user_is_what_users_of_one_are() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    numbers = [number.name for number in fitted.user_numbers]
    uneven = {
        "user_activity__recent_items": [["a", None, "never seen", "b"]],
        "user_activity__recent_types": [["click", "view", "view"]],
        "user_activity__recent_times": [[T_US - 3 * MICROS] * 5],
    }
    requests: list[dict[str, Any]] = [
        {},
        {"user_activity__recent_items": [["a"]]},
        {name: [None] for name in tiny_shop.request_of(0)},
        {name: [np.inf] for name in numbers},
        {name: np.array([-2.5]) for name in numbers},
        uneven,
        *({name: [value] for name, value in tiny_shop.request_of(row).items()} for row in range(3)),
    ]
    for request in requests:
        users = fitted.users(request, np.array([T_US]), shop.row)
        for ours, theirs in zip(fitted.user(request, T_US, shop.row), users, strict=True):
            assert (ours.dtype, ours.tolist()) == (theirs.numpy().dtype, theirs[0].tolist())


@settings(deadline=None)  # compiling takes long
@given(st.integers(-(10**7), 2**40))
def test_a_gap_is_cut_where_the_logarithm_of_its_seconds_is_whole(since_us: int) -> None:
    expected = min(1 + math.floor(math.log2(1 + max(since_us, 0) / MICROS)), GAP_BUCKETS - 1)
    assert gap_buckets(np.array([T_US]), np.array([T_US - since_us])).tolist() == [expected]


@settings(deadline=None)  # compiling takes long
@given(st.floats(-1e6, 1e6) | st.integers(-2_000, 2_000).map(float) | st.sampled_from([math.nan, math.inf]))
def test_numbers_are_scaled_as_their_rule_says(value: float) -> None:
    both = Numbers((Number("a", "measure", mean=0.7, std=1.3), Number("b", "count", mean=0.2, std=0.5)))
    measure, flag, count = both.apply(np.array([[value, value]]))[0].tolist()
    is_known = math.isfinite(value)
    assert flag == (not is_known)
    expected = (math.copysign(math.log1p(abs(value)), value) - 0.7) / 1.3 if is_known else 0.0
    assert measure == pytest.approx(expected, abs=1e-6)
    assert count == pytest.approx((math.log1p(max(value, 0.0) if is_known else 0.0) - 0.2) / 0.5, abs=1e-6)


@settings(deadline=None)  # compiling takes long
@given(st.floats(-(10**4), 10**4))
def test_a_time_is_read_as_its_age_in_days_and_what_is_to_come_as_new(age_days: float) -> None:
    listed = Number("listed_at", "age", mean=0.7, std=1.3, now_us=T_US)
    time_us = round(T_US - age_days * DAY_US)
    value, flag = Numbers((listed,)).apply(np.array([[float(time_us)]]))[0].tolist()
    assert flag == 0
    assert value == pytest.approx((math.log1p(max(T_US - time_us, 0) / DAY_US) - 0.7) / 1.3, abs=1e-6)


def test_a_time_of_the_catalogue_is_an_age_when_it_was_read() -> None:
    listed = pa.array([T_US, T_US - 3 * DAY_US, T_US + DAY_US, None], pa.int64())
    catalogue = tiny_shop.catalogue().append_column("item_catalogue__listed_at", listed)
    fitted = Preprocessing.fit(tiny_shop.users(), catalogue, tiny_shop.activity(), {"a": 1}, now_us=T_US, length=3)
    age = fitted.content_numbers[-1]
    assert (age.kind, age.now_us, age.mean) == ("age", T_US, pytest.approx(math.log1p(3) / 3))
    assert Preprocessing.from_json(fitted.to_json()).content_numbers == fitted.content_numbers
    [new, old, to_come, unknown] = (
        fitted.items(columns.by_name(catalogue), with_activity=False).content_NF[:, 2:].tolist()
    )
    assert new == to_come
    assert old[0] > 0 > new[0]
    assert unknown == [0.0, 1.0]


def test_ages_stand_behind_what_lasts_and_no_vector_of_an_item_is_made_of_them() -> None:
    days = pa.array([T_US - day * DAY_US for day in (0, 1, 30, 400)], pa.int64())
    catalogue = tiny_shop.catalogue().add_column(1, "item_catalogue__listed_at", days)
    fitted = Preprocessing.fit(tiny_shop.users(), catalogue, tiny_shop.activity(), {"a": 1}, now_us=T_US, length=3)
    assert [number.kind for number in fitted.content_numbers] == ["measure", "age"]
    assert (fitted.lasting_width, fitted.content_width) == (2, 4)
    encoder = tiny_shop.stirred(ItemEncoder(fitted, tiny_shop.MODEL))
    items = fitted.items(columns.by_name(catalogue), with_activity=False)
    renewed = items._replace(content_NF=items.content_NF + torch.tensor([0.0, 0.0, 1.0, 0.0]))
    dearer = items._replace(content_NF=items.content_NF + torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert torch.equal(encoder(items), encoder(renewed))
    assert not torch.equal(encoder(items), encoder(dearer))


def test_an_absent_feature_reads_as_null() -> None:
    fitted = tiny_shop.preprocessing()
    absent = fitted.items({"item_id": ["a"]}, with_activity=True)
    null = {name: [None] for name in ("item_catalogue__category", "item_catalogue__brand", "item_catalogue__price")}
    given = fitted.items({"item_id": ["a"], **null, "item_activity__views_1h": [None]}, with_activity=True)
    for ours, theirs in zip(absent, given, strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.isnan(ours.float()).any()


def test_items_without_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="no column 'item_id'"):
        tiny_shop.preprocessing().items({}, with_activity=False)


def test_titles_and_availability_are_no_inputs() -> None:
    fitted = tiny_shop.preprocessing()
    assert list(fitted.content_categories) == ["item_catalogue__category", "item_catalogue__brand"]
    assert [number.name for number in fitted.content_numbers] == ["item_catalogue__price"]


def test_an_item_outside_training_is_unknown_by_id_and_keeps_its_content() -> None:
    fitted = tiny_shop.preprocessing()
    items = fitted.items(columns.by_name(tiny_shop.catalogue()), with_activity=False)
    assert items.id_N.tolist() == [2, 3, 4, 1]
    assert items.categories_NC[2, 0] == items.categories_NC[3, 0] > 1


def test_preprocessing_survives_json() -> None:
    fitted = tiny_shop.preprocessing()
    again = Preprocessing.from_json(fitted.to_json())
    assert again.to_json() == fitted.to_json()
    assert again.ids.code("b") == fitted.ids.code("b")


def test_a_catalogue_that_names_an_item_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="names item 'a' twice; keep its newest row alone"):
        Catalogue(tiny_shop.preprocessing(), {"item_id": ["a", "a"]})


def with_lists() -> Preprocessing:
    catalogue = tiny_shop.catalogue().append_column(
        "item_catalogue__attributes",
        pa.array([["red", "round"], ["red"], None, []], pa.list_(pa.string())),
    )
    return Preprocessing.fit(
        tiny_shop.users(), catalogue, tiny_shop.activity(), {"a": 3, "b": 2, "c": 1}, now_us=0, length=3
    )


def test_a_list_of_strings_is_the_codes_of_its_values_padded_with_zeros() -> None:
    fitted = with_lists()
    strings = fitted.content_lists["item_catalogue__attributes"]
    assert (strings.width, strings.vocabulary.values) == (2, ["red", "round"])
    lists = [["round", "red"], ["never seen"], [], None, ["red", "round", "beyond the width"]]
    items = fitted.items({"item_id": list("abcde"), "item_catalogue__attributes": lists}, with_activity=False)
    assert items.lists_NA.tolist() == [[3, 2], [1, 0], [0, 0], [0, 0], [2, 3]]
    column = pa.chunked_array([pa.array(lists, pa.list_(pa.string()))])
    arrow = fitted.items(
        {"item_id": pa.array(list("abcde")), "item_catalogue__attributes": column}, with_activity=False
    )
    assert arrow.lists_NA.tolist() == items.lists_NA.tolist()
    assert "item_catalogue__attributes" in fitted.content_features


def test_lists_survive_json_and_are_empty_where_a_request_lacks_them() -> None:
    fitted = Preprocessing.from_json(with_lists().to_json())
    assert fitted.to_json() == with_lists().to_json()
    assert fitted.items({"item_id": ["a", "b"]}, with_activity=False).lists_NA.tolist() == [[0, 0], [0, 0]]


def test_a_catalogue_without_lists_has_no_places_for_them() -> None:
    fitted = tiny_shop.preprocessing()
    assert fitted.items({"item_id": ["a", "b"]}, with_activity=False).lists_NA.shape == (2, 0)


def test_an_event_that_names_no_item_is_an_event_on_an_unknown_one() -> None:
    """In a request and in columns alike: else the places of a history would have holes."""
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    asked = {
        "user_activity__recent_items": [["a", None]],
        "user_activity__recent_types": [["view", "view"]],
        "user_activity__recent_times": [[T_US - 7, T_US - 5]],
    }
    assert fitted.users(asked, np.array([T_US]), shop.row).items_BL.tolist() == [[0, 2, 1]]
    assert fitted.user(asked, T_US, shop.row).items_L.tolist() == [0, 2, 1]
