"""Reports and summaries in a real browser: on A4, on a desk and on a phone nothing is cut off."""

import re

import pytest

from lumina_plugin.report.render import render_html
from lumina_plugin.report.summary import summarise
from lumina_plugin.report.summary_page import render_summary

from .test_report import calibrated, report  # noqa: F401  (fixtures)
from .test_summary import many

LIMIT = 1.5 * 2 ** 20  # bytes, without audio
A4 = {'width': 680, 'height': 1010}  # what the margins leave of the sheet, CSS pixels
WIDTHS = {'desk': 1280, 'tablet': 768, 'phone': 390}
# Elements that stick out on the right, those aside that lie in something that scrolls or is a part of a drawing.
STICKING_OUT = """() => [...document.querySelectorAll('body *')].filter((part) => !part.closest('svg, .scroll')
    && part.getClientRects().length && part.getBoundingClientRect().right > innerWidth + 1).map((part) => part.outerHTML
    .slice(0, 120))"""
PRINTED_OUT = STICKING_OUT.replace("'svg, .scroll'", "'svg'")


@pytest.fixture(params=['report', 'calibrated', 'summary', 'small summary'])
def page_file(request, tmp_path):
    """A page with long names, as a file."""
    if 'summary' in request.param:
        entries = many(40, 60) if request.param == 'summary' else many(6, 12)
        return render_summary(summarise(entries), tmp_path / 'summary.html')
    return render_html(request.getfixturevalue(request.param), tmp_path / 'report.html')


def opened(browser, file, **viewport):
    tab = browser.new_page(viewport={'height': 900, **viewport})
    tab.goto(file.absolute().as_uri())
    return tab


@pytest.mark.parametrize('width', WIDTHS.values(), ids=WIDTHS)
def test_nothing_sticks_out_of_a_window(browser, page_file, width):
    assert page_file.stat().st_size <= LIMIT
    tab = opened(browser, page_file, width=width)
    try:
        tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert tab.evaluate('document.documentElement.scrollWidth') <= width
        assert tab.evaluate(STICKING_OUT) == []
    finally:
        tab.close()


@pytest.mark.parametrize('everything', [False, True], ids=['as it opens', 'tables opened'])
def test_it_prints_on_a4(browser, page_file, everything):
    tab = opened(browser, page_file, **A4)
    try:
        if everything:
            tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        pdf = tab.pdf(format='A4', prefer_css_page_size=True)
        boxes = re.findall(rb'/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]', pdf)
        assert boxes and all(abs(float(x) - 595) < 1 and abs(float(y) - 842) < 1 for x, y in boxes)  # 210 × 297 mm
        assert len(re.findall(rb'/Type /Page\b', pdf)) >= 2
        tab.emulate_media(media='print')
        assert tab.evaluate('document.documentElement.scrollWidth') <= A4['width']
        assert tab.evaluate(PRINTED_OUT) == []
        assert tab.locator('audio:visible').count() == 0
        # paper says where the tables are that it may lack
        assert tab.locator('#table ~ .print-only:visible').count() == tab.locator('#table').count()
    finally:
        tab.close()


def test_on_a_phone_a_songs_share_is_seen_without_scrolling(browser, tmp_path):
    tab = opened(browser, render_summary(summarise(many(6, 12)), tmp_path / 'summary.html'), width=WIDTHS['phone'])
    try:
        for row in tab.locator('table.owed tbody tr').all()[:3]:
            box = row.locator('td.n').nth(1).bounding_box()
            assert box['x'] + box['width'] <= WIDTHS['phone']
    finally:
        tab.close()


def test_what_is_to_be_typed_is_shown_as_code_and_nothing_else_is_markup(report, tmp_path):  # noqa: F811
    told = report.model_copy(update={'channel_meaning': '`lumina x` <b>&'})
    text = render_html(told, tmp_path / 'report.html').read_text()
    assert '<code>lumina x</code> &lt;b&gt;&amp;' in text
