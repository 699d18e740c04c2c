"""Names that cross a process boundary: event types, columns, views, services, applications. One place, constants only."""

from typing import Final

PROJECT: Final = "headrace"

# Event types (headrace.events gives each its rules).
IMPRESSION: Final = "impression"
VIEW: Final = "view"
DWELL: Final = "dwell"
SCROLL: Final = "scroll"
CLICK: Final = "click"
SEARCH: Final = "search"
ADD_TO_CART: Final = "add_to_cart"
REMOVE_FROM_CART: Final = "remove_from_cart"
BEGIN_CHECKOUT: Final = "begin_checkout"
PURCHASE: Final = "purchase"
RATE: Final = "rate"
LIKE: Final = "like"
DISLIKE: Final = "dislike"
HIDE: Final = "hide"
IDENTIFY: Final = "identify"
EVENT_TYPES: Final = (  # compiled into kernels, as is ANONYMOUS_PREFIX
    IMPRESSION, VIEW, DWELL, SCROLL, CLICK, SEARCH, ADD_TO_CART, REMOVE_FROM_CART,
    BEGIN_CHECKOUT, PURCHASE, RATE, LIKE, DISLIKE, HIDE, IDENTIFY,
)  # fmt: skip

# What the log holds beside events: operations on items, which `POST /v1/items` makes and `POST /v1/events` refuses (docs/items.md).
ITEM_UPSERT: Final = "item_upsert"
ITEM_STATUS: Final = "item_status"
"""Also the view and the table that such an operation becomes a row of."""
ITEM_OPERATIONS: Final = (ITEM_UPSERT, ITEM_STATUS)
RECORD_TYPES: Final = (*EVENT_TYPES, *ITEM_OPERATIONS)  # compiled into kernels
ITEM_PREFIX: Final = "item:"
"""Begins the user_key of an operation on an item, which chooses its log partition."""

# Join keys as Feast knows them, and the event column that each one is read from.
USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
USER_KEY: Final = "user_key"
ENTITY_COLUMN: Final = {USER_ID: USER_KEY, ITEM_ID: ITEM_ID}
ANONYMOUS_PREFIX: Final = "anon:"

# Columns that every engine reads (docs/events.md lists them all).
EVENT_ID: Final = "event_id"
TYPE: Final = "type"
PROPERTIES: Final = "properties"
TIMESTAMP: Final = "timestamp"
RECEIVED_AT: Final = "received_at"
INGESTED_AT: Final = "ingested_at"
LOG_PARTITION: Final = "log_partition"
LOG_POSITION: Final = "log_position"
LOG_INDEX: Final = "log_index"
DAY: Final = "day"

# What `properties` of an impression say where the order was explored (docs/events.md).
GREEDY: Final = "greedy"
DRAWN: Final = "drawn"

# The log partition number of rows that were loaded straight into the lake (`headrace ingest --bulk`).
BULK_PARTITION: Final = -1

# Feature views and services (feature_repo/features.py).
USER_ACTIVITY: Final = "user_activity"
ITEM_ACTIVITY: Final = "item_activity"
ITEM_CATALOGUE: Final = "item_catalogue"
USER_PROFILE: Final = "user_profile"
RECENT_ITEMS: Final = f"{USER_ACTIVITY}__recent_items"
RECENT_TYPES: Final = f"{USER_ACTIVITY}__recent_types"
"""Of the items of a user's last acts, and what they were: by position, the newest last in both."""
RETRIEVAL_SERVICE: Final = "retrieval_v1"
RANKER_SERVICE: Final = "ranker_v1"

# Delta tables under the lake.
EVENTS_TABLE: Final = "events"
ITEMS_TABLE: Final = "items"
PROFILES_TABLE: Final = "profiles"
ITEM_TABLES: Final = {ITEM_CATALOGUE: ITEMS_TABLE, ITEM_STATUS: ITEM_STATUS}
"""Where the rows lie that operations on items become, by view."""

# Ray Serve applications.
COLLECTOR_APP: Final = "collector"
RECOMMENDER_APP: Final = "recommender"
EVENTS_PATH: Final = "/v1/events"
ITEMS_PATH: Final = "/v1/items"

# Model registry.
REGISTERED_MODEL: Final = "headrace-recommender"
CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
CHALLENGER: Final = "challenger"
"""Aliases: in service; what was before it; the newest version that waits for its promotion, or was refused one."""
