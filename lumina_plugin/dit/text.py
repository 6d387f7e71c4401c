"""Texts as a diffusion transformer hears them: frozen T5 states, padded to one length, computed once per text."""

import typing as tp

import torch

Encoded = tp.Tuple[torch.Tensor, torch.Tensor]  # states [B, S, E] and which of them are of the text, [B, S]


class TextEncoder:
    """A frozen T5 encoder with its tokenizer, as `StableAudioPipeline` uses them.

    No text at all is a sequence of S masked places, which the transformer sees as zeros; so is what a pipeline's
    classifier-free guidance calls unconditional.

    Args:
        tokenizer: Of transformers; its `model_max_length` is S.
        encoder (T5EncoderModel): Kept in evaluation mode and frozen.
    """

    def __init__(self, tokenizer: tp.Any, encoder: tp.Any):
        self.tokenizer, self.encoder = tokenizer, encoder.eval().requires_grad_(False)
        self._known: tp.Dict[str, Encoded] = {}  # by text, [S, E] and [S]

    @property
    def dim(self) -> int:
        """Width E of a state."""
        return int(self.encoder.config.d_model)

    @property
    def length(self) -> int:
        """Tokens S of a padded text."""
        return int(self.tokenizer.model_max_length)

    @torch.no_grad()
    def __call__(self, texts: tp.Sequence[tp.Optional[str]]) -> Encoded:
        """States [B, S, E] of texts, on the encoder's device, and their mask [B, S]; longer texts are cut."""
        encoded = [self._one(text) for text in texts]
        return torch.stack([states for states, _ in encoded]), torch.stack([mask for _, mask in encoded])

    def _one(self, text: tp.Optional[str]) -> Encoded:
        key = text or ''
        if key not in self._known:
            device = next(self.encoder.parameters()).device
            if not key:
                self._known[key] = (torch.zeros(self.length, self.dim, device=device),
                                    torch.zeros(self.length, dtype=torch.bool, device=device))
            else:
                tokens = self.tokenizer([key], padding='max_length', max_length=self.length, truncation=True,
                                        return_tensors='pt').to(device)
                states = self.encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0][0].float()
                self._known[key] = states, tokens.attention_mask[0].bool()
        return self._known[key]


def small_text_encoder(dim: int = 32, length: int = 64, seed: int = 0) -> TextEncoder:
    """A T5 encoder of one layer with seeded random weights over the bytes of a text: needs no file and no download.

    It tells texts apart, and nothing more: what a word means, only the transformer can learn.
    """
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel
    tokenizer = ByT5Tokenizer(model_max_length=length)
    config = T5Config(vocab_size=384, d_model=dim, d_kv=dim // 2, d_ff=2 * dim, num_layers=1, num_heads=2,
                      dropout_rate=0.)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TextEncoder(tokenizer, T5EncoderModel(config))
