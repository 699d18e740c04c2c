"""What commands say to a reader."""

from io import StringIO

from rich.console import Console

from headrace.ingest.load import IngestReport
from headrace.ops.backfill import BackfillReport
from headrace.ops.told import Told, applied, backfilled, ingested, verified
from headrace.ops.verify import Mismatch, VerifyReport

LOADED = IngestReport(
    source="movielens", path="log", read=1_000, refused=0, first_refusal=None, duplicates=0, already_loaded=0,
    appended=1_000, types={"click": 600, "view": 400}, items=20, profiles=3, shift_us=0,
    last_event_us=1_700_000_000_000_000,
)  # fmt: skip


def text(told: Told) -> list[str]:
    console = Console(file=StringIO(), width=80, soft_wrap=True)
    for each in told:
        console.print(each, markup=False, highlight=False)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_load_says_what_came_of_it_and_nothing_of_what_did_not_happen() -> None:
    assert text(ingested(LOADED)) == [
        "Loaded movielens: 1,000 of 1,000 events appended to the log.",
        "  events: 600 click, 400 view",
        "  new rows of the catalogue: 20, of profiles: 3; they are online",
        "  last event: 2023-11-14 22:13:20 UTC",
    ]


def test_a_bulk_load_says_what_was_left_out_how_times_were_moved_and_what_to_do_next() -> None:
    report = IngestReport(
        **{
            **vars(LOADED), "path": "bulk", "refused": 2, "first_refusal": "ratings.csv:3, user_id: empty", "duplicates": 4,
            "already_loaded": 5, "appended": 989, "shift_us": 86_400_000_000 + 1_000_000, "bulk_position": 1,
        }
    )  # fmt: skip
    said = text(ingested(report))
    assert said[0] == "Loaded movielens: 989 of 1,000 events appended to the lake."
    assert said[2:5] == [
        "  refused: 2, the first: ratings.csv:3, user_id: empty",
        "  repeated in the source: 4",
        "  in the lake already: 5",
    ]
    assert said[-2] == "  last event: 2023-11-14 22:13:20 UTC, all times moved by 1.0 days"
    assert said[-1] == "  features do not have these events yet: run `headrace backfill`"


def test_an_apply_says_nothing_of_what_there_is_nothing_of() -> None:
    found = {"stream_views": ["a", "b"], "dropped": [], "waiting_for_backfill": ["a.count"]}
    assert text(applied(found)) == [
        "Applied.",
        "  stream views: a, b",
        "  not in the state yet: a.count; run `headrace backfill`",
    ]


def test_a_backfill_says_how_many_rows_each_view_has() -> None:
    said = text(backfilled(BackfillReport(1_000, {"users": 20}, {0: 7})))
    assert said[0] == "Backfilled from 1,000 events of the lake."
    assert [line for line in said if "users" in line] == ["│ users │ 20   │"]
    assert not [line for line in said if "7" in line]


def test_a_comparison_is_told_by_view_and_what_differs_by_feature() -> None:
    report = VerifyReport(entities={"users": 20, "items": 3}, compared=46, non_zero={"users.a": 4, "users.b": 1})
    report.add(Mismatch("users", "u-1", "a", 3, 4))
    said = text(verified(report))
    assert said[0] == "Compared 46 values as of now: 1 mismatch."
    assert [line.replace(" ", "") for line in said if line.startswith("│")] == ["│users│20│2│1│", "│items│3│0│0│"]
    assert said[-2:] == [
        "  users.a: 1 mismatch",
        "    users.a of u-1: the store has 3, the lake gives 4",
    ]
