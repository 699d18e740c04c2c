"""A steady load of posts on the collection API, until SIGTERM: `python -m benchmarks.load --posts 100 --events 10`

Open loop: each post is sent when the schedule says, whether or not the ones before were answered, so a slow answer cannot thin out the
load. Where to, and with which key, say the settings (HEADRACE_HTTP_PORT, HEADRACE_EVENT_KEYS). Prints one JSON object at its end.
"""

import argparse
import asyncio
import json
import random
import signal
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from benchmarks.posting import Poster
from benchmarks.report import percentiles
from headrace import names
from headrace.clock import Clock, from_micros, system_clock
from headrace.settings import Settings

USERS: Final = 20_000
ITEMS: Final = 5_000
_TYPES: Final = (names.VIEW, names.CLICK, names.ADD_TO_CART, names.PURCHASE, names.DWELL)
_SHARES: Final = (60, 20, 7, 3, 10)


@dataclass(frozen=True)
class LoadReport:
    """What was sent. `rate` in posts/s; `statuses` by HTTP status, 0 for a broken connection."""

    posts: int
    seconds: float
    rate: float
    statuses: dict[str, int]
    behind_schedule: dict[str, float]
    post: dict[str, float]


class EventMaker:
    """Full events of users and items by Pareto, the ids unlike any other maker's."""

    def __init__(self, clock: Clock, seed: int = 0) -> None:
        self._clock = clock
        self._random = random.Random(seed)
        self._prefix = f"{clock():x}"
        self._made = 0

    def batch(self, size: int) -> bytes:
        return orjson.dumps({"events": [self._event() for _ in range(size)]})

    def _event(self) -> dict[str, Any]:
        self._made += 1
        user = self._pareto(USERS)
        return {
            "event_id": f"{self._prefix}-{self._made:012d}",
            "type": self._random.choices(_TYPES, _SHARES)[0],
            "user_id": f"user-{user:06d}",
            "session_id": f"session-{user:06d}-1",
            "item_id": f"item-{self._pareto(ITEMS):05d}",
            "timestamp": from_micros(self._clock()).isoformat(),
            "request_id": f"request-{self._made:012d}",
            "position": self._made % 20,
            "value": 12.5,
            "price": 39.9,
            "quantity": 1,
            "context": {"device": "mobile", "page": "https://shop.example/c/shoes", "country": "DE", "locale": "de-DE"},
            "properties": {"campaign": "autumn", "list": "search results"},
        }

    def _pareto(self, size: int) -> int:
        """A number below `size`, the small ones far more often (exponent 1.16: the 80/20 rule)."""
        return min(int((self._random.paretovariate(1.16) - 1) * size / 50), size - 1)


async def run_load(settings: Settings, posts_per_s: float, events: int, seconds: float, clock: Clock) -> LoadReport:
    """For `seconds` at most."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    maker = EventMaker(clock)
    statuses: Counter[int] = Counter()
    behind, taken = [], []
    tasks = set()

    async def send(poster: Poster, body: bytes) -> None:
        sent = time.perf_counter()
        statuses[(await poster.post(body)).status] += 1
        taken.append(time.perf_counter() - sent)

    async with Poster(settings) as poster:
        begun = time.perf_counter()
        for number in range(int(posts_per_s * seconds)):
            body, due = maker.batch(events), begun + number / posts_per_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if stop.is_set():
                break
            behind.append(time.perf_counter() - due)
            task = asyncio.create_task(send(poster, body))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        lasted = time.perf_counter() - begun
        await asyncio.gather(*tasks)
    counted = {str(status): count for status, count in sorted(statuses.items())}
    return LoadReport(
        len(taken), round(lasted, 1), round(len(taken) / lasted, 1), counted, percentiles(behind), percentiles(taken)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=float, default=100, help="posts a second")
    parser.add_argument("--events", type=int, default=10, help="events in each")
    parser.add_argument("--seconds", type=float, default=3_600, help="the longest")
    given = parser.parse_args()
    report = asyncio.run(run_load(Settings(), given.posts, given.events, given.seconds, system_clock))
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
