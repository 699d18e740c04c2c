"""A program that sends events until it is killed: `python -m tests.integration.client_process ADDRESS SPOOL NAME COUNT`.

Writes the number of each event, a line each, once its `send` has returned.
"""

import os
import sys

from headrace.client import Backoff, Client, ClientConfig

if __name__ == "__main__":
    address, spool, name, count = sys.argv[1:]
    config = ClientConfig(batch_events=20, backoff=Backoff(0.02, 0.2))
    client = Client(address, event_key="writer", spool=spool, config=config)
    for number in range(int(count)):
        client.track("view", event_id=f"{name}-{number}", user_id=f"u{number % 7}", item_id="i")
        os.write(1, f"{name}-{number}\n".encode())
    client.flush(60)
    os.write(1, b"flushed\n")
    client.close()
