from pathlib import Path

from headrace.ops.child import EXCHANGED
from headrace.ops.stack import why_again


def test_a_flow_that_starts_again_for_a_backfill_is_told_from_one_that_failed() -> None:
    log = Path("flow.log")
    assert why_again("flow-features", EXCHANGED, 0.0, log) == (
        "flow-features starts again, on the state that `headrace backfill` has rebuilt"
    )
    assert why_again("flow-lake", -9, 4.0, log) == (
        "flow-lake ended with exit code -9; starting it again in 4 s (log: flow.log)"
    )
