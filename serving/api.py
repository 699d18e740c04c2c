"""What a client may ask: bodies of the three questions, strict, and their form inside."""

from typing import Annotated, Any, Final, Self, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from headrace import names
from headrace.events import Context, Identifier, check_user, first_error
from headrace.identity import user_key
from headrace.stores.tokens import MAX_TOKEN
from serving.candidates import EVERYTHING, RANK, RECOMMEND, SIMILAR, Filter, RecommendationRequest
from serving.web import Problem

MAX_ITEMS = 1_000
MAX_EXCLUDED = 5_000
MAX_SEEDS = 50
MAX_VALUES = 100

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Values = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=MAX_VALUES)
]


class FilterIn(BaseModel):
    """Which items may be shown. An item whose category, brand or price is not known does not pass a filter on it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    category: Values | None = Field(None, description="One of these categories.")
    brand: Values | None = Field(None, description="One of these brands.")
    min_price: Price | None = None
    max_price: Price | None = None
    include_unavailable: bool = Field(False, description="Also items that are not available; never those deleted.")

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        if self.min_price is not None and self.max_price is not None and self.min_price > self.max_price:
            raise ValueError(f"min_price {self.min_price} is above max_price {self.max_price}")
        return self

    def to_filter(self) -> Filter:
        return Filter(
            None if self.category is None else frozenset(self.category),
            None if self.brand is None else frozenset(self.brand),
            self.min_price,
            self.max_price,
            self.include_unavailable,
        )


class AskIn(BaseModel):
    """What all questions share."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Identifier | None = None
    anonymous_id: Identifier | None = None
    session_id: Identifier | None = None
    n: int = Field(20, ge=1, le=MAX_ITEMS, description="Items wanted.")
    context: Context | None = None
    exclude: list[Identifier] = Field(default_factory=list, max_length=MAX_EXCLUDED, description="Items not to show.")
    filter: FilterIn | None = None
    deadline_ms: float | None = Field(None, gt=0, le=60_000, description="Time budget; left out: HEADRACE_DEADLINE_MS.")
    explain: bool = Field(
        False, description="Tell counts and times of the stages, what was removed and why, what weighed."
    )
    after: str | None = Field(
        None,
        max_length=MAX_TOKEN,
        description="The token of an acknowledgement that must be seen: waited for in the deadline.",
    )

    @property
    def who(self) -> dict[str, str]:
        ids = {"user_id": self.user_id, "anonymous_id": self.anonymous_id, "session_id": self.session_id}
        return {name: value for name, value in ids.items() if value is not None}

    @property
    def user_key(self) -> str | None:
        if self.user_id is None and self.anonymous_id is None:
            return None
        return user_key(self.user_id, self.anonymous_id)

    def _request(self, kind: str, items: list[str], n: int) -> RecommendationRequest:
        wanted = EVERYTHING if self.filter is None else self.filter.to_filter()
        return RecommendationRequest(
            self.user_key, n, kind, frozenset(self.exclude), wanted, tuple(dict.fromkeys(items))
        )


MOST_FIELDS: Final = 100
_SOMEBODY: Final = ConfigDict(json_schema_extra={"anyOf": [{"required": ["user_id"]}, {"required": ["anonymous_id"]}]})


class RecommendIn(AskIn):
    """Who asks, and for what."""

    model_config = _SOMEBODY

    @model_validator(mode="after")
    def _check_user(self) -> Self:
        check_user(self.user_id, self.anonymous_id)
        return self

    def to_request(self) -> RecommendationRequest:
        return self._request(RECOMMEND, [], self.n)


class RankIn(AskIn):
    """Who asks, and which items to put in order: a feed, search results."""

    model_config = _SOMEBODY

    items: list[Identifier] = Field(min_length=1, max_length=MAX_ITEMS, description="Items to put in order.")
    n: int | None = Field(None, ge=1, le=MAX_ITEMS, description="The best so many; left out: all.")  # type: ignore[assignment]

    @model_validator(mode="after")
    def _check_user(self) -> Self:
        check_user(self.user_id, self.anonymous_id)
        return self

    def to_request(self) -> RecommendationRequest:
        return self._request(RANK, self.items, self.n or len(self.items))


class SimilarIn(AskIn):
    """Items like which ones. A user is optional: who it is changes what is hidden, not what is alike."""

    items: list[Identifier] = Field(min_length=1, max_length=MAX_SEEDS, description="An item, or a set of them.")

    @model_validator(mode="after")
    def _check_user(self) -> Self:
        if self.user_id is not None or self.anonymous_id is not None:
            check_user(self.user_id, self.anonymous_id)
        return self

    def to_request(self) -> RecommendationRequest:
        return self._request(SIMILAR, self.items, self.n)


Question = RecommendIn | RankIn | SimilarIn
Q = TypeVar("Q", RecommendIn, RankIn, SimilarIn)


def parse(kind: type[Q], body: Any) -> Q:
    """Raises a 422 `Problem` naming the field and the reason."""
    # Every unknown field would be told of, and all who ask wait meanwhile.
    objects = [each for each in (body, *body.values()) if isinstance(each, dict)] if isinstance(body, dict) else []
    if any(len(each) > MOST_FIELDS for each in objects):
        raise Problem(422, f"{max(map(len, objects))} fields in one object", "send the fields that /docs names")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        field, reason = first_error(error)
        where = field[:200] or "the body"
        raise Problem(422, f"{where}: {reason}", "correct the field; see /docs for what is allowed") from error


def check_user_key(key: str, raw_path: bytes) -> None:
    """`key` is that part of a path, decoded. Raises a 422 `Problem` where no event can have made it."""
    try:
        unquote_to_bytes(raw_path).decode()
        _IDENTIFIER.validate_python(key.removeprefix(names.ANONYMOUS_PREFIX))
    except (UnicodeDecodeError, ValidationError) as error:
        reason = first_error(error)[1] if isinstance(error, ValidationError) else "it is not UTF-8"
        raise Problem(
            422, f"user_key: {reason}", f"send a user_id, or `{names.ANONYMOUS_PREFIX}` and an anonymous_id"
        ) from error


_IDENTIFIER: Final[TypeAdapter[str]] = TypeAdapter(Identifier)
