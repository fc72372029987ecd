"""What the tests of both pages share."""

from __future__ import annotations

import pytest


@pytest.fixture
def reader(browser):
    """Opens pages; at the end, no page may have complained."""
    from reader import Reader  # needs selenium, without which these tests are skipped

    reader = Reader(browser)
    yield reader
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.pwned") is None
