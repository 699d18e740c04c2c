"""Stacks of a test's own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.laws.site import Site


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes a stack with nothing in it; its processes must end in order at the end of the test."""
    sites: list[Site] = []

    def make(**settings: Any) -> Site:
        sites.append(Site(tmp_path / f"site-{len(sites)}", **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.close()
