"""Attributions that travel with the audio: what is written is read back, and whatever is changed is found out."""

import json
import shutil
import sys
from pathlib import Path

import hypothesis
import mutagen
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import strategies as st

from lumina_plugin import audio
from lumina_plugin.cli import main
from lumina_plugin.errors import LuminaError
from lumina_plugin.provenance import (
    Attribution,
    Signing,
    attribution_of,
    content_sha256,
    read_back,
    read_tags,
    report_sha256,
    write_tags,
)
from lumina_plugin.provenance.record import sidecar_path
from lumina_plugin.report import AttributionReport
from lumina_plugin.workflows import Clip, carry, write_clip

from .authority import Authority
from .test_report import NAUGHTY, report, sample, songs  # noqa: F401  (fixtures)

KINDS = sorted(audio.WRITTEN)
SIGNED = ['flac', 'mp3', 'wav']


def wave(seconds: float = 1., channels: int = 1, rate: int = 16000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(int(seconds * rate)) / rate
    return 0.3 * torch.sin(2 * torch.pi * 330 * time) + 0.01 * torch.randn(channels, len(time), generator=generator)


@pytest.fixture
def generated(report) -> AttributionReport:  # noqa: F811
    keys = {**report.recipe.keys, 'silence_db': -60.}
    return report.model_copy(update={'recipe': report.recipe.model_copy(update={'keys': keys})})


@pytest.fixture(scope='module')
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp('authority'))


def clip_of(folder: Path, one: AttributionReport, kind: str = 'wav', signing=None) -> Clip:
    return write_clip(folder / 'clip', wave(), 16000, one, 'clip', kind, signing)


def failures(path: Path, **options) -> list:
    return [check.sentence for check in read_back(path, **options).checks if not check.ok]


# ---- what is written is read back ----


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_audio_tells_its_attribution_and_sounds_as_before(generated, tmp_path, kind):
    clip = clip_of(tmp_path, generated, kind)
    plain = audio.save_audio(tmp_path / f'plain.{kind}', wave(), 16000)
    assert np.array_equal(soundfile.read(plain)[0], soundfile.read(clip.audio)[0])
    assert content_sha256(plain) == content_sha256(clip.audio)
    for path in (clip.audio, sidecar_path(clip.audio), clip.folder / 'report.json', clip.folder):
        found = read_back(path)
        assert found.fits and [source.name for source in found.sources] == ['the tags', 'the sidecar', 'the report']
        assert found.attribution == attribution_of(clip.report, content_sha256(plain))
        assert found.report == clip.report and clip.report.query.sha256 == audio.file_sha256(clip.audio)
    shares = [row.share for row in generated.channels['P'].rows if row.share > 0]
    credits = found.attribution.channels['P']
    assert [credit.share for credit in credits.credits] == sorted(shares, reverse=True)[:5]
    total = sum(credit.share for credit in credits.credits) + credits.others + credits.unattributed
    assert total == pytest.approx(1)


@pytest.mark.parametrize('kind', KINDS)
def test_the_tags_alone_are_enough_and_a_title_of_the_owner_stays(generated, tmp_path, kind):
    path = audio.save_audio(tmp_path / f'song.{kind}', wave(), 16000)
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    if hasattr(file.tags, 'getall'):
        from mutagen.id3 import TIT2
        file.tags.add(TIT2(encoding=3, text=['My Song']))
    else:
        file.tags['title'] = ['My Song']
    file.save()
    attribution = attribution_of(generated, content_sha256(path))
    write_tags(path, attribution)
    write_tags(path, attribution)  # again, and it is there once
    assert read_tags(path) == attribution and str(mutagen.File(path).tags['TIT2' if kind in ('wav', 'mp3') else 'title']
                                                  ).strip("[]'") == 'My Song'
    found = read_back(path)
    assert found.fits and [source.name for source in found.sources] == ['the tags'] and found.report is None


def test_people_can_read_who_is_credited(generated, tmp_path):
    clip = clip_of(tmp_path, generated)
    tags = mutagen.File(clip.audio).tags
    best = max(generated.channels['P'].rows, key=lambda row: row.share)
    assert str(tags['TIT2']).startswith('Continuation of') and best.title in str(tags.getall('COMM')[0])
    assert str(tags['TXXX:LUMINA_REPORT_SHA256']) == report_sha256(clip.report)


def test_lossy_formats_take_any_rate_and_stereo(tmp_path):
    for kind, rate, expected in (('mp3', 11500, 12000), ('mp3', 96000, 48000), ('ogg', 11500, 11500)):
        path = audio.save_audio(tmp_path / f'{rate}.{kind}', wave(2., 2, rate), rate)
        info = soundfile.info(path)
        assert (info.samplerate, info.channels) == (expected, 2) and info.duration == pytest.approx(2, abs=0.1)
    long = audio.save_audio(tmp_path / 'long.ogg', wave(700), 16000)  # in one piece libsndfile would crash
    assert soundfile.info(long).duration == pytest.approx(700, abs=0.1)
    with pytest.raises(LuminaError, match='choose one of wav, flac, mp3, ogg'):
        audio.save_audio(tmp_path / 'a.aiff', wave(), 16000)


# ---- hashes ----


_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                       max_leaves=8)


@hypothesis.given(st.dictionaries(st.text(), _values, max_size=4), st.text())
def test_the_reports_hash_depends_on_all_but_the_order_and_the_files_own_hash(data, sha256):
    data = {**data, 'query': {'id': 'clip', 'sha256': sha256}}
    turned = {key: data[key] for key in reversed(list(data))}
    without = {**data, 'query': {'id': 'clip'}}
    assert report_sha256(data) == report_sha256(turned) == report_sha256(without)
    assert report_sha256(data) == report_sha256(json.loads(json.dumps(data)))
    assert report_sha256({**data, 'query': {'id': 'other', 'sha256': sha256}}) != report_sha256(data)
    assert report_sha256({**data, 'one more': 1}) != report_sha256(data) or 'one more' in data


def test_a_report_has_the_hash_of_its_file(generated, tmp_path):
    path = generated.save(tmp_path / 'report.json')
    assert report_sha256(json.loads(path.read_text())) == report_sha256(generated)


def test_the_sounds_hash_knows_every_sample_the_rate_and_the_channels(tmp_path):
    paths = [audio.save_audio(tmp_path / 'a.wav', wave(), 16000), audio.save_audio(tmp_path / 'b.wav', wave(), 8000),
             audio.save_audio(tmp_path / 'c.wav', wave(channels=2), 16000)]
    changed = wave()
    changed[0, 777] += 2 / 32768
    paths.append(audio.save_audio(tmp_path / 'd.wav', changed, 16000))
    assert len({content_sha256(path) for path in paths}) == 4
    (tmp_path / 'no.wav').write_text('no audio')
    for name in ('no.wav', 'gone.wav'):
        with pytest.raises(LuminaError, match=name):
            content_sha256(tmp_path / name)


# ---- what is changed is found out ----


def test_a_changed_sound_is_found_out(generated, tmp_path):
    clip = clip_of(tmp_path, generated)
    data = bytearray(clip.audio.read_bytes())
    data[5000] ^= 0x10
    clip.audio.write_bytes(bytes(data))
    (failure,) = failures(clip.audio)
    assert failure == 'audio.wav is not what was attributed: its sound was changed, cut or encoded anew.'
    assert failures(clip.folder / 'report.json') == [failure]


def test_a_changed_title_is_no_change_of_the_sound(generated, tmp_path):
    clip = clip_of(tmp_path, generated, 'flac')
    file = mutagen.File(clip.audio)
    file.tags['title'] = ['Renamed by its owner']
    file.save()
    assert read_back(clip.audio).fits


def test_a_report_that_was_changed_is_found_out(generated, tmp_path):
    clip = clip_of(tmp_path, generated)
    path = clip.folder / 'report.json'
    data = json.loads(path.read_text())
    data['channels']['P']['rows'][0]['title'] = 'Somebody Else’s'
    path.write_text(json.dumps(data))
    (failure,) = failures(clip.audio)
    assert 'report.json is not the report named by the tags and the sidecar' in failure
    path.write_text('{"query": {"audio_file": "audio.wav"}}')
    assert any('schema version' in failure for failure in failures(clip.audio))


def test_a_sidecar_that_was_changed_is_found_out(generated, tmp_path):
    clip = clip_of(tmp_path, generated)
    path = sidecar_path(clip.audio)
    data = json.loads(path.read_text())
    data['channels']['M']['unattributed'] = 0.5
    path.write_text(json.dumps(data))
    assert failures(clip.audio) == ['What the sidecar and the tags say is not the same: one of them was changed.']
    path.write_text('{"format": 1}')
    assert any('damaged' in failure for failure in failures(clip.audio))


def test_of_a_report_alone_the_files_bytes_are_compared(report, tmp_path):  # noqa: F811
    path = audio.save_audio(tmp_path / 'song.wav', wave(), 16000)
    query = report.query.model_copy(update={'audio_file': 'song.wav', 'sha256': audio.file_sha256(path)})
    saved = report.model_copy(update={'query': query}).save(tmp_path / 'report.json')
    assert read_back(path).fits and read_back(saved).fits
    path.write_bytes(path.read_bytes() + b'\0\0')
    assert failures(saved) == ['song.wav is not, byte for byte, the file that was attributed.']
    path.unlink()
    assert read_back(saved).checks[0].sentence == 'The audio itself is not here, and was not compared.'


# ---- files that mean no good ----


@pytest.mark.parametrize('text', ['{', '[]', '"text"', '{"format": 2}', 'NaN', '{"format": 1, "title": "' + 'x' * 9999])
def test_tags_that_hold_no_record_are_told(generated, tmp_path, text):
    path = audio.save_audio(tmp_path / 'song.flac', wave(), 16000)
    file = mutagen.File(path)
    file['LUMINA_ATTRIBUTION'] = [text]
    file.save()
    (failure,) = failures(path)
    assert 'damaged' in failure and 'tags of' in failure


def test_damaged_audio_is_bad_input(generated, tmp_path):
    for kind in KINDS:
        path = clip_of(tmp_path / kind, generated, kind).audio
        data = path.read_bytes()
        for cut in (0, 3, 40, len(data) // 3):
            (tmp_path / f'cut.{kind}').write_bytes(data[:cut])
            try:
                assert not read_back(tmp_path / f'cut.{kind}').fits
            except LuminaError as error:
                assert 'cut.' in str(error)
    with pytest.raises(LuminaError, match='no.txt.*takes no tags|no.txt'):
        (tmp_path / 'no.txt').write_text('text')
        write_tags(tmp_path / 'no.txt', attribution_of(generated))


def test_a_report_leads_to_no_file_outside_of_its_folder(report, tmp_path):  # noqa: F811
    secret = audio.save_audio(tmp_path / 'secret.wav', wave(), 16000)
    query = report.query.model_copy(update={'audio_file': f'../{secret.name}', 'sha256': 'ab' * 32})
    saved = report.model_copy(update={'query': query}).save(tmp_path / 'inner' / 'report.json')
    assert read_back(saved).audio is None


def test_names_that_mean_no_good_stay_text(tmp_path, capsys):
    naughty = [songs(5)[0], *songs(5)[1:]]
    for song in naughty:
        song.title, song.artist = NAUGHTY + '\x1b[31m\u202e', 'Ünïcode \x00 '
    made = sample(naughty, mixes=({0: 1.}, {1: 1.}), query={'prompt_song_id': None, 'kind': 'generation',
                                                            'prompt': '\x1b]0;title\x07'})
    for kind in KINDS:
        path = audio.save_audio(tmp_path / f'song.{kind}', wave(), 16000)
        carry(path, made)
        assert read_tags(path).channels['P'].credits[0].title == naughty[0].title
        main(['show', str(path)])
        assert not {'\x1b', '\x07', '\u202e', '\x00'} & set(capsys.readouterr().out)


# ---- C2PA ----


@pytest.mark.parametrize('kind', SIGNED)
def test_a_signed_clip_tells_who_vouches_for_it(generated, authority, tmp_path, kind):
    signing = Signing(*authority.signer())
    signing.check()
    clip = clip_of(tmp_path, generated, kind, signing)
    found = read_back(clip.audio, authority.root)
    assert found.fits and [source.name for source in found.sources] == [
        'the C2PA manifest', 'the tags', 'the sidecar', 'the report']
    assert found.sources[0].attribution == found.sources[1].attribution
    assert any('signed by Studio (Test Studios), whom you trust' in check.sentence for check in found.checks)
    stranger = read_back(clip.audio)
    assert stranger.fits and any('nothing here vouches' in check.sentence for check in stranger.checks)
    assert len(soundfile.read(clip.audio)[0]) >= 16000  # and it still plays


def test_whatever_is_changed_after_signing_breaks_the_manifest(generated, authority, tmp_path):
    clip = clip_of(tmp_path, generated, 'flac', Signing(*authority.signer(kind='ed25519')))
    file = mutagen.File(clip.audio)
    file.tags['title'] = ['Renamed']
    file.save()
    (failure,) = failures(clip.audio, trust=authority.root)  # the sound and the report are as they were
    assert 'was changed after it was signed' in failure and 'assertion.dataHash.mismatch' in failure


def test_who_cannot_sign_is_told_before_anything_is_made(generated, authority, tmp_path, monkeypatch):
    chain, key = authority.signer('One')
    _, other = authority.signer('Two')
    late = Signing(*authority.signer('Late', days=-30))
    (tmp_path / 'no.pem').write_text('no key')
    path = audio.save_audio(tmp_path / 'song.wav', wave(), 16000)
    record = attribution_of(generated, content_sha256(path))
    for signing, match in ((Signing(tmp_path / 'no.pem', key), 'no.pem'), (Signing(chain, tmp_path / 'gone'), 'gone'),
                           (Signing(chain, tmp_path / 'no.pem'), 'no.pem'), (Signing(chain, chain), 'private key'),
                           (Signing(chain, other), 'One.pem'), (late, 'Late.pem')):
        for attempt in (signing.check, lambda one=signing: one.sign(path, record)):
            with pytest.raises(LuminaError, match=match):
                attempt()
    before = path.read_bytes()
    signing = Signing(chain, key)
    with pytest.raises(LuminaError, match='cannot hold a C2PA manifest'):
        signing.sign(tmp_path / 'song.ogg', record)
    with pytest.raises(LuminaError, match='not made, here'):
        signing.sign(path, record.model_copy(update={'kind': 'file'}))
    assert path.read_bytes() == before
    signing.sign(path, record)
    monkeypatch.setitem(sys.modules, 'c2pa', None)
    with pytest.raises(LuminaError, match=r'lumina_plugin\[c2pa\]'):
        signing.check()
    main(['show', str(path), '--json'])  # without the library the rest is read all the same


# ---- the command ----


def test_show_prints_what_was_found_and_ends_with_2_where_it_does_not_fit(generated, tmp_path, capsys):
    clip = clip_of(tmp_path, generated)
    main(['show', str(clip.audio)])
    out = capsys.readouterr().out
    best = max(generated.channels['P'].rows, key=lambda row: row.share)
    assert best.title in out and 'unattributed' in out and out.count('ok ') == 2 and '!!' not in out
    main(['show', str(clip.folder), '--json'])
    told = json.loads(capsys.readouterr().out)
    assert Attribution.model_validate(told['attribution']) == attribution_of(clip.report, content_sha256(clip.audio))
    shutil.copy(audio.save_audio(tmp_path / 'other.wav', wave(seed=1), 16000), clip.audio)
    for argv in (['show', str(clip.folder)], ['show', str(clip.folder), '--json']):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert '!! audio.wav is not what was attributed' in out and 'Error: audio.wav is not what was attributed' in err


def test_show_of_nothing_is_bad_input(tmp_path, capsys):
    plain = audio.save_audio(tmp_path / 'plain.wav', wave(), 16000)
    (tmp_path / 'other.json').write_text('{}')
    for path, match in ((plain, 'carries no attribution'), (tmp_path / 'gone.wav', 'gone.wav'),
                        (tmp_path, 'report.json does not exist'), (tmp_path / 'other.json', 'schema version')):
        with pytest.raises(SystemExit) as stop:
            main(['show', str(path)])
        assert stop.value.code == 2 and match in capsys.readouterr().err


def test_attribute_writes_a_sidecar_beside_the_recording(project, tmp_path, capsys):
    song = Path(shutil.copy(project.root / 'songs' / 'song-2.wav', tmp_path / 'mine.wav'))
    main(['attribute', str(song), '--model', str(project.folder()), '--sidecar'])
    found = read_back(song)
    assert found.fits and [source.name for source in found.sources] == ['the sidecar']
    assert found.attribution.title == 'Recording “mine”' and found.attribution.kind == 'file'
