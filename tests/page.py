"""The page of the tiny project, served as visitors find it; and a browser, where there is one."""

import os
import shutil
import typing as tp
from pathlib import Path

import pytest

from . import left_out

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
TITLE = '<script>document.title="taken"</script>'


class Served(tp.NamedTuple):
    """A page that runs."""
    address: str
    desk: tp.Any
    page: tp.Any


@pytest.fixture(scope='module')
def served(studio, tmp_path_factory) -> tp.Iterator[Served]:
    """The page with small limits and a history, at a port of its own; a song of it is called like a script."""
    from lumina_plugin.web import Limits, build_page, serve
    store, (table, slots) = studio.store, (studio.store.table, studio.store.slots)
    naughty = {slot: record.model_copy(update={'title': TITLE}) for slot, record in enumerate(slots)
               if record.id == 'song-5'}
    store._slots = [naughty.get(slot, record) for slot, record in enumerate(slots)]
    folder = tmp_path_factory.mktemp('page')
    page, desk = build_page(studio, Limits(upload_mb=1, upload_seconds=20, seconds=8), folder / 'history')
    address = serve(page, desk, wait=False)
    yield Served(address, desk, page)
    page.close(verbose=False)
    desk.close()
    store._slots = slots
    assert studio.store.table is table


def browser_path() -> tp.Optional[str]:
    """LUMINA_BROWSER, or a Chromium that is installed."""
    named = os.environ.get('LUMINA_BROWSER')
    return named or next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture(scope='module')
def browser() -> tp.Iterator[tp.Any]:
    """A headless Chromium; where there is none the test is skipped, which CI does not allow.

    A module's own: while playwright is at work its event loop is this thread's, and no other test could start one.
    """
    path = browser_path()
    if path is None or not Path(path).exists():
        pytest.skip(left_out.NO_BROWSER)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield chromium
        chromium.close()
