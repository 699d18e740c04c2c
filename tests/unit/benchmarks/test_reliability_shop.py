"""What a request may get, as the owner of the catalogue knows it: the judge of `python -m benchmarks.reliability` must itself be right."""

from benchmarks.reliability_shop import AVAILABLE, DELETED, UNAVAILABLE, Item, KnownShop


def small_shop() -> KnownShop:
    return KnownShop(
        {
            "a": Item("shoes", "Acorn", 10.0),
            "b": Item("shoes", None, None),
            "c": Item("lamps", "Birch", 30.0, UNAVAILABLE),
            "d": Item(None, "Acorn", 20.0, DELETED),
        }
    )


def counts(
    shop: KnownShop, wanted: dict[str, object], exclude: tuple[str, ...] = (), at_s: float = 100.0
) -> tuple[int, int]:
    return tuple(shop.eligible(wanted, exclude, at_s, at_s))  # type: ignore[return-value]


def test_what_is_available_fits_the_filter_and_is_not_excluded_is_eligible() -> None:
    shop = small_shop()
    assert counts(shop, {}) == (2, 2)
    assert counts(shop, {"include_unavailable": True}) == (3, 3)
    assert counts(shop, {"category": ["shoes"], "brand": ["Acorn"]}) == (1, 1)
    assert counts(shop, {"min_price": 10.0, "max_price": 10.0}) == (1, 1)
    assert counts(shop, {"category": ["unheard of"]}) == (0, 0)
    assert counts(shop, {}, exclude=("a", "unheard of")) == (1, 1)
    assert [shop.may_show(item, {}, 100, 100) for item in ("a", "c", "d", "unheard of")] == [True, False, False, False]


def test_a_change_may_be_seen_or_not_until_two_seconds_after_its_acknowledgement_and_must_be_after() -> None:
    shop = small_shop()
    shop.change("a", Item("shoes", "Acorn", 10.0, UNAVAILABLE), sent_s=100.0)
    assert counts(shop, {}, at_s=99.0) == (2, 2)
    assert counts(shop, {}, at_s=101.0) == (1, 2)
    assert shop.eligible({}, (), 101.0, 150.0) == (1, 2)
    shop.acknowledge("a", 101.0)
    assert counts(shop, {}, at_s=102.9) == (1, 2)
    assert counts(shop, {}, at_s=103.1) == (1, 1)
    assert shop.may_show("a", {}, 102.9, 103.1)
    assert not shop.may_show("a", {}, 103.1, 103.2)
    assert counts(shop, {}, at_s=1_000.0) == (1, 1)
    assert not shop.is_changing("a")


def test_a_new_item_counts_once_it_must_be_known() -> None:
    shop = small_shop()
    shop.change("e", Item("lamps", "Birch", 5.0), sent_s=100.0)
    assert counts(shop, {"category": ["lamps"]}, at_s=101.0) == (0, 1)
    shop.acknowledge("e", 101.0)
    assert counts(shop, {"category": ["lamps"]}, at_s=104.0) == (1, 1)
    assert counts(shop, {"category": ["lamps"], "max_price": 5.0}, at_s=1_000.0) == (1, 1)


def test_during_a_fault_a_change_need_not_be_seen_before_two_seconds_after_it() -> None:
    shop = small_shop()
    shop.change("a", Item("shoes", "Acorn", 10.0, DELETED), sent_s=100.0)
    shop.acknowledge("a", 100.5)
    shop.hold()
    assert counts(shop, {}, at_s=110.0) == (1, 2)
    shop.release(120.0)
    assert counts(shop, {}, at_s=121.0) == (1, 2)
    assert counts(shop, {}, at_s=122.1) == (1, 1)


def test_a_change_that_is_not_acknowledged_stays_in_doubt() -> None:
    shop = small_shop()
    shop.change("c", Item("lamps", "Birch", 30.0, AVAILABLE), sent_s=100.0)
    assert counts(shop, {}, at_s=10_000.0) == (2, 3)
