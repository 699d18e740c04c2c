"""From features to tensors: fitted on training tables, kept as JSON, applied by one code in training and in a request.

Rules, the same everywhere:

- A string has its own code if the fit kept it. Null or empty is `MISSING`. Anything else falls into one of the hash
  buckets. Where the fit met more strings than it kept, these teach the buckets; else an unseen string adds nothing.
- A count (an integer of a stream view) is log(1 + x), standardised; null or negative reads as 0.
- Any other number is sign(x) log(1 + |x|), standardised, followed by a flag; null, NaN and infinite read as the mean,
  the flag set.
- A time (an integer of the catalogue whose name ends in `_at`, Unix microseconds) is how many days it lay behind when the catalogue
  was read for the fit, and then as any other number; what came later is as new as can be.
- A number of the catalogue that is the same for all items says nothing, and is left out.
- A list of strings is the codes of its first values, as many as nearly every item has, padded with `MISSING`.
- A history is the last L of `recent_items`, `recent_types` and `recent_times`; lists of unequal length are cut to their
  newest common part; the time from an event to the next one, of the newest to t, is cut into powers of two of a second.
- A feature that the request lacks reads as null.

One module, though a long one: the rules for columns and for a single user must agree, and stand side by side.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import torch
import xxhash

from headrace import names
from headrace.arrays import Floats, Floats32, Int, Ints, Mask
from headrace.kernel import kernel
from headrace.models import columns
from headrace.models.columns import Columns
from headrace.models.inputs import ItemInputs, OneUser, UserInputs
from headrace.settings import DAY_US, MICROS

MISSING: Final = 0
GAP_BUCKETS: Final = 26
UNKNOWN_ITEM: Final = 1
"""Row of the catalogue table for an item that is not in it, and for an event that names none: an event is one all the same."""

RECENT_TIMES: Final = f"{names.USER_ACTIVITY}__recent_times"
_RECENT: Final = (names.RECENT_ITEMS, names.RECENT_TYPES, RECENT_TIMES)
# Free text, and what the filter reads: not inputs of a model.
NOT_INPUTS: Final = frozenset({f"{names.ITEM_CATALOGUE}__title", f"{names.ITEM_CATALOGUE}__available"})


# Share of items whose lists are read to their end, and places that no list has more of.
_WHOLE_LISTS: Final = 0.99
_LONGEST_LIST: Final = 32

_TIME_SUFFIX: Final = "_at"

_LOGS: Final = np.log1p(np.arange(1_024.0))


class Vocabulary:
    """Codes of strings: 0 for missing, then `buckets` for hashed values, then the known values in the order given."""

    def __init__(self, values: Iterable[str], buckets: int = 1) -> None:
        if buckets < 1:
            raise ValueError(f"buckets is {buckets}: an unseen value needs at least 1")
        self.values = list(values)
        self.buckets = buckets
        self._codes = {value: self.first_known + place for place, value in enumerate(self.values)}

    @classmethod
    def fit(cls, counts: Mapping[str, int], max_size: int, buckets: int) -> "Vocabulary":
        """The `max_size` most frequent values. More than one bucket only where values were left over to train them."""
        kept = sorted((value for value in counts if value), key=lambda value: (-counts[value], value))
        return cls(kept[:max_size], buckets if len(kept) > max_size else 1)

    @property
    def first_known(self) -> int:
        """The lowest code that is one value's own."""
        return MISSING + 1 + self.buckets

    def __len__(self) -> int:
        """Codes in all: rows that an embedding needs."""
        return self.first_known + len(self.values)

    def code(self, value: object) -> int:
        if value is None or value == "" or value != value:  # NaN, as pandas writes a missing string
            return MISSING
        known = self._codes.get(value)  # type: ignore[call-overload]
        return known if known is not None else self.bucket(str(value))

    def codes(self, values: Sequence[object]) -> list[int]:
        """`code` of each; for those that are known, without a call."""
        known = self._codes.get
        return [known(value) or self.code(value) for value in values]  # type: ignore[call-overload]

    def bucket(self, value: str) -> int:
        """The code of a value that is not known."""
        return 1 + int(xxhash.xxh64_intdigest(value.encode())) % self.buckets

    def to_json(self) -> dict[str, Any]:
        return {"values": self.values, "buckets": self.buckets}


Kind = Literal["count", "measure", "age"]


@dataclass(frozen=True)
class Number:
    """How one numeric feature becomes one column (`count`) or two (`measure`, `age`: value and missing flag)."""

    name: str
    kind: Kind
    mean: float
    std: float
    now_us: int = 0
    """When an age is counted from, in Unix microseconds; 0 for the other kinds."""

    @classmethod
    def fit(cls, name: str, kind: Kind, values: Floats, now_us: int = 0) -> "Number":
        raws = np.asarray(values, np.float64)
        logs = _logs(_ages(raws, float(now_us)) if kind == "age" else raws)
        known = np.maximum(np.nan_to_num(logs), 0.0) if kind == "count" else logs[~np.isnan(logs)]
        mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
        return cls(name, kind, mean, std if std > 1e-6 else 1.0, now_us if kind == "age" else 0)

    @property
    def width(self) -> int:
        return 1 if self.kind == "count" else 2


@dataclass(frozen=True)
class Numbers:
    """Numeric features side by side: counts and measures each in one operation, however many there are."""

    each: tuple[Number, ...]

    @property
    def width(self) -> int:
        return sum(number.width for number in self.each)

    def of(self, features: Columns, count: int) -> Floats32:
        """Shape (count, width)."""
        return self.apply(columns.matrix([number.name for number in self.each], features, count))

    def apply(self, values_BF: Floats) -> Floats32:
        """From values in the order of the features, NaN for null. Shapes (B, features), (B, width)."""
        made = np.empty((len(values_BF), self._width), np.float32)
        _scale(values_BF, self._are_counts, self._nows_us, self._means, self._stds, made)
        return made

    @cached_property
    def _width(self) -> int:
        return self.width

    @cached_property
    def _are_counts(self) -> Mask:
        return np.array([number.kind == "count" for number in self.each], np.bool_)

    @cached_property
    def _nows_us(self) -> Floats:
        """NaN for what is no age."""
        return np.array([number.now_us if number.kind == "age" else np.nan for number in self.each], np.float64)

    @cached_property
    def _means(self) -> Floats:
        return np.array([number.mean for number in self.each], np.float64)

    @cached_property
    def _stds(self) -> Floats:
        return np.array([number.std for number in self.each], np.float64)


@kernel
def _scale(values: Floats, are_counts: Mask, nows_us: Floats, means: Floats, stds: Floats, out: Floats32) -> None:
    """What `Numbers` says of each row: `out` (B, width) from `values` (B, features)."""
    for row in range(len(values)):
        at = 0
        for i in range(len(means)):
            value = values[row, i]
            if not np.isnan(nows_us[i]):
                value = _age(value, nows_us[i])
            is_missing = not np.isfinite(value)
            log = 0.0 if is_missing else _log_of(value)
            if are_counts[i]:
                out[row, at] = (max(log, 0.0) - means[i]) / stds[i]
                at += 1
            else:
                out[row, at] = 0.0 if is_missing else (log - means[i]) / stds[i]
                out[row, at + 1] = is_missing
                at += 2


@kernel
def _ages(times_us: Floats, now_us: float) -> Floats:
    ages = np.empty(len(times_us))
    for i in range(len(times_us)):
        ages[i] = _age(times_us[i], now_us)
    return ages


@kernel
def _age(time_us: float, now_us: float) -> float:
    """In days; of what is to come 0. NaN stays."""
    return 0.0 if time_us > now_us else (now_us - time_us) / DAY_US


@kernel
def _logs(values: Floats) -> Floats:
    logs = np.empty(len(values))
    for i in range(len(values)):
        logs[i] = _log_of(values[i])
    return logs


@kernel
def _log_of(value: float) -> float:
    """sign(x) log(1 + |x|); most are small whole numbers."""
    if value < 0:
        return -float(np.log1p(-value))
    if value < len(_LOGS) and value == np.floor(value):
        return float(_LOGS[np.uintp(value)])
    return float(np.log1p(value))


def gaps_of(times_BL: Ints, present_BL: Mask, t_us: Ints) -> Ints:
    """Bucket of the time from each event to the next one, of the newest to t; 0 where there is none. Shape (B, L)."""
    next_BL = np.concatenate([times_BL[:, 1:], t_us[:, None]], axis=1)
    return gap_buckets(next_BL, times_BL) * present_BL


def gap_buckets(t_us: Ints, times_us: Ints) -> Ints:
    """1 + floor(log2(1 + seconds from one time to another)), at most GAP_BUCKETS - 1; 0 is left for padding."""
    since_us = np.asarray(t_us - times_us)
    return _gap_buckets(since_us.ravel()).reshape(since_us.shape)


@kernel
def _gap_buckets(since_us: Ints) -> Ints:
    buckets = np.empty_like(since_us)
    for i in range(len(since_us)):
        buckets[i] = _gap_bucket(since_us[i])
    return buckets


@kernel
def _gap_bucket(since_us: Int) -> Int:
    rest, bucket = 1 + max(since_us, 0) // MICROS, 0
    while rest > 0 and bucket < GAP_BUCKETS - 1:
        rest >>= 1
        bucket += 1
    return bucket


@kernel
def _pad_history(items: Ints, types: Ints, times_us: Ints, t_us: int, out: Ints) -> None:
    """The newest common part of three lists into the last places of `out` (3, L): items, types, buckets of gaps."""
    length = out.shape[1]
    next_us = t_us
    for back in range(1, min(len(items), len(types), len(times_us), length) + 1):
        out[0, length - back] = max(items[len(items) - back], UNKNOWN_ITEM)
        out[1, length - back] = types[len(types) - back]
        out[2, length - back] = _gap_bucket(next_us - times_us[len(times_us) - back])
        next_us = times_us[len(times_us) - back]


TYPES: Final = Vocabulary(names.EVENT_TYPES)


@dataclass(frozen=True)
class Strings:
    """How a feature that is a list of strings becomes `width` codes."""

    vocabulary: Vocabulary
    width: int

    @classmethod
    def fit(cls, column: pa.ChunkedArray, max_values: int, buckets: int) -> "Strings":
        values, offsets = columns.ragged(column)
        lengths = np.diff(offsets)
        width = int(np.quantile(lengths, _WHOLE_LISTS, method="higher")) if len(lengths) else 0
        counts = pa.chunked_array([values]) if isinstance(values, pa.Array) else values
        return cls(Vocabulary.fit(_counts(counts), max_values, buckets), min(max(width, 1), _LONGEST_LIST))

    def codes(self, column: columns.Column) -> Ints:
        """Shape (N, width)."""
        values, offsets = columns.ragged(column)
        return columns.first_padded(columns.codes(values, self.vocabulary.code), offsets, self.width)

    def to_json(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.to_json(), "width": self.width}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Strings":
        return cls(Vocabulary(**state["vocabulary"]), state["width"])


@dataclass(frozen=True)
class Preprocessing:
    """Fitted state. `ids` are the items that training saw; an item outside it is embedded by its content."""

    length: int
    ids: Vocabulary
    user_numbers: tuple[Number, ...]
    user_categories: dict[str, Vocabulary]
    content_numbers: tuple[Number, ...]
    content_categories: dict[str, Vocabulary]
    content_lists: dict[str, Strings]
    activity_numbers: tuple[Number, ...]

    @classmethod
    def fit(
        cls,
        users: pa.Table,
        catalogue: pa.Table,
        activity: pa.Table,
        seen: Mapping[str, int],
        *,
        now_us: int,
        length: int,
        max_values: int = 50_000,
        buckets: int = 16,
    ) -> "Preprocessing":
        """From full-named features: of users and of items at training times, and of the catalogue at `now_us`; and from how
        often training saw each item.

        Every numeric and string column of a user view or item view becomes an input, and so does every list of strings of
        the catalogue: a feature that is added to
        `feature_repo/features.py` is used without a change here.
        """

        def strings(table: pa.Table, view: str) -> dict[str, Vocabulary]:
            wanted = _of_view(table, view, _is_string)
            return {name: Vocabulary.fit(_counts(table[name]), max_values, buckets) for name in wanted}

        return cls(
            length=length,
            ids=Vocabulary.fit(seen, max_values, buckets),
            user_numbers=_fit_numbers(users, names.USER_ACTIVITY) + _fit_numbers(users, names.USER_PROFILE),
            user_categories=strings(users, names.USER_ACTIVITY) | strings(users, names.USER_PROFILE),
            content_numbers=_ages_last(
                number
                for number in _fit_numbers(catalogue, names.ITEM_CATALOGUE, now_us)
                if _varies(catalogue[number.name])
            ),
            content_categories=strings(catalogue, names.ITEM_CATALOGUE),
            content_lists={
                name: Strings.fit(catalogue[name], max_values, buckets)
                for name in _of_view(catalogue, names.ITEM_CATALOGUE, _is_list_of_strings)
            },
            activity_numbers=_fit_numbers(activity, names.ITEM_ACTIVITY),
        )

    @property
    def content_features(self) -> tuple[str, ...]:
        """Full names of what is read of the catalogue."""
        return (*self.content_categories, *self.content_lists, *(number.name for number in self.content_numbers))

    @property
    def user_width(self) -> int:
        return Numbers(self.user_numbers).width

    @property
    def content_width(self) -> int:
        return Numbers(self.content_numbers).width

    @property
    def lasting_numbers(self) -> tuple[Number, ...]:
        """Those of `content_numbers`, its first, that are no ages."""
        return tuple(number for number in self.content_numbers if number.kind != "age")

    @property
    def lasting_width(self) -> int:
        """Columns of `content_NF`, its first, that are no ages."""
        return Numbers(self.lasting_numbers).width

    @property
    def activity_width(self) -> int:
        return Numbers(self.activity_numbers).width

    @cached_property
    def _users(self) -> Numbers:
        return Numbers(self.user_numbers)

    @cached_property
    def _content(self) -> Numbers:
        return Numbers(self.content_numbers)

    @cached_property
    def activity(self) -> Numbers:
        """What of the item's stream view the ranker reads."""
        return Numbers(self.activity_numbers)

    def items(self, features: Columns, *, with_activity: bool) -> ItemInputs:
        """N items. `features` needs `item_id`; a feature that it lacks reads as null."""
        if names.ITEM_ID not in features:
            raise ValueError(f"item features have no column {names.ITEM_ID!r}: it names the N items")
        ids = features[names.ITEM_ID]
        activity = self.activity if with_activity else Numbers(())
        return ItemInputs(
            id_N=torch.from_numpy(columns.codes(ids, self.ids.code)),
            categories_NC=_categories(self.content_categories, features, len(ids)),
            content_NF=torch.from_numpy(self._content.of(features, len(ids))),
            activity_NF=torch.from_numpy(activity.of(features, len(ids))),
            lists_NA=torch.from_numpy(self._lists(features, len(ids))),
        )

    def no_items(self) -> ItemInputs:
        """The rows of a table before its first item: padding, and at UNKNOWN_ITEM any item that the table lacks."""
        rows = self.items({names.ITEM_ID: [None, ""]}, with_activity=False)
        rows.id_N[UNKNOWN_ITEM] = MISSING + 1
        return rows

    def users(self, features: Columns, t_us: Ints, code_of_item: Callable[[object], int]) -> UserInputs:
        """B users at times `t_us` (B,). `code_of_item` gives an item's row in the catalogue table (`Catalogue.row`)."""
        items_BL, types_BL, times_BL, present_BL = self.histories(features, len(t_us), code_of_item)
        return UserInputs(
            categories_BC=_categories(self.user_categories, features, len(t_us)),
            numbers_BF=torch.from_numpy(self._users.of(features, len(t_us))),
            items_BL=torch.from_numpy(items_BL),
            types_BL=torch.from_numpy(types_BL),
            gaps_BL=torch.from_numpy(gaps_of(times_BL, present_BL, t_us)),
        )

    def user(self, features: Columns, t_us: int, code_of_item: Callable[[object], int]) -> OneUser:
        """Row 0 of `users` of one: what a request needs, for which columns cost more than the values."""
        numbers = [_only(features, number.name) for number in self.user_numbers]
        categories = [vocabulary.code(_only(features, name)) for name, vocabulary in self.user_categories.items()]
        items, types, times = (_only(features, name) or () for name in _RECENT)
        history_3L = np.zeros((3, self.length), np.int64)
        _pad_history(
            np.array([code_of_item(item) for item in items[-self.length :]], np.int64),
            np.array(TYPES.codes(types[-self.length :]), np.int64),
            columns.micros(times),
            t_us,
            history_3L,
        )
        numbers_F = self._users.apply(np.array([numbers], np.float64))[0]
        return OneUser(np.array(categories, np.int64), numbers_F, *history_3L)

    def _lists(self, features: Columns, count: int) -> Ints:
        """Lists side by side. Shape (count, A)."""
        parts = [
            strings.codes(features[name]) if name in features else np.zeros((count, strings.width), np.int64)
            for name, strings in self.content_lists.items()
        ]
        return np.concatenate(parts, axis=1) if parts else np.zeros((count, 0), np.int64)

    def histories(
        self, features: Columns, count: int, code_of_item: Callable[[object], int]
    ) -> tuple[Ints, Ints, Ints, Mask]:
        """Items, types, times in Unix microseconds, and whether there is an event: of B users, each (B, L), the newest last."""
        if any(name not in features for name in _RECENT):
            nothing = np.zeros((count, self.length), np.int64)
            return nothing, nothing.copy(), nothing.copy(), np.zeros((count, self.length), np.bool_)
        item_flat, item_offsets = columns.ragged(features[names.RECENT_ITEMS])
        type_flat, type_offsets = columns.ragged(features[names.RECENT_TYPES])
        time_flat, time_offsets = columns.ragged(features[RECENT_TIMES])
        items_BL = columns.last_padded(columns.codes(item_flat, code_of_item), item_offsets, self.length)
        types_BL = columns.last_padded(columns.codes(type_flat, TYPES.code), type_offsets, self.length)
        times_BL = columns.last_padded(columns.micros(time_flat), time_offsets, self.length)
        common_B = np.minimum(np.minimum(np.diff(item_offsets), np.diff(type_offsets)), np.diff(time_offsets))
        present_BL = np.arange(self.length) >= self.length - common_B[:, None]
        items_BL = np.maximum(items_BL, UNKNOWN_ITEM) * present_BL
        return items_BL, types_BL * present_BL, times_BL * present_BL, present_BL

    def to_json(self) -> str:
        state = {
            "length": self.length,
            "ids": self.ids.to_json(),
            **{name: [asdict(number) for number in getattr(self, name)] for name in _NUMBERS},
            **{
                name: {key: value.to_json() for key, value in getattr(self, name).items()}
                for name in (*_CATEGORIES, "content_lists")
            },
        }
        return json.dumps(state)

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        state = json.loads(text)
        return cls(
            length=state["length"],
            ids=Vocabulary(**state["ids"]),
            user_numbers=_numbers_from(state["user_numbers"]),
            user_categories=_vocabularies_from(state["user_categories"]),
            content_numbers=_numbers_from(state["content_numbers"]),
            content_categories=_vocabularies_from(state["content_categories"]),
            content_lists={name: Strings.from_json(strings) for name, strings in state["content_lists"].items()},
            activity_numbers=_numbers_from(state["activity_numbers"]),
        )


_NUMBERS = ("user_numbers", "content_numbers", "activity_numbers")
_CATEGORIES = ("user_categories", "content_categories")


class Catalogue:
    """The items that histories and the retrieval index speak of, as a table of inputs.

    Row 0 is padding, row 1 any item that the catalogue lacks, the rest are `item_ids` in order.
    """

    FIRST: Final = UNKNOWN_ITEM + 1

    def __init__(self, preprocessing: Preprocessing, features: Columns) -> None:
        given = features[names.ITEM_ID]
        self.item_ids: list[str] = given.to_pylist() if isinstance(given, pa.ChunkedArray | pa.Array) else list(given)
        self._rows = Vocabulary(self.item_ids)
        if len(self._rows) != self.FIRST + len(set(self.item_ids)):
            [(twice, _)] = Counter(self.item_ids).most_common(1)
            raise ValueError(f"the catalogue names item {twice!r} twice; keep its newest row alone")
        rest = preprocessing.items(features, with_activity=False)
        self.inputs = ItemInputs(*(torch.cat(pair) for pair in zip(preprocessing.no_items(), rest, strict=True)))

    def row(self, item_id: object) -> int:
        return self._rows.code(item_id)

    def rows(self, item_ids: columns.Column) -> Ints:
        """Shape (len(item_ids),)."""
        return columns.codes(item_ids, self.row)

    def __len__(self) -> int:
        """Rows of the table, the two special ones included."""
        return len(self._rows)


def _numbers_from(state: list[dict[str, Any]]) -> tuple[Number, ...]:
    return tuple(Number(**number) for number in state)


def _vocabularies_from(state: dict[str, dict[str, Any]]) -> dict[str, Vocabulary]:
    return {name: Vocabulary(**vocabulary) for name, vocabulary in state.items()}


def _of_view(table: pa.Table, view: str, wanted: Callable[[pa.DataType], bool]) -> list[str]:
    return [
        field.name
        for field in table.schema
        if field.name.startswith(f"{view}__") and field.name not in NOT_INPUTS and wanted(field.type)
    ]


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list_of_strings(kind: pa.DataType) -> bool:
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_string(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _fit_numbers(table: pa.Table, view: str, now_us: int = 0) -> tuple[Number, ...]:
    def kind_of(name: str) -> Kind:
        if not pa.types.is_integer(table[name].type):
            return "measure"
        if view in (names.USER_ACTIVITY, names.ITEM_ACTIVITY):
            return "count"
        return "age" if view == names.ITEM_CATALOGUE and name.endswith(_TIME_SUFFIX) else "measure"

    return tuple(
        Number.fit(name, kind_of(name), columns.numbers(table[name]), now_us)
        for name in _of_view(table, view, _is_number)
    )


def _ages_last(numbers: Iterable[Number]) -> tuple[Number, ...]:
    return tuple(sorted(numbers, key=lambda number: number.kind == "age"))


def _varies(column: pa.ChunkedArray) -> bool:
    values = columns.numbers(column)
    known = values[np.isfinite(values)]
    return len(known) > 0 and (len(known) < len(values) or bool(known.min() < known.max()))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in column.value_counts().to_pylist() if row["values"]}


def _only(features: Columns, name: str) -> Any:
    """The one value of a column, None where there is no such column."""
    return features[name][0] if name in features else None


def _categories(vocabularies: Mapping[str, Vocabulary], features: Columns, count: int) -> torch.Tensor:
    """Shape (count, number of vocabularies)."""
    parts = [
        columns.codes(features[name], vocabulary.code) if name in features else np.zeros(count, dtype=np.int64)
        for name, vocabulary in vocabularies.items()
    ]
    return torch.from_numpy(np.stack(parts, axis=1) if parts else np.zeros((count, 0), dtype=np.int64))
