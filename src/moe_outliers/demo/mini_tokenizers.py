"""Trains the tokenizers of the miniatures on the bundled text, of the kinds that are in use."""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moe_outliers import texts


@cache
def make(name: str) -> Tokenizer:
    """Make a tokenizer: `bytes-N` is a byte-level BPE, `sentencepiece-N` one with byte fallback."""
    kind, size = name.split("-")
    return {"bytes": _bytes, "sentencepiece": _sentencepiece}[kind](int(size))


def _bytes(size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, size, pre_tokenizers.ByteLevel.alphabet(), [])
    return tokenizer


def _sentencepiece(size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+|▁"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _train(tokenizer, size, [], ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    return tokenizer


def _train(tokenizer: Tokenizer, size: int, alphabet: list[str], special: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([texts.read_bundled()], trainer)
