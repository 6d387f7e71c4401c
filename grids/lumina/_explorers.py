"""What a grid's table shows: loss and the fingerprinting pass beside each other."""

import treetable as tt
from dora import Explorer


class LuminaExplorer(Explorer):
    """Columns for training, validation and fingerprinting."""

    def get_grid_metrics(self):
        return [
            tt.group('train', [tt.leaf('epoch'), tt.leaf('ce', '.3f'), tt.leaf('ppl', '.2f')], align='>'),
            tt.group('valid', [tt.leaf('ce', '.3f'), tt.leaf('ppl', '.2f')], align='>'),
            tt.group('fingerprint', [tt.leaf('songs', '.0f'), tt.leaf('rank_P', '.0f'), tt.leaf('rank_M', '.0f'),
                                     tt.leaf('seconds', '.1f')], align='>'),
        ]

    def process_history(self, history):
        latest = {'train': {}, 'valid': {}, 'fingerprint': {}}
        for epoch, metrics in enumerate(history, start=1):
            for stage in latest:
                if stage in metrics:
                    latest[stage] = metrics[stage]
            latest['train'] = {**latest['train'], 'epoch': epoch}
        return latest
