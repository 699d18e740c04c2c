"""First stage of a request: features of the user and of the candidates, all as of one time."""

from collections.abc import Sequence
from typing import Final

from headrace import names
from headrace.clock import Clock
from serving import candidates as c
from serving.candidates import Candidate, Trace
from serving.interfaces import STORE_ERRORS, FeatureReader, Features, Fetched
from serving.state import User

USER_VIEWS: Final = (names.USER_ACTIVITY, names.USER_PROFILE)
ITEM_VIEWS: Final = (names.ITEM_ACTIVITY, names.ITEM_CATALOGUE)


def hydrate_user(user_key: str, reader: FeatureReader | None, clock: Clock, trace: Trace) -> User:
    """Rows first, then one t: the later of the clock and just after the newest event in those rows."""
    try:
        rows = reader.fetch({view: [user_key] for view in USER_VIEWS}) if reader and trace.has_time() else None
        if rows is not None:
            t_us = max(clock(), rows.newest_us + 1)
            if rows.newest_us == 0:
                trace.degrade(c.UNKNOWN_USER)
            if rows.waiting:
                trace.degrade(c.WAITING_FEATURES)
            return User(rows, t_us, values_of(rows, t_us))
    except STORE_ERRORS as error:
        trace.degrade(c.NO_USER_FEATURES, error)
    else:
        trace.degrade(c.NO_USER_FEATURES)
    return User(None, clock(), {})


def hydrate_items(
    kept: Sequence[Candidate], user: User, reader: FeatureReader | None, trace: Trace
) -> tuple[Features | None, User]:
    """Item features of the candidates, read in one round trip, and the user as of the same t.

    Should an item hold an event newer than the user's t (a clock ahead of ours), t moves behind it for both.
    """
    if reader is None or user.rows is None or not kept or not trace.has_time():
        return None, user
    try:
        rows = reader.fetch({view: [candidate.item_id for candidate in kept] for view in ITEM_VIEWS})
        if rows.waiting:
            trace.degrade(c.WAITING_FEATURES)
        if rows.newest_us >= user.t_us:
            t_us = rows.newest_us + 1
            user = User(user.rows, t_us, values_of(user.rows, t_us))
        return values_of(rows, user.t_us), user
    except STORE_ERRORS as error:
        trace.degrade(c.NO_ITEM_FEATURES, error)
        return None, user


def values_of(fetched: Fetched, t_us: int) -> Features:
    """All features at t, by `view__feature`."""
    rows = {**fetched.streams, **fetched.plain}
    return {f"{view}__{name}": column for view, each in rows.items() for name, column in each.values(t_us).items()}


def features_age(user: User, bound_us: int, trace: Trace) -> int | None:
    """t minus the time up to which the user's shard is complete."""
    if user.rows is None:
        return None
    if user.rows.complete_us == 0:
        trace.degrade(c.EMPTY_STORE)
        return None
    age_us = max(0, user.t_us - user.rows.complete_us)
    if age_us > bound_us:
        trace.degrade(c.STALE_FEATURES)
    return age_us
