"""CLIP's byte-pair tokenizer under OpenAI's import path and token names."""

from __future__ import annotations

from typing import Any

import regex

from .open_clip_parts import load_part

START, END = "<|startoftext|>", "<|endoftext|>"


_Tokenizer: Any = load_part("tokenizer").SimpleTokenizer


class SimpleTokenizer(_Tokenizer):
    """open_clip's tokenizer, its two special tokens named as OpenAI's release names them.

    `encode(text)` gives token ids without the special tokens; `decode(ids)` the text;
    `encoder` and `decoder` map token text to id and back.
    """

    pat: Any

    def __init__(self) -> None:
        super().__init__()
        for theirs, ours in zip(("<start_of_text>", "<end_of_text>"), (START, END), strict=True):
            token_id = self.encoder.pop(theirs)
            self.encoder[ours] = token_id
            self.decoder[token_id] = ours
            del self.cache[theirs]
            self.cache[ours] = ours
            pattern = self.pat.pattern.replace(theirs, regex.escape(ours))
            self.pat = regex.compile(pattern, regex.IGNORECASE)
