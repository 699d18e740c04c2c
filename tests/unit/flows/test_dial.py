"""How much a slice takes."""

from flows.dial import Dial
from tests.unit.flows.memory_log import entry


def test_a_slice_is_full_when_it_has_its_events() -> None:
    dial = Dial(max_events=5)
    dial.begin()
    dial.add([entry(0, 1, "a", "b"), entry(0, 2, "c", "d")])
    assert not dial.was_full
    dial.add([entry(0, 3, "e")])
    assert dial.was_full
    dial.begin()
    assert not dial.was_full


def test_the_first_read_is_small_and_the_next_are_larger_as_entries_turn_out_to_be_small() -> None:
    dial = Dial(max_events=10_000)
    dial.begin()
    wanted = []
    for position in range(1, 9):
        wanted.append(dial.entries_wanted(partitions=2))
        dial.add([entry(0, position, "a")])
    assert wanted == [8, 16, 32, 64, 128, 256, 256, 256]


def test_entries_that_hold_much_are_read_few_at_a_time() -> None:
    dial = Dial(max_events=100)
    dial.begin()
    dial.add([entry(0, 1, *(f"e{n}" for n in range(50)))])
    assert dial.entries_wanted(partitions=1) == 1


def test_slices_that_take_long_get_smaller_and_grow_again_when_they_are_quick() -> None:
    dial = Dial(max_events=8_000)
    sizes = []
    for seconds in (2.0, 2.0, 0.1, 0.1, 0.1):
        dial.begin()
        events = 0
        while not dial.was_full:
            dial.add([entry(0, events, *["a"] * 500)])
            events += 500
        sizes.append(events)
        dial.took(seconds)
    assert sizes == [8_000, 4_000, 2_000, 4_000, 8_000]
