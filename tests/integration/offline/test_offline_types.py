"""Every value type of Feast goes from a source into a training set, and online by `materialize`, as it was written."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    String,
    UnixTimestamp,
)

from headrace.clock import from_micros
from tests.integration.offline.rows import DAY, NOON, TIME, fetch

_MAP = pa.map_(pa.string(), pa.string())
# Feast's type, the source's Arrow type, and two values: the second row of each feature is null.
TYPES: dict[str, tuple[FeastType, pa.DataType, Any]] = {
    "text": (String, pa.string(), "räksmörgås"),
    "flag": (Bool, pa.bool_(), False),
    "small": (Int32, pa.int32(), -7),
    "large": (Int64, pa.int64(), 2**62 + 1),
    "single": (Float32, pa.float32(), 0.5),
    "double": (Float64, pa.float64(), 0.1),
    "raw": (Bytes, pa.binary(), b"\x00\xff"),
    "moment": (UnixTimestamp, TIME, datetime(2023, 11, 15, 12, 0, 0, tzinfo=UTC)),
    "words": (Array(String), pa.list_(pa.string()), ["a", ""]),
    "vector": (Array(Float32), pa.list_(pa.float32()), [0.25, -1.0]),
    "numbers": (Array(Int64), pa.list_(pa.int64()), [1, 2**62 + 1]),
    "flags": (Array(Bool), pa.list_(pa.bool_()), [True, False]),
    "labels": (Map, _MAP, [("colour", "red")]),
    "json": (Json, pa.large_string(), '{"a": 1}'),
}


@pytest.fixture(params=["delta", "parquet"])
def things(request: pytest.FixtureRequest, store: FeatureStore, tmp_path: Path) -> FeatureView:
    """A view with a feature of each type; thing 1 has a value of each, thing 2 nulls."""
    rows = {name: pa.array([value, None], kind) for name, (_, kind, value) in TYPES.items()}
    times = pa.array([NOON, NOON]).cast(TIME)
    table = pa.table({"thing": pa.array([1, 2]), "event_timestamp": times} | rows)
    path = tmp_path / "things"
    if request.param == "delta":
        write_deltalake(str(path), table)
    else:
        pq.write_table(table, path)
    entity = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
    source = FileSource(
        name="things_source",
        path=str(path),
        timestamp_field="event_timestamp",
        file_format=DeltaFormat() if request.param == "delta" else None,
    )
    fields = {name: Field(name=name, dtype=kind) for name, (kind, _, _) in TYPES.items()}
    view = FeatureView(name="things", entities=[entity], schema=list(fields.values()), source=source)
    # Feast turns a map into its online value from a Python dict alone, which Arrow's maps do not give.
    served = [field for name, field in fields.items() if name != "labels"]
    store.apply([entity, view, FeatureView(name="served", entities=[entity], schema=served, source=source)])
    return view


def test_each_type_is_in_the_training_set_as_it_was_written(store: FeatureStore, things: FeatureView) -> None:
    entity_df = pa.table({"thing": [1, 2, 3], "event_timestamp": pa.array([NOON] * 3).cast(TIME)})
    answer = fetch(store, entity_df, [f"things:{name}" for name in TYPES])
    for name, (_, kind, value) in TYPES.items():
        assert answer[name].to_pylist() == [value, None, None], name
        assert name == "raw" or answer.schema.field(name).type == kind, name


def test_each_type_is_materialized_as_it_was_written(store: FeatureStore, things: FeatureView) -> None:
    store.materialize(from_micros(NOON - DAY), from_micros(NOON + DAY), feature_views=["served"])
    expected = {name: [value, None] for name, (_, _, value) in TYPES.items() if name != "labels"}
    expected["json"] = [{"a": 1}, None]  # Feast parses it
    answer = store.get_online_features([f"served:{name}" for name in expected], [{"thing": 1}, {"thing": 2}]).to_dict()
    assert {name: answer[name] for name in expected} == expected
