"""How a flow's process ends."""

import pytest
from bytewax.dataflow import Dataflow

from flows.recovery import StopFlag
from flows.run import run
from headrace.ops.child import EXCHANGED
from headrace.stores.state_definitions import ExchangedError, StaleStateError


@pytest.mark.parametrize(("error", "code"), [(ExchangedError, EXCHANGED), (StaleStateError, 1)])
def test_a_flow_that_is_to_start_again_on_exchanged_state_says_so_by_its_exit_code(
    error: type[StaleStateError], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopFlag, "install", lambda self: self)

    def flow(stop: StopFlag) -> Dataflow:
        raise error("the state of shard 0 is another")

    assert run("feature", flow) == code
    assert capsys.readouterr().err == "the feature flow ends: the state of shard 0 is another\n"
