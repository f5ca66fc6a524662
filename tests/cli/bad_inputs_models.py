"""Models, tokenizers and chat templates that cannot be used."""

from unittest import mock

import bad_inputs_kit as kit

MODEL = {
    "missing folder": (kit.run("policy.model=./nowhere"), r"no model folder './nowhere'. Give a folder"),
    "typo in a built-in name": (kit.run("policy.model=smollm2-135"), r"'smollm2-135'. Did you mean 'smollm2-135m'"),
    "hub name offline": (
        kit.given(
            lambda: mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", new=True),
            kit.run("policy.model=nobody/nothing"),
        ),
        r"Model 'nobody/nothing' is neither a local folder.*Check the name and the connection",
    ),
    "no weights": (kit.model(kit.without("model.safetensors")), r"model holds no weights.*give a folder"),
    "corrupt weights": (
        kit.model(kit.with_bytes("model.safetensors", lambda content: b"garbage" * 100)),
        r"Cannot load a causal language model from .*model: .*Check that the folder was written completely",
    ),
    "truncated weights": (
        kit.model(kit.with_bytes("model.safetensors", lambda content: content[:-100])),
        r"Cannot load a causal language model from .*model: .*Check that the folder was written completely",
    ),
    "a layer missing": (
        kit.model(kit.with_weights(lambda name, tensor: None if "layers.1" in name else tensor)),
        r"lacks usable weights for 9 parameters.*layers.1.*the folder is incomplete",
    ),
    "weights of another shape": (
        kit.model(kit.with_json("config.json", hidden_size=32)),
        r"lacks usable weights for 21 parameters.*another architecture",
    ),
    "no configuration": (kit.model(kit.without("config.json")), r"Cannot read config.json in .*Give a folder"),
    "configuration broken": (
        kit.model(kit.with_bytes("config.json", lambda content: b"{")),
        r"config.json is not valid JSON.*write the model folder again",
    ),
    "unknown architecture": (
        kit.model(kit.with_json("config.json", model_type="llamma")),
        r"Cannot read config.json.*`llamma`.*Give a folder",
    ),
    "adapter alone": (
        kit.model(kit.adapter_of("base")),
        r"model holds an adapter without its model. Merge the adapter",
    ),
    "adapter without a base": (
        kit.model(kit.adapter_of(None)),
        r"adapter in .*model sits on '', which is not a local folder.*Merge the adapter",
    ),
    "not a causal language model": (
        kit.model(kit.with_json("config.json", model_type="t5", architectures=["T5Model"])),
        r"is of type 't5', which is no causal language model. Give one",
    ),
    "no tokenizer": (
        kit.model(kit.without("tokenizer.json", "tokenizer_config.json")),
        r"No tokenizer .* from .*model': its tokenizer files.*missing. Save the tokenizer beside",
    ),
    "tokenizer without an end": (
        kit.model(kit.with_json("tokenizer_config.json", eos_token=None)),
        r"tokenizer of .*model' has no eos token.*Set one",
    ),
    "vocabulary smaller than the ids": (
        kit.model(kit.small_vocabulary),
        r"Scoring with .*model .*token id \d+; the model knows ids 0 to 9. Tokenise with the tokenizer of this model",
    ),
    "weights not finite": (
        kit.model(kit.with_weights(lambda name, tensor: tensor * float("nan"))),
        r"Scoring with .*model the responses to .*response 0 is nan.*check the checkpoint",
    ),
    "context too short": (
        kit.model(kit.with_json("config.json", max_position_embeddings=32)),
        r"tokens.max_prompt_tokens = 32 .* make 48, but the model has 32 positions. Lower",
    ),
}

# How a template begins; it goes on inside the loop.
MESSAGES = "{% for message in messages %}{{ message['content'] }}"
TEMPLATE = {
    "missing": (
        kit.model(kit.without("chat_template.jinja")),
        r"model' has no chat template. Set `tokens.chat_template`",
    ),
    "not closed": (
        kit.template(MESSAGES),
        r"chat template of .*Unexpected end of template.*set `tokens.chat_template`",
    ),
    "raises": (
        kit.template("{{ raise_exception('only three turns') }}"),
        r"refused a conversation: only three turns. Role sequences given: user/assistant. Change the data",
    ),
    "reads what is not there": (
        kit.template(MESSAGES.replace("}}", "['text'] + 1 }}") + "{% endfor %}"),
        r"refused a conversation: 'str object' has no attribute 'text'.*set `tokens.chat_template`",
    ),
    "not appending": (
        kit.template("{{ messages|length }}" + MESSAGES + "{% endfor %}"),
        r"does not begin with the prompt alone.*Set `tokens.chat_template` to one that only appends",
    ),
    "two bos": (
        kit.template(MESSAGES.replace("{{ ", "{{ ' <user> <bos> <bos> ' + ") + "{{ ' <eos>' }}{% endfor %}"),
        r"writes two BOS tokens in a row.*Set `tokens.chat_template`",
    ),
    "file missing": (
        kit.run("tokens.chat_template=./x.jinja"),
        r"'./x.jinja', which is neither.*Give the template itself",
    ),
    "file not text": (
        kit.run(lambda place: "tokens.chat_template=" + place.file("t.jinja", b"\xe9")),
        r"tokens.chat_template: .*t.jinja cannot be read as UTF-8",
    ),
}
