"""What a grid's table shows: loss and what the fingerprints are worth, beside each other."""

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
