"""The page in a real browser: what a visitor does, and what comes of it."""

import contextlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from lumina_plugin.report.schema import AttributionReport

from .page import TITLE

PHONE = {'width': 390, 'height': 844}


@pytest.fixture
def visit(browser, served):
    """A visitor's own tab, and at the end: no script broke, nothing was fetched from elsewhere, no path was told."""
    seen = {'errors': [], 'hosts': set(), 'told': []}
    with contextlib.ExitStack() as open_tabs:
        def opened(**options):
            context = browser.new_context(accept_downloads=True, **options)
            open_tabs.callback(context.close)
            tab = context.new_page()
            tab.on('pageerror', lambda error: seen['errors'].append(str(error)))
            tab.on('request', lambda request: seen['hosts'].add(re.sub(r'^(\w+://[^/]+).*$', r'\1', request.url)))
            tab.on('response', lambda response: seen['told'].extend(_told(response, served)))
            tab.goto(served.address)
            tab.get_by_role('button', name='Generate').wait_for()
            return tab
        yield opened
    assert seen['errors'] == [] and seen['told'] == []
    assert {host for host in seen['hosts'] if host.startswith('http')} <= {served.address.rstrip('/')}


def _told(response, served):
    """What an answer says of the server's folders; events that are still coming are looked at by tests of the API."""
    if 'event-stream' in (response.headers.get('content-type') or '') or response.request.method == 'HEAD':
        return []
    try:
        body = response.body()
    except Exception:  # redirects and cancelled answers have none
        return []
    return [response.url] if str(served.desk.workplace.root).encode() in body else []


def shown(tab, name, number=0):
    """Open a tab of the page."""
    tab.get_by_role('tab', name=name).click()


def generated(tab, seconds=3):
    tab.get_by_label('number input for Length in seconds').fill(str(seconds))
    tab.get_by_label('number input for Length in seconds').press('Tab')
    tab.get_by_role('button', name='Generate').click()
    result = tab.locator('.lum.result:visible')
    result.wait_for(timeout=120000)
    return result


def attributed(tab, path):
    shown(tab, 'Attribute a file')
    tab.locator('input[type=file]:visible, .tabitem:visible input[type=file]').last.set_input_files(str(path))
    tab.get_by_text(Path(path).name).last.wait_for()
    tab.get_by_role('button', name='Attribute', exact=True).click()


def test_generate_shows_both_channels_and_what_is_unattributed(visit):
    tab = visit()
    tab.get_by_label('What should it sound like?').fill(TITLE)
    result = generated(tab)
    assert result.locator('h2').inner_text() == f'Music generated from “{TITLE}”' and 'taken' not in tab.title()
    cards = result.locator('.card')
    assert [card.get_attribute('data-channel') for card in cards.all()] == ['P', 'M']
    left, right = (card.bounding_box() for card in cards.all())
    assert left['x'] + left['width'] <= right['x'] and abs(left['y'] - right['y']) < 1  # side by side
    for card in cards.all():
        assert card.locator('.bar.unattributed .value').inner_text().endswith('%')
    audio = result.locator('audio').first
    tab.wait_for_function('audio => audio.readyState > 0', arg=audio.element_handle())
    assert audio.evaluate('audio => audio.duration') == pytest.approx(3, abs=0.1)


def test_a_channel_is_switched_off_and_on(visit):
    tab = visit()
    result = generated(tab)
    master = result.locator('.card[data-channel=M]')
    result.get_by_text('Composition / publishing', exact=True).first.click()
    assert not master.is_visible() and result.locator('.card[data-channel=P]').is_visible()
    result.get_by_text('Both', exact=True).click()
    assert master.is_visible()


def test_an_upload_is_attributed_and_heard_against_a_song(visit, project):
    tab = visit()
    attributed(tab, project.root / 'songs' / 'song-3.wav')
    result = tab.locator('.lum.result:visible')
    result.wait_for(timeout=120000)
    assert result.locator('h2').inner_text() == 'Recording “song-3”'
    assert 'song-3' in ' '.join(result.locator('.card[data-channel=P] .lanes .name').all_inner_texts())
    result.locator('button.cell.first').first.click()
    player = tab.locator('.lum.player:visible')
    player.wait_for(timeout=30000)
    lengths = 'player => [...player.querySelectorAll("audio")].every(audio => audio.readyState > 0)'
    tab.wait_for_function(lengths, arg=player.element_handle())
    found = player.evaluate('player => [...player.querySelectorAll("audio")].map(audio => audio.duration)')
    assert found == pytest.approx([1, 2.6], abs=0.05)  # a segment of this project, and the whole song
    player.get_by_role('button', name='Switch').click()
    assert player.locator('.side.on').get_attribute('data-side') == 'b'
    player.get_by_role('button', name='Close').click()
    player.wait_for(state='detached')


def test_a_song_called_like_a_script_is_only_a_name(visit):
    tab = visit()
    generated(tab)
    shown(tab, 'Catalogue')
    tab.get_by_label('Look for').fill('song-5')
    tab.locator('.catalogue', has_text='1 song for').wait_for()
    tab.locator('.catalogue button.pick').click()
    tab.locator('.lum.song').wait_for()
    assert tab.locator('.lum.song h2').inner_text() == TITLE
    shown(tab, 'Explain')
    tab.locator('.lum.explain').wait_for()
    assert TITLE in tab.locator('.lum.explain h2').inner_text()
    assert tab.title() == 'LUMINA attribution' and tab.locator('.lum script').count() == 0


def test_every_download_is_what_it_says(visit, tmp_path):
    tab = visit()
    generated(tab)
    files = {}
    for kind in ('HTML', 'JSON', 'CSV', 'WAV'):
        with tab.expect_download() as coming:
            tab.get_by_role('button', name=f'Download {kind}').locator('visible=true').click()
        files[kind] = tmp_path / coming.value.suggested_filename
        coming.value.save_as(files[kind])
    report = AttributionReport.load(files['JSON'])
    assert report.query.seed == 0 and json.loads(files['JSON'].read_text())['schema_version']
    assert sf.info(files['WAV']).duration == pytest.approx(3, abs=0.1)
    assert len(files['CSV'].read_text().splitlines()) == 1 + 2 * 6
    html = files['HTML'].read_text()
    assert html.startswith('<!DOCTYPE html>') and 'data:audio/wav' in html
    assert {path.suffix for path in files.values()} == {'.html', '.json', '.csv', '.wav'}


def test_a_bad_upload_is_told_in_a_sentence(visit, tmp_path):
    bad = tmp_path / 'notes.wav'
    bad.write_text('this is no music')
    tab = visit()
    attributed(tab, bad)
    toast = tab.locator('.toast-body')
    toast.wait_for(timeout=60000)
    assert '“notes.wav” is no recording' in toast.inner_text() and '/tmp' not in toast.inner_text()
    long = tmp_path / 'long.wav'
    sf.write(long, np.random.default_rng(0).uniform(-.1, .1, 8000 * 21), 8000, subtype='PCM_U8')
    again = visit()
    attributed(again, long)
    again.locator('.toast-body', has_text='longer than the 20 s').wait_for(timeout=60000)


def test_work_is_stopped(visit, served):
    tab = visit()
    with served.desk._model:  # so that it has to wait
        tab.get_by_role('button', name='Generate').click()
        until = time.monotonic() + 20
        while not served.desk._stops and time.monotonic() < until:
            time.sleep(0.05)
        assert served.desk._stops
        tab.get_by_role('button', name='Stop').first.click()
        tab.wait_for_timeout(500)
    until = time.monotonic() + 20
    while served.desk._stops and time.monotonic() < until:
        time.sleep(0.05)
    assert not served.desk._stops and tab.locator('.lum.result').count() == 0
    generated(tab)


def test_how_sure_and_why_follow_the_latest_result(visit, project):
    tab = visit()
    shown(tab, 'How sure?')
    tab.locator('.lum.certainty', has_text='Generate or attribute something').wait_for()
    shown(tab, 'Explain')
    tab.get_by_text('Generate music or attribute a file first').wait_for()
    attributed(tab, project.root / 'songs' / 'song-2.wav')
    tab.locator('.lum.result:visible').wait_for(timeout=120000)
    shown(tab, 'How sure?')
    sure = tab.locator('.lum.certainty', has_text='Recording “song-2”')
    sure.wait_for(timeout=30000)
    assert sure.locator('.null svg').count() == 2 and sure.locator('.gates .decides').count() == 2
    assert sure.locator('.null .mark').count() == 2 * 6
    shown(tab, 'Explain')
    explained = tab.locator('.lum.explain')
    explained.wait_for(timeout=30000)
    names = explained.locator('.card').first.locator('.steps .line b').all_inner_texts()
    assert [name for name in names if name in ('Cosine', 'Score', 'STS', 'LIP %', 'Weight', 'Share')] == [
        'Cosine', 'Score', 'STS', 'LIP %', 'Weight', 'Share']
    box = tab.get_by_label('Why was this song paid, or not?')
    box.fill('sogn-4')
    box.press('Enter')
    explained.locator('.pick', has_text='song-4').click()
    tab.locator('.lum.explain h2', has_text='“song-4”').wait_for(timeout=30000)


def test_a_phone_shows_everything_without_scrolling_sideways(visit):
    tab = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    result = generated(tab)
    wide = 'document.documentElement.scrollWidth'
    assert tab.evaluate(wide) <= PHONE['width']
    tabs = [button.bounding_box() for button in tab.get_by_role('tab').all()]
    assert len(tabs) == 5 and all(0 <= box['x'] and box['x'] + box['width'] <= PHONE['width'] for box in tabs)
    assert not tab.get_by_label('More tabs').is_visible()
    tops = sorted({round(box['y']) for box in tabs})
    assert all(low - high >= tabs[0]['height'] - 1 for high, low in zip(tops, tops[1:], strict=False))  # rows apart
    left, right = (card.bounding_box() for card in result.locator('.card').all())
    assert left['y'] + left['height'] <= right['y'] and left['width'] > 0.8 * PHONE['width']  # one below the other
    for name, seen in (('Catalogue', '.lum.catalogue'), ('How sure?', '.lum.certainty'), ('Explain', '.lum.explain')):
        shown(tab, name)
        tab.locator(f'{seen}:visible').wait_for(timeout=30000)
        assert tab.evaluate(wide) <= PHONE['width'], name


def test_what_a_keyboard_reaches_has_a_name(visit):
    tab = visit()
    result = generated(tab)
    for cell in result.locator('button.cell').all():
        assert cell.get_attribute('aria-label').startswith('Hear it against ')
    unnamed = tab.evaluate("""() => [...document.querySelectorAll('.lum button, .lum audio, .lum input')].filter(
        (part) => !(part.innerText || part.getAttribute('aria-label') || part.closest('label'))).length""")
    assert unnamed == 0


def test_the_first_paint_has_the_pages_name(visit):
    tab = visit()
    paints = tab.evaluate("() => performance.getEntriesByType('paint').map((paint) => paint.name)")
    assert 'first-contentful-paint' in paints and tab.locator('.lumina-front h1').is_visible()
    assert not tab.get_by_text('One moment …').first.is_visible()
