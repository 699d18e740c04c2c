"""Every feature of the default set, in Feast's own classes. To add one, edit this file alone (docs/features.md)."""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import DeltaFormat
from feast.types import Array, Bool, Float64, Int64, String

from headrace.stores.feast_registry import data_dir

LAKE = data_dir(Path(__file__).parent) / "lake"

user = Entity(
    name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A person, known or anonymous."
)
item = Entity(
    name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="A thing that can be recommended."
)

event_lake = FileSource(
    name="event_lake",
    path=str(LAKE / "events"),
    file_format=DeltaFormat(),
    timestamp_field="timestamp",
    created_timestamp_column="received_at",
)
events = PushSource(name="events", batch_source=event_lake)

# How far back each count looks, and the width of its tiles.
WINDOWS = {
    "10m": (timedelta(minutes=10), timedelta(minutes=1)),
    "1h": (timedelta(hours=1), timedelta(minutes=5)),
    "1d": (timedelta(days=1), timedelta(hours=1)),
    "7d": (timedelta(days=7), timedelta(hours=6)),
}
COUNTED = {"views": "view", "clicks": "click", "carts": "add_to_cart", "purchases": "purchase"}
# Types that a user makes; never `impression`, which the recommender makes.
USER_MADE = "view|click|add_to_cart|remove_from_cart|purchase|rate|like|dislike|hide"

counts = [
    Aggregation(column=event_type, function="count", time_window=window, slide_interval=hop, name=f"{plural}_{label}")
    for plural, event_type in COUNTED.items()
    for label, (window, hop) in WINDOWS.items()
]
count_fields = [Field(name=count.name, dtype=Int64) for count in counts]

user_activity = StreamFeatureView(
    name="user_activity",
    entities=[user],
    source=events,
    timestamp_field="timestamp",
    enable_tiling=True,
    tiling_hop_size=timedelta(minutes=1),
    aggregations=[
        *counts,
        Aggregation(column=f"{USER_MADE}.item_id", function="last_n(50)", name="recent_items"),
        Aggregation(column=f"{USER_MADE}.type", function="last_n(50)", name="recent_types"),
        Aggregation(column=f"{USER_MADE}.timestamp", function="last_n(50)", name="recent_times"),
        Aggregation(column=USER_MADE, function="session_count", name="session_count"),
        Aggregation(column=USER_MADE, function="session_seconds", name="session_seconds"),
    ],
    schema=[
        *count_fields,
        Field(name="recent_items", dtype=Array(String), description="The last 50 items, oldest first."),
        Field(name="recent_types", dtype=Array(String), description="What was done to each of them."),
        Field(name="recent_times", dtype=Array(Int64), description="When, in Unix microseconds."),
        Field(name="session_count", dtype=Int64, description="Events in the current session."),
        Field(name="session_seconds", dtype=Float64, description="From its first event to its last."),
    ],
)

item_activity = StreamFeatureView(
    name="item_activity",
    entities=[item],
    source=events,
    timestamp_field="timestamp",
    enable_tiling=True,
    tiling_hop_size=timedelta(minutes=1),
    aggregations=counts,
    schema=count_fields,
)

item_catalogue = FeatureView(
    name="item_catalogue",
    entities=[item],
    ttl=timedelta(0),
    source=FileSource(
        name="item_catalogue_source",
        path=str(LAKE / "items"),
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    ),
    schema=[
        Field(name="title", dtype=String),
        Field(name="category", dtype=String),
        Field(name="brand", dtype=String),
        Field(name="price", dtype=Float64),
        Field(name="available", dtype=Bool),
        Field(name="attributes", dtype=Array(String), description="Any further words for it: genres, tags, materials."),
        Field(
            name="listed_at", dtype=Int64, description="When it came out, in Unix microseconds: models read its age."
        ),
    ],
)

# Written by `POST /v1/items` (docs/items.md). No model reads it: what cannot be had is filtered.
item_status = FeatureView(
    name="item_status",
    entities=[item],
    ttl=timedelta(0),
    source=FileSource(
        name="item_status_source",
        path=str(LAKE / "item_status"),
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    ),
    schema=[
        Field(name="available", dtype=Bool),
        Field(name="deleted", dtype=Bool),
    ],
)

user_profile = FeatureView(
    name="user_profile",
    entities=[user],
    ttl=timedelta(0),
    source=FileSource(
        name="user_profile_source",
        path=str(LAKE / "profiles"),
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    ),
    schema=[
        Field(name="country", dtype=String),
        Field(name="age", dtype=Int64),
        Field(name="segment", dtype=String),
    ],
)

retrieval_v1 = FeatureService(name="retrieval_v1", features=[user_activity, user_profile])
ranker_v1 = FeatureService(name="ranker_v1", features=[user_activity, user_profile, item_activity, item_catalogue])
