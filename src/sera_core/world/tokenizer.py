"""The world's tokenizer: one token per word, an ordinary fast tokenizer with a chat template."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from sera_core.world.spec import BOS, EOS, PAD, SEP, VOCABULARY

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    f"{{{{- '{BOS} ' + message['content'] + ' {SEP}' -}}}}"
    "{%- elif message['role'] == 'assistant' -%}"
    f"{{{{- ' ' + message['content'] + ' {EOS}' -}}}}"
    "{%- else -%}"
    "{{- raise_exception('the world knows user and assistant turns only, got role ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """75 words split at white space; adds no special token by itself. The quality word is an ordinary word.

    A user turn renders as ``<bos> content <sep>``, an assistant turn as `` content <eos>``.
    """
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(VOCABULARY)}))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        sep_token=SEP,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
