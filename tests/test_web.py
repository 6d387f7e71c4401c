"""The page without a browser, over a real server: every endpoint, what is let in, and what is told."""

import concurrent.futures
import http.client
import io
import json
import re
import time
import types
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import gradio_client
import numpy as np
import pytest
import soundfile as sf

from lumina_plugin.attribution import Attributor
from lumina_plugin.errors import LuminaError
from lumina_plugin.report.schema import AttributionReport
from lumina_plugin.web import Limits
from lumina_plugin.web.guard import ALIAS
from lumina_plugin.web.server import expect_guarded, parse_auth

from .page import TITLE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def client(served, tmp_path_factory):
    return gradio_client.Client(served.address, verbose=False, download_files=str(tmp_path_factory.mktemp('got')))


@pytest.fixture(scope='module')
def song(project):
    return str(project.root / 'songs' / 'song-3.wav')


@pytest.fixture(scope='module')
def attributed(client, song):
    return client.predict(gradio_client.handle_file(song), api_name='/attribute')


# -- endpoints ---------------------------------------------------------------------------------------------------------

def test_the_example_of_the_docs_runs(served, song, tmp_path, monkeypatch):
    """Every `client.predict` of docs/demo.md, against a page that runs."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / 'docs' / 'demo.md').read_text(encoding='utf-8')
    (example,) = re.findall(r'```python\n(.*?)```', text, re.S)
    called = set(re.findall(r"api_name='/(\w+)'", example))
    example = example.replace('http://127.0.0.1:7860', served.address).replace('song.wav', song)
    names = {'print': lambda *_: None}
    exec(compile(example, 'docs/demo.md', 'exec'), names)
    known = gradio_client.Client(served.address, verbose=False).view_api(return_format='dict')['named_endpoints']
    assert {f'/{name}' for name in called} == set(known) == {
        f'/{name}' for name in re.findall(r'^\| `/(\w+)` ', text, re.M)}


def test_attribute_gives_a_valid_report_in_every_form(attributed):
    name, report, html, csv = attributed
    found = AttributionReport.model_validate_json(json.dumps(report))
    assert found.channels['P'].rows[0].track_id == found.channels['M'].rows[0].track_id == 'song-3'
    assert found.query.id == 'song-3' and re.fullmatch('[0-9a-f]{32}', name)
    assert 'song-3' in Path(html).read_text() and len(Path(csv).read_text().splitlines()) == 13


def test_generate_gives_audio_of_the_length_asked_for_and_what_the_seed_says_again(client):
    first, again = (client.predict('slow waltz', '', None, 3, 4, 7, api_name='/generate') for _ in range(2))
    assert sf.info(first[2]).duration == pytest.approx(4, abs=0.05)
    assert first[1]['query']['seed'] == 7 and first[1]['query']['prompt'] == 'slow waltz'
    assert first[1]['query']['codes_hash'] == again[1]['query']['codes_hash'] and first[0] != again[0]
    assert sf.read(first[2])[0].tolist() == sf.read(again[2])[0].tolist()


def test_a_song_of_the_catalogue_or_an_upload_is_continued(client, song):
    ours = client.predict('', 'song-2', None, 0.5, 3, 0, api_name='/generate')[1]
    theirs = client.predict('', '', gradio_client.handle_file(song), 0.5, 3, 0, api_name='/generate')[1]
    for report, source in ((ours, 'song-2'), (theirs, None)):
        assert report['query']['kind'] == 'continuation'
        assert report['query']['prompt_seconds'] == pytest.approx(0.5, abs=0.02)
        assert report['query']['prompt_song_id'] == source


def test_a_segment_is_played_against_the_song_it_points_to(client, attributed, song):
    whole, rate = sf.read(song, dtype='int16')
    mine, theirs = client.predict(attributed[0], 1, 'song-3', api_name='/listen')
    assert sf.read(mine, dtype='int16')[0].tolist() == whole[rate:2 * rate].tolist()  # chunks of 1 s in this project
    np.testing.assert_allclose(sf.read(theirs)[0], sf.read(song)[0], atol=1e-4)
    with pytest.raises(Exception, match='no segment 99'):
        client.predict(attributed[0], 99, 'song-3', api_name='/listen')


def test_songs_are_found_by_parts_of_what_they_are_called(client):
    everything = client.predict('', 1, api_name='/songs')
    known = {one['id']: one['status'] for one in everything['songs']}
    assert everything['found'] == 7 and known == {'silence': 'silent', **{f'song-{i}': 'ok' for i in range(6)}}
    assert [one['id'] for one in client.predict('SONG-4', 1, api_name='/songs')['songs']] == ['song-4']
    assert client.predict('nobody', 1, api_name='/songs') == {'found': 0, 'page': 1, 'pages': 1, 'songs': []}


def test_certainty_draws_the_null_that_the_report_was_judged_by(client, served, attributed):
    found = client.predict(attributed[0], api_name='/certainty')
    report = AttributionReport.model_validate_json(json.dumps(attributed[1]))
    for key, one in found.items():
        chart, channel = one['chart'], report.channels[key]
        kind = 'recording' if report.query.kind == 'file' else 'generation'
        null = served.desk.studio.attributor.chance(key, kind).null
        assert sum(chart['counts']) == chart['pool'] == null.pool == chart['outside'] * channel.songs
        by_title = {row.title: row for row in channel.rows}
        for mark in chart['marks']:
            assert mark['p'] == pytest.approx(by_title[mark['title']].p_value)
            assert mark['share'] == by_title[mark['title']].share
        calibrated, printed = one['gates']
        assert calibrated['decides'] and not printed['decides']
        assert calibrated['passing'] == channel.calibration.passing and printed['passing'] == channel.passing
        paid = {row.title: row.share for row in channel.rows if row.share > 0}
        assert dict(calibrated['paid']) == pytest.approx(paid)
        assert calibrated['unattributed'] == pytest.approx(channel.unattributed, abs=1e-9)
        assert sum(share for _, share in printed['paid']) + printed['unattributed'] == pytest.approx(1)
    assert client.predict('', api_name='/certainty')['P']['gates'] == []  # of the store alone


def test_any_song_is_explained(client, attributed):
    found = client.predict(attributed[0], 'song-3', '', api_name='/explain')
    assert found['standing'] == 'compared' and [one['key'] for one in found['channels']] == ['P', 'M']
    rows = {row['track_id']: row for row in attributed[1]['channels']['P']['rows']}
    numbers = {step['name']: step['number'] for step in found['channels'][0]['steps']}
    assert numbers['Cosine'] == rows['song-3']['cosine'] and numbers['Share'] == rows['song-3']['share']
    silent = client.predict(attributed[0], 'silence', '', api_name='/explain')
    assert silent['standing'] == 'silent' and 'silent' in silent['answer']
    unknown = client.predict(attributed[0], 'sogn-3', 'P', api_name='/explain')
    assert unknown['standing'] == 'unknown' and ['song-3', 'song-3'] in unknown['suggestions']


def test_about_tells_the_limits(client):
    found = client.predict(api_name='/about')
    assert found['songs'] == 7 and found['limits']['upload_seconds'] == 20 and found['channels'] == ['P', 'M']


@pytest.mark.parametrize('arguments,message', [
    (('', 'no such song', None, 3, 4, 0), 'There is no song'), (('', '', None, 3, 99, 0), '99 s cannot be made'),
    (('', 'song-1', None, 9, 4, 0), 'less than'), (('', 'song-1', None, 3, 4, 2 ** 70), '64 bits')])
def test_what_cannot_be_generated_is_told_in_a_sentence_without_paths(client, served, arguments, message):
    with pytest.raises(Exception, match=message) as found:
        client.predict(*arguments, api_name='/generate')
    assert '/' not in re.sub(r'\bhttps?://\S+', '', str(found.value)).replace('and/or', '')


def test_bad_uploads_are_told_from_recordings_by_content_and_deleted(client, served, tmp_path):
    notes, long, silent = (tmp_path / f'{name}.wav' for name in ('notes', 'long', 'silent'))
    notes.write_text('this is no music')
    sf.write(long, np.random.default_rng(0).uniform(-.1, .1, 8000 * 21), 8000, subtype='PCM_U8')
    sf.write(silent, np.zeros(16000), 16000)
    for path, message in ((notes, 'no recording that can be read'), (long, 'longer than the 20 s'), (silent, 'silent')):
        with pytest.raises(Exception, match=message) as found:
            client.predict(gradio_client.handle_file(str(path)), api_name='/attribute')
        assert str(served.desk.workplace.root) not in str(found.value)
    left = {path.name for path in served.desk.workplace.cache.rglob('*')}
    assert not left & {'notes.wav', 'long.wav'}
    with pytest.raises(Exception, match='No recording was given'):
        client.predict(None, api_name='/attribute')


def test_an_upload_over_the_limit_is_refused_before_it_is_read(served):
    for length in ({'Content-Length': str(2 ** 21)}, {'Transfer-Encoding': 'chunked'}):
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(served.address).netloc, timeout=20)
        connection.putrequest('POST', '/gradio_api/upload')
        for name, value in {'Content-Type': 'multipart/form-data; boundary=x', **length}.items():
            connection.putheader(name, value)
        connection.endheaders()  # not a byte of the file
        answer = connection.getresponse()
        assert answer.status == 413 and answer.read().decode() in (
            'Uploads of up to 1 MiB are taken here.', 'An upload must say how long it is.')
        connection.close()


def test_ten_visitors_at_once_are_served_in_turn(served, song):
    def visit(index):
        own = gradio_client.Client(served.address, verbose=False, download_files=False)
        if index % 2:
            return own.predict(gradio_client.handle_file(song), api_name='/attribute')[1]
        return own.predict('', '', None, 3, 2, index, api_name='/generate')[1]
    running, most, studio = [], [], served.desk.studio
    attribute = Attributor._report

    def watched(*args, **kwargs):
        running.append(1)
        most.append(len(running))
        try:
            return attribute(*args, **kwargs)
        finally:
            running.pop()
    Attributor._report = watched
    try:
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            reports = list(pool.map(visit, range(10)))
    finally:
        Attributor._report = attribute
    assert max(most) == 1 and len(most) == 10  # one after the other
    assert [report['query']['seed'] for report in reports[::2]] == [0, 2, 4, 6, 8]
    assert {report['channels']['P']['rows'][0]['track_id'] for report in reports[1::2]} == {'song-3'}
    assert not served.desk._stops and studio.attributor.watch(0, 1) is None


def test_a_visitor_too_many_is_told_so(studio, song):
    from lumina_plugin.web import build_page, serve
    page, desk = build_page(studio, Limits(queue=1))
    address = serve(page, desk, wait=False)
    try:
        with desk._model:
            # One after the other: Gradio lets visitors who come in the same moment pass its bound together.
            jobs, until = [], time.monotonic() + 60
            while not any(job.done() for job in jobs) and time.monotonic() < until:
                visitor = gradio_client.Client(address, verbose=False, download_files=False)
                jobs.append(visitor.submit('', '', None, 3, 2, 0, api_name='/generate'))
                time.sleep(0.5)
            errors = [job.exception(timeout=60) for job in jobs if job.done()]
        assert errors and all('full' in str(error).lower() for error in errors)
    finally:
        page.close(verbose=False)
        desk.close()


# -- the way in and out ------------------------------------------------------------------------------------------------

def fetch(served, path, data=None, **headers):
    request = urllib.request.Request(served.address.rstrip('/') + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize('path', [
    '/etc/passwd', '//etc/passwd', f'{ALIAS}/../../../../etc/passwd', f'{ALIAS}/..%2f..%2f..%2f..%2fetc/passwd',
    f'{ALIAS}/%2e%2e/%2e%2e/results', '../../etc/passwd', 'http://127.0.0.1/', 'https://example.com/x.wav',
    'file:///etc/passwd', f'{ALIAS}/', f'{ALIAS}', f'{ALIAS}//etc/passwd', f'{ALIAS}/x%00.wav'])
def test_no_file_but_what_was_handed_out_is_served(served, path):
    status, body = fetch(served, f'/gradio_api/file={path}')
    assert status == 404 and b'root:' not in body


def test_the_real_name_of_a_file_opens_nothing(served, attributed):
    result = served.desk.result(attributed[0])
    copies = [path for path in served.desk.workplace.cache.rglob('report.csv')]
    assert copies and fetch(served, f'/gradio_api/file={copies[0]}')[0] == 404
    assert fetch(served, f'/gradio_api/file={result.files["json"]}')[0] == 404
    name = copies[0].relative_to(served.desk.workplace.cache)
    status, body = fetch(served, f'/gradio_api/file={ALIAS}/{name}')
    assert status == 200 and body == copies[0].read_bytes()


@pytest.mark.parametrize('path', ['/gradio_api/proxy=http://127.0.0.1/', '/monitoring', '/gradio_api/vibe-code',
                                  '/docs', '/redoc', '/gradio_api/dev/reload', '/gradio_api/deep_link',
                                  '/custom_component/x', '/gradio_api/stream/a/b/c/playlist.m3u8', '/gradio_api/runs'])
def test_what_gradio_can_do_beyond_the_page_is_not_there(served, path):
    assert fetch(served, path)[0] == 404
    assert fetch(served, path, b'{}')[0] == 404


@pytest.mark.parametrize('path', ['{decoy}', f'{ALIAS}/{{up}}{{decoy}}', 'file://{decoy}', '{recording}'])
def test_no_path_of_the_server_is_taken_for_an_upload(served, song, tmp_path, path):
    """With decoys alone: were a check ever broken, these would be read and deleted."""
    decoy, recording = tmp_path / 'notes.txt', tmp_path / 'mine.wav'
    decoy.write_text('private')
    recording.write_bytes(Path(song).read_bytes())
    path = path.format(decoy=decoy, recording=recording, up='../' * 12)
    body = json.dumps({'data': [{'path': path, 'url': f'file://{path}', 'meta': {'_type': 'gradio.FileData'}}]})
    status, answer = fetch(served, '/gradio_api/call/attribute', body.encode(), **{'Content-Type': 'application/json'})
    if status == 200:
        status, answer = fetch(served, f"/gradio_api/call/attribute/{json.loads(answer)['event_id']}")
    assert b'event: error' in answer or status >= 400
    assert b'event: complete' not in answer and str(served.desk.workplace.root).encode() not in answer
    assert decoy.read_text() == 'private' and recording.exists()


def test_no_answer_tells_where_the_server_keeps_anything(served, client, attributed, project):
    hidden = [str(served.desk.workplace.root), str(project.root), str(Path.home()), str(served.desk.studio.store.path)]
    for path in ('/', '/config', '/gradio_api/info', '/gradio_api/openapi.json', '/theme.css'):
        status, body = fetch(served, path)
        assert status == 200
        assert not [one for one in hidden if one in body.decode()], path
    body = json.dumps({'data': [attributed[0], 0, 'song-1']}).encode()
    _, answer = fetch(served, '/gradio_api/call/listen', body, **{'Content-Type': 'application/json'})
    _, answer = fetch(served, f"/gradio_api/call/listen/{json.loads(answer)['event_id']}")
    assert ALIAS in answer.decode() and not [one for one in hidden if one in answer.decode()]


def test_a_body_that_no_page_sends_is_refused(served):
    assert fetch(served, '/gradio_api/queue/join', b'x' * 2 ** 21)[0] == 413


def test_the_front_is_in_the_document_before_any_script(served):
    _, body = fetch(served, '/')
    assert body.index(b'<h1>Which songs shaped this music?</h1>') < body.index(b'<gradio-app')
    assert b'fonts.googleapis' not in body and b'//cdn' not in body


def test_it_listens_on_this_machine_alone_and_is_shared_with_a_password_only(served):
    assert served.address.startswith('http://127.0.0.1:')
    with pytest.raises(LuminaError, match='--auth'):
        expect_guarded([], share=True)
    with pytest.raises(LuminaError, match='8 characters'):
        expect_guarded([('ann', 'short')], share=False)
    with pytest.raises(LuminaError, match='NAME:PASSWORD'):
        parse_auth(['ann'])
    assert parse_auth(['ann:long:enough']) == [('ann', 'long:enough')]


def test_with_a_password_nobody_else_gets_in(studio):
    from lumina_plugin.web import build_page, serve
    page, desk = build_page(studio)
    address = serve(page, desk, auth=[('ann', 'long enough')], wait=False)
    try:
        closed = types.SimpleNamespace(address=address)
        assert studio.musicgen.name not in fetch(closed, '/')[1].decode()
        for path in ('/config', '/gradio_api/info'):
            assert fetch(closed, path)[0] == 401
        assert fetch(closed, '/gradio_api/queue/join', b'{}')[0] == 401
        with pytest.raises(Exception, match='401|[Cc]redentials|auth'):
            gradio_client.Client(address, verbose=False).predict(api_name='/about')
        known = gradio_client.Client(address, auth=('ann', 'long enough'), verbose=False)
        assert known.predict(api_name='/about')['songs'] == 7
    finally:
        page.close(verbose=False)
        desk.close()


# -- what is shown ----------------------------------------------------------------------------------------------------

def test_titles_and_prompts_are_escaped(served, attributed):
    from lumina_plugin.web import views
    desk = served.desk
    made = desk.result(attributed[0])
    assert TITLE in {row.title for row in made.report.channels['P'].rows}
    text = made.report.model_copy(update={'query': made.report.query.model_copy(
        update={'kind': 'generation', 'prompt': TITLE})})
    shown = [views.result(made, 'x'), views.result(type(made)(made.name, made.folder, text), 'x'),
             views.catalogue(desk.songs(), TITLE), views.song(desk.song('song-5'), {}, [], None, ['P', 'M']),
             views.player('a', 0, 1, 'b', desk.song('song-5')),
             views.explanation(desk.explanation(made.name, 'song-5'), made.report, {'music': [], 'song': []})]
    for html in shown:
        assert '<script' not in html.lower() and 'onerror=' not in html
    assert sum('&lt;script&gt;' in html for html in shown) >= 5


def test_incidents_are_logged_and_not_shown(served, client, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError('/secret/place')
    monkeypatch.setattr(served.desk, 'songs', broken)
    with caplog.at_level('ERROR'), pytest.raises(Exception, match='Something broke') as found:
        client.predict('', 1, api_name='/songs')
    number = re.search(r'incident ([0-9a-f]{8})', str(found.value))[1]
    assert number in caplog.text and 'secret' not in str(found.value)


def test_a_downloaded_wav_is_a_wav(served, attributed):
    data = served.desk.result(attributed[0]).recording.read_bytes()
    assert sf.info(io.BytesIO(data)).format == 'WAV'
