"""First stage of a request: the user's rows from the store, then one t, then the features as of it."""

from typing import Any, Final

from headrace import names
from headrace.clock import Clock
from headrace.stores.online_line import LateError
from serving import candidates as c
from serving.candidates import Trace
from serving.interfaces import STORE_ERRORS, FeatureReader, Features, Fetched, PlainRows, Rows
from serving.state import ServingState, User

USER_VIEWS: Final = (names.USER_ACTIVITY, names.USER_PROFILE)


def hydrate(
    user_key: str | None,
    state: ServingState,
    reader: FeatureReader | None,
    clock: Clock,
    age_bound_us: int,
    trace: Trace,
    sent: Any | None = None,
) -> tuple[User, int | None]:
    """The user, and the age of the features: t minus the time up to which the user's shard is complete.

    State first, then t: after the clock, the user's newest event, and every event in the replica's columns. Features that are older
    than the bound count as unavailable; a user who is quiet is not old. `sent` is what the reader gave for `ask(wanted(user_key))`.
    """
    newest_us = state.activity.newest_us if state.activity is not None else 0
    rows = fetch(user_key, reader, trace, sent) if user_key is not None else None
    if rows is None:
        return User(None, max(clock(), newest_us + 1), {}), None
    t_us = max(clock(), rows.newest_us + 1, newest_us + 1)
    if rows.complete_us == 0:
        trace.degrade(c.EMPTY_STORE)
    age_us = max(0, t_us - rows.complete_us) if rows.complete_us else None
    if age_us is not None and age_us > age_bound_us:
        trace.degrade(c.STALE_FEATURES)
        return User(None, t_us, {}), age_us
    if rows.newest_us == 0:
        trace.degrade(c.UNKNOWN_USER)
    if rows.waiting:
        trace.degrade(c.WAITING_FEATURES)
    try:
        return User(rows, t_us, values_of(rows, t_us)), age_us
    except STORE_ERRORS as error:
        trace.degrade(c.NO_USER_FEATURES, error)
        return User(None, t_us, {}), age_us


def wanted(user_key: str) -> dict[str, list[str]]:
    """Rows that a request reads."""
    keys = [user_key]  # one list, so it is placed once
    return {view: keys for view in USER_VIEWS}


def fetch(user_key: str, reader: FeatureReader | None, trace: Trace, sent: Any | None) -> Fetched | None:
    """The user's rows; None, and named as degraded, where they cannot be had in time."""
    if reader is None:
        trace.degrade(c.NO_USER_FEATURES)
        return None
    left_s = trace.left_s()
    if left_s <= 0:
        trace.degrade(c.LATE_FEATURES)
        return None
    try:
        return reader.fetch(wanted(user_key), within_s=left_s / 2, sent=sent)
    except LateError:
        trace.degrade(c.LATE_FEATURES)
        return None
    except STORE_ERRORS as error:
        trace.degrade(c.NO_USER_FEATURES, error)
        return None


def values_of(fetched: Fetched, t_us: int) -> Features:
    """All features at t, by `view__feature`."""
    rows: dict[str, Rows | PlainRows] = {**fetched.streams, **fetched.plain}
    return {f"{view}__{name}": column for view, each in rows.items() for name, column in each.values(t_us).items()}
