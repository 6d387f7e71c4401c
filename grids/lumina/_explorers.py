"""What a grid's table shows: loss and what the fingerprints are worth, or what unlearning foretells and breaks."""

import treetable as tt
from dora import Explorer

CHANNELS = ('P', 'M')


class LuminaExplorer(Explorer):
    """Columns for training, validation and fingerprinting, of the latest epoch that has them.

    Of fingerprints, per channel: the rank of the projection; the spread of the cosines between songs; of what songs
    from outside of the catalogue score, how much alike any two are (1: the same ranking whatever is asked) and how far
    a few songs are everybody's neighbours (`hubs`, a skewness). They are figures of one checkpoint and warn of scores
    that tell nothing apart; whether scores are true is measured by `lumina validate lds`.
    """

    def get_grid_metrics(self):
        def channels(name, format):
            return [tt.leaf(f'{name}_{channel}', format) for channel in CHANNELS]

        return [
            tt.group('train', [tt.leaf('epoch'), tt.leaf('ce', '.3f'), tt.leaf('ppl', '.2f')], align='>'),
            tt.group('valid', [tt.leaf('ce', '.3f'), tt.leaf('ppl', '.2f'), tt.leaf('best_ppl', '.2f')], align='>'),
            tt.group('fingerprint', [tt.leaf('epoch'), tt.leaf('songs', '.0f'), *channels('rank', '.0f'),
                                     *channels('spread', '.3f'), *channels('alike', '.2f'), *channels('hubs', '.1f'),
                                     tt.leaf('seconds', '.1f')], align='>'),
        ]

    def process_history(self, history):
        latest = {'train': {}, 'valid': {}, 'fingerprint': {}}
        for epoch, metrics in enumerate(history, start=1):
            for stage in latest:
                if stage in metrics:
                    latest[stage] = {**metrics[stage], 'epoch': epoch}
            latest['train']['epoch'] = epoch
        perplexities = [metrics['valid']['ppl'] for metrics in history if 'ppl' in metrics.get('valid', {})]
        if perplexities:
            latest['valid']['best_ppl'] = min(perplexities)
        return latest


class UnlearningExplorer(Explorer):
    """Columns of a recipe of unlearning, one line each.

    `lds`: what scores foretell of retraining, mean over the queries of the first family; `even` and `odd`: over each
    half of them. Choose a recipe by the one and report the other, or the best of many is the luckiest. `linear`: the
    same of first-order scores. `R`: rank of a forgotten song itself, 1 at best. Fréchet distance of generations to the
    songs: `before`, mean over seeds of the untouched model, their `highest`, and `after` a song was forgotten.
    `length` of the way in parts of the weights' length, `lr`, and by how much the loss of what was forgotten rose.
    """

    def get_grid_metrics(self):
        return [
            tt.group('truth', [tt.leaf('lds', '.3f'), tt.leaf('even', '.3f'), tt.leaf('odd', '.3f'),
                               tt.leaf('linear', '.3f')], align='>'),
            tt.group('songs', [tt.leaf('R', '.2f')], align='>'),
            tt.group('frechet', [tt.leaf('before', '.3g'), tt.leaf('highest', '.3g'), tt.leaf('after', '.3g')],
                     align='>'),
            tt.group('step', [tt.leaf('length', '.2g'), tt.leaf('lr', '.2g'), tt.leaf('rise', '.2g'),
                              tt.leaf('seconds', '.1f')], align='>'),
        ]

    def process_history(self, history):
        found = {}
        for metrics in history:
            found.update(metrics.get('unlearn', {}))

        def group(**keys):
            return {column: found[key] for column, key in keys.items() if key in found}

        return {
            'truth': group(lds='lds', even='lds_choosing', odd='lds_reporting', linear='linear'),
            'songs': group(R='rank'),
            'frechet': group(before='frechet_before', highest='frechet_before_max', after='frechet'),
            'step': group(length='relative', lr='lr', rise='rise', seconds='seconds'),
        }
