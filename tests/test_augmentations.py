"""Changed recordings: as long, as loud, reproducible, and changed in what they are to be changed in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from lumina_plugin import augmentations, resynthesis
from lumina_plugin.augmentations import CHANGES, change_production
from lumina_plugin.embedded.crossed import crossed_songs

RATE = 8000


def tune(seconds=2., rate=RATE, pitches=(60, 64, 67, 72)):
    """A tune of decaying tones, two a second."""
    time = np.arange(int(seconds * rate)) / rate
    which = (time * 2).astype(int) % len(pitches)
    hertz = 440 * 2 ** ((np.array(pitches)[which] - 69) / 12)
    return .3 * np.exp(-4 * (time % .5)) * np.sin(2 * np.pi * hertz * time)


def level(wave):
    return np.sqrt(np.mean(wave ** 2))


def loudest(wave, rate=RATE):
    """The loudest frequency in Hz."""
    return np.fft.rfftfreq(len(wave), 1 / rate)[np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax()]


@settings(max_examples=25)
@given(st.sampled_from(sorted(CHANGES)), st.integers(0, 10 ** 6), st.sampled_from([8000, 16000, 32000]),
       st.floats(.01, 1.5))
def test_length_and_level_are_kept(name, seed, rate, seconds):
    wave = tune(seconds, rate)
    changed = CHANGES[name](wave, rate, seed)
    assert changed.shape == wave.shape and np.isfinite(changed).all() and np.abs(changed).max() <= 1
    assert level(changed) == pytest.approx(level(wave), rel=.1)
    np.testing.assert_array_equal(changed, CHANGES[name](wave, rate, seed))


@pytest.mark.parametrize('name', sorted(CHANGES))
def test_every_seed_changes_otherwise(name):
    wave = tune()
    found = [CHANGES[name](wave, RATE, seed) for seed in range(4)]
    likeness = [np.corrcoef(one, wave)[0, 1] for one in found]
    assert max(likeness) < .99
    assert all(not np.allclose(one, other) for i, one in enumerate(found) for other in found[:i])


@pytest.mark.parametrize('name', sorted(CHANGES))
def test_silence_stays_silence(name):
    assert not CHANGES[name](np.zeros(4000), RATE, 1).any()
    assert CHANGES[name](np.zeros(0), RATE, 1).shape == (0,)


def test_a_tone_is_moved_by_semitones_and_not_by_tempo():
    tone = .3 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    assert loudest(augmentations.transpose(tone, RATE, 3)[:RATE]) == pytest.approx(440 * 2 ** .25, rel=.01)
    assert loudest(augmentations.stretch(tone, RATE, 1.3)[:RATE]) == pytest.approx(440, rel=.01)


def test_the_pitches_of_a_tune_are_found_and_played_by_other_voices():
    wave = tune(3., 16000)
    spectrum = np.abs(signal.stft(wave, 16000, nperseg=2048, noverlap=2048 - 256)[2])
    found = resynthesis._pitches(spectrum, 16000 / 2048)
    loudest_in = found[:, [int((note + .3) * .5 * 16000 / 256) for note in range(6)]].argmax(0) + resynthesis.LOWEST
    assert loudest_in.tolist() == [60, 64, 67, 72, 60, 64]
    played = [resynthesis.resynthesise(wave, 16000, np.random.default_rng(seed)) for seed in range(3)]
    assert all(abs(np.corrcoef(one, wave)[0, 1]) < .9 for one in played)


def test_pieces_are_all_there_in_another_order():
    wave = np.repeat(np.arange(8.), 1000)
    found = augmentations.rearrange(wave, RATE, .125, np.random.default_rng(0))
    assert len(found) == len(wave) and not np.array_equal(found, wave)
    assert sorted(found[500::1000]) == list(range(8))


def test_single_effects():
    rng, wave = np.random.default_rng(0), tune()
    assert augmentations.saturate(wave, 0.) is wave
    assert np.abs(augmentations.saturate(wave, 1.)).max() < np.abs(wave).max()
    assert len(np.unique(augmentations.quantise(wave, 4))) <= 17
    steady = augmentations.equalise(np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE), RATE, rng)
    assert loudest(steady) == 500
    rung = augmentations.reverberate(np.where(np.arange(len(wave)) < 4000, wave, 0.), RATE, 1., .5, rng)
    assert level(rung[5000:6000]) > 0


def test_a_production_is_changed_whatever_the_type():
    assert change_production(tune().astype(np.float32), RATE, 3).dtype == np.float64
    assert change_production(list(tune(.2)), RATE, 3).shape == (1600,)


def test_crossed_songs_share_notes_along_rows_and_sound_along_columns():
    grid = crossed_songs('test', 2, 7)
    assert [(song.composition, song.production) for song in grid[:8]] == [*((0, p) for p in range(7)), (1, 0)]
    first, again = grid[0].render(1.), crossed_songs('test', 9, 9)[0].render(1.)
    np.testing.assert_array_equal(first, again)
    others = [grid[1].render(1.), grid[7].render(1.), crossed_songs('fit', 1, 1)[0].render(1.), grid[6].render(1.)]
    assert all(len(one) == 16000 and not np.allclose(one, first, atol=.05) for one in others)
