import numpy as np
import polars as pl
import pytest

from headrace.models import columns
from headrace.models.preprocessing import Catalogue
from tests.unit.models import tiny_shop
from training.measures import Facts, facts_of, together, values_of
from training.requests import Histories, Requests

# Shares 1/2, 1/4, 1/8, 1/8 in categories 0, 0, 1 and none.
FACTS = Facts(np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8]), np.array([0, 0, 1, -1]), ("shoes", "books"))
REQUESTS = Requests(
    pl.DataFrame(), np.array([0, 1]), np.array([2, 3]), Histories(np.zeros(3, np.int64), np.zeros(0, np.int64))
)


def test_a_slate_is_measured_by_where_its_target_stands() -> None:
    found = values_of(np.array([[0, 2, -1], [0, 1, 2]]), REQUESTS, FACTS)
    assert (
        found["recall_at_10"].tolist() == found["hit_rate_at_20"].tolist() == found["recall_at_100"].tolist() == [1, 0]
    )
    assert found["ndcg_at_10"].tolist() == pytest.approx([1 / np.log2(3), 0])
    assert found["mrr"].tolist() == found["map_at_10"].tolist() == [1 / 2, 0]
    assert found["novelty_at_10"].tolist() == [(1 + 3) / 2, (1 + 2 + 3) / 3]
    assert found["diversity_at_10"].tolist() == pytest.approx([1, 2 / 3])


def test_all_slates_together_cover_and_share_out() -> None:
    assert together(np.array([2, 2, 0, 0])) == {"coverage_at_10": 1 / 2, "gini_at_10": 1 / 2}


def test_facts_are_the_shares_with_one_added_and_the_categories_by_name() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    facts = facts_of(fitted, shop, np.array([3, 1, 0, 0], np.float32))
    assert facts.share_I.tolist() == [4 / 8, 2 / 8, 1 / 8, 1 / 8]
    assert [facts.categories[place] for place in facts.category_I] == ["shoes", "shoes", "books", "books"]


def test_a_category_that_is_missing_or_new_is_none() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, {"item_id": ["a", "b"], "item_catalogue__category": [None, "hats"]})
    assert facts_of(fitted, shop, np.zeros(2, np.float32)).category_I.tolist() == [-1, -1]
