import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from sera_core.errors import ConfigError
from sera_core.world import source
from sera_core.world.source import World
from sera_core.world.spec import FILLERS

SMALL = {"fresh": 40, "evaluation": 64, "validation": 32}
FEW_DEMOS = 50


@pytest.fixture(scope="module")
def data():
    return World().load(0)


def quick(seed=0, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "DEMOS", FEW_DEMOS)
        return World(**SMALL | options).load(seed)


@pytest.fixture(scope="module")
def by_noise():
    return {noise: quick(noise=noise).pairs for noise in (0.0, 0.1, 0.2, 0.4, 1.0)}


def asked(prompt):
    return frozenset([prompt.messages[0].content.removeprefix("qhi ")])


def test_sizes_and_names(data):
    assert data.name == "world"
    assert (len(data.pairs), len(data.validation), len(data.evaluation)) == (1536, 256, 512)
    assert {name: len(prompts) for name, prompts in data.prompts.items()} == {"fresh": 4608, "sft": 24576}
    assert {name: len(pairs) for name, pairs in data.probes.items()} == {"rho0": 768}
    assert set(data.prompts) == set(World.provides.prompts)


def test_sets_are_disjoint_and_ids_unique(data):
    sets = {
        "pairs": [pair.prompt for pair in data.pairs],
        "validation": [pair.prompt for pair in data.validation],
        "probe": [pair.prompt for pair in data.probes["rho0"]],
        "evaluation": data.evaluation,
        **data.prompts,
    }
    texts = {name: set().union(*map(asked, prompts)) for name, prompts in sets.items()}
    assert len(set().union(*texts.values())) == sum(map(len, texts.values()))
    ids = [prompt.id for prompts in sets.values() for prompt in prompts]
    assert len(ids) == len(set(ids))


def test_pairs_are_usable(data):
    for pair in (*data.pairs, *data.validation, *data.probes["rho0"]):
        assert pair.chosen
        assert pair.rejected
        assert pair.chosen != pair.rejected
        assert pair.id == pair.prompt.id
        assert pair.chosen_score is pair.rejected_score is None
        assert json.loads(json.dumps(pair.prompt.meta)) == pair.prompt.meta
    assert not any(pair.flipped for pair in (*data.validation, *data.probes["rho0"]))


def test_only_sft_prompts_carry_targets(data):
    assert all(prompt.target for prompt in data.prompts["sft"])
    assert all(prompt.target is None for prompt in (*data.prompts["fresh"], *data.evaluation))
    assert not any(prompt.messages[0].content.startswith("qhi") for prompt in data.evaluation)


def test_noise_swaps_and_keeps_everything_else(by_noise):
    clean = by_noise[0.0]
    assert not any(pair.flipped for pair in clean)
    assert all(pair.flipped for pair in by_noise[1.0])
    for pairs in by_noise.values():
        for pair, plain in zip(pairs, clean, strict=True):
            assert (pair.id, pair.prompt) == (plain.id, plain.prompt)
            both = (plain.chosen, plain.rejected)
            assert (pair.chosen, pair.rejected) == (both[::-1] if pair.flipped else both)


def test_flips_are_nested_and_at_their_rate(by_noise):
    flips = {noise: {pair.id for pair in pairs if pair.flipped} for noise, pairs in by_noise.items()}
    assert flips[0.1] < flips[0.2] < flips[0.4]
    for noise in (0.1, 0.2, 0.4):
        assert abs(len(flips[noise]) / 1536 - noise) < 0.03


def test_settings_of_a_seed_share_its_demonstrations():
    first, second = (quick(noise=noise).prompts["sft"] for noise in (0.0, 0.4))
    assert second is first
    assert quick(1).prompts["sft"] != first


def test_sizes_do_not_shift_each_other(data):
    small = quick(pairs=50, fresh=20, evaluation=10, validation=5)
    assert small.pairs == data.pairs[:50]
    assert small.validation == data.validation[:5]
    assert small.evaluation == data.evaluation[:10]
    assert small.prompts["fresh"] == data.prompts["fresh"][:20]
    assert small.probes == data.probes
    assert small.prompts["sft"] == data.prompts["sft"][:FEW_DEMOS]


def test_rho_changes_fillers_only(data):
    other = quick(rho=0.9, noise=0.0)
    assert other.probes == data.probes
    values = [
        {pair.prompt.messages: {strip(pair.chosen), strip(pair.rejected)} for pair in loaded.pairs}
        for loaded in (data, other)
    ]
    shared = values[0].keys() & values[1].keys()
    assert len(shared) > 1200
    assert np.mean([values[0][key] == values[1][key] for key in shared]) > 0.9


def strip(text):
    return " ".join(word for word in text.split() if word not in FILLERS)


def test_loading_twice_gives_the_same_and_seeds_differ(data):
    assert World().load(0) == data
    assert quick(1).pairs[:20] != data.pairs[:20]


def test_fingerprint_depends_on_seed_and_every_option():
    small = {"pairs": 20, "fresh": 20, "evaluation": 20, "validation": 20}
    changes = ({}, {"noise": 0.1}, {"rho": 0.1}, *({name: 21} for name in small))
    prints = [quick(**small | change).fingerprint for change in changes] + [quick(1, **small).fingerprint]
    assert len(set(prints)) == len(prints)
    assert quick(**small).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 1.5}, r"source.noise must lie between 0 and 1, got 1.5"),
        ({"noise": float("nan")}, r"source.noise must lie between 0 and 1, got nan"),
        ({"rho": -2.0}, r"source.rho must lie between -1 and 1, got -2.0"),
        ({"pairs": 0}, r"source.pairs must be at least 1, got 0"),
        ({"evaluation": 0}, r"source.evaluation must be at least 1, got 0"),
        ({"fresh": -1}, r"source.fresh must be at least 0, got -1"),
        ({"validation": -1}, r"source.validation must be at least 0, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        World(**options)


def test_is_a_frozen_component():
    world = World()
    with pytest.raises(dataclasses.FrozenInstanceError):
        world.noise = 0.1
    assert world.provides.gold
    assert world.provides.policy


def test_defaults_are_accepted_by_the_trainer(tmp_path):
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **World.defaults["training"])
    assert arguments.get_warmup_steps(24) == 3


def test_loading_needs_no_torch():
    code = (
        "import sys; from sera_core.world.source import World; from sera_core.world.gold import Gold; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
