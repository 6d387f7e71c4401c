"""Scores that look at no model."""

import numpy as np
import pytest
import torch

from lumina_plugin.codec import load_codec
from lumina_plugin.validation.black_boxes import BLACK_BOX, CodeHistogram, MelStatistics
from lumina_plugin.validation.queries import Query


def test_histograms_count_codes():
    codes = {'a': [0, 0, 1], 'b': [2, 2, 2]}
    songs = [Query(name, 'songs', torch.tensor([row]), 0, name) for name, row in codes.items()]
    scores = CodeHistogram(songs, 4).scores([Query('q', 'continued', torch.tensor([[2, 0, 0]]), 1)], masked=True)
    np.testing.assert_allclose(scores[BLACK_BOX], [[2 / 5 ** .5, 0.]])


@pytest.fixture(scope='module')
def codec():
    return load_codec('tiny')


def tone(codec, hertz, name='q', seconds=2.):
    """A tone as codes; of several pitches, one after the other, the first is the prompt."""
    time = torch.arange(int(seconds * 16000)) / 16000
    wave = torch.cat([0.4 * torch.sin(2 * torch.pi * pitch * time) for pitch in hertz])
    with torch.no_grad():
        codes = codec.encode(wave[None, None])[0][0]
    return Query(name, 'songs', codes, codes.shape[-1] // len(hertz) if len(hertz) > 1 else 0, name)


def test_mel_statistics_find_the_song_that_sounds_alike(codec):
    songs = [tone(codec, [hertz], f'{hertz}') for hertz in (110, 330, 990, 2970)]
    method = MelStatistics(songs, codec)
    both = tone(codec, [110, 990])
    masked, whole = (method.scores([both], mask)[BLACK_BOX][0] for mask in (True, False))
    assert masked.argmax() == 2 and whole[0] > masked[0]  # the prompt counts again
    itself = method.scores(songs, masked=False)[BLACK_BOX]
    np.testing.assert_allclose(np.diag(itself), 1.)
    assert (np.abs(itself) <= 1 + 1e-9).all() and method.cost().bytes_per_song == 512
