"""Catalogue and profiles from the lake into the online store, through Feast."""

import sys
from contextlib import redirect_stdout
from datetime import UTC, datetime

from headrace import names
from headrace.clock import Clock, from_micros, system_clock
from headrace.settings import Settings
from headrace.stores.feature_store import open_feature_store


def materialize_plain_views(settings: Settings, clock: Clock = system_clock) -> None:
    """The newest row of every item and user up to now, over all history. Feast reports on stderr."""
    store = open_feature_store(settings)
    with redirect_stdout(sys.stderr):
        store.materialize(
            start_date=datetime(1970, 1, 1, tzinfo=UTC),
            end_date=from_micros(clock()),
            feature_views=[names.ITEM_CATALOGUE, names.USER_PROFILE],
        )
