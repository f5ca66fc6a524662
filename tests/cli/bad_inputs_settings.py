"""Configurations that must be refused before anything is computed."""

from unittest import mock

import bad_inputs_kit as kit

CONFIG = {
    "unknown preset": (kit.preset("sera-dop"), r"'sera-dop'.*Did you mean 'sera-dpo'"),
    "missing file": (kit.preset("./nowhere.yaml"), r"No configuration file './nowhere.yaml'.*Known: "),
    "not yaml": (kit.config("a: [1\nb: 2\n"), r"mine.yaml is not valid YAML.*line 2, column 2"),
    "not text": (kit.config(b"name: caf\xe9\n"), r"mine.yaml is not UTF-8.*Save it as UTF-8"),
    "not a mapping": (kit.config("- 1\n"), r"mine.yaml must hold a mapping.*such as.*got list"),
    "empty file": (kit.config(""), r"mine.yaml must hold a mapping.*such as.*got nothing"),
    "key given twice": (
        kit.config("seed: 1\nseed: 2\n"),
        r"mine.yaml.*the key 'seed' is given twice; keep one.*line 2",
    ),
    "extends a circle": (kit.circle, r"'extends' runs in a circle: .*mine.yaml -> .*other.yaml.*Remove one"),
    "extends a stranger": (kit.config("extends: dop\n"), r"'dop'.*Did you mean 'dpo'"),
    "extends a list": (kit.config("extends: [dpo]\n"), r"'extends' must be one preset's name.*got \['dpo'\]"),
    "unknown section": (kit.dpo("trainig.learning_rate=1"), r"Unknown key 'trainig'.*Did you mean 'training'"),
    "unknown key": (kit.dpo("loop.iteratons=2"), r"'iteratons' in loop. Did you mean 'iterations'"),
    "unknown lora key": (kit.dpo("policy.lora={rank: 8}"), r"Unknown key 'rank' in policy.lora.*Known: .*\br\b"),
    "text for a number": (kit.dpo("loop.iterations=many"), r"loop.iterations = 'many': must be a whole number"),
    "number for a section": (kit.dpo("loop=3"), r"loop = 3: must be a mapping"),
    "number out of range": (kit.dpo("seed=-1"), r"seed = -1: must be greater than or equal to 0"),
    "bad name": (kit.dpo("name=a/b"), r"name = 'a/b': must be letters"),
    "unknown source": (kit.dpo("source=wrld"), r"Unknown source 'wrld'. Did you mean 'world'"),
    "unknown scorer": (kit.dpo("offline.scorer=lenght"), r"Unknown scorer 'lenght'. Did you mean 'length'"),
    "unknown selector": (kit.dpo("offline.selector=topp"), r"Unknown selector 'topp'. Did you mean 'top'"),
    "unknown labeler": (kit.dpo("generated.labeler=best_wors"), r"labeler 'best_wors'. Did you mean 'best_worst'"),
    "unknown generator": (kit.dpo("generated.generator=vlm"), r"Unknown generator 'vlm'.*Known: transformers"),
    "unknown objective": (kit.dpo("objective.loss=dop"), r"Unknown objective 'dop'. Did you mean 'dpo'"),
    "unknown transform": (kit.dpo("objective.transforms=[x]"), r"Unknown transform 'x'.*Known: "),
    "unknown smoother": (kit.dpo("objective.smoother=constnt"), r"smoother 'constnt'. Did you mean 'constant'"),
    "unknown reweighter": (kit.dpo("objective.reweighter=unifrm"), r"reweighter 'unifrm'. Did you mean 'uniform'"),
    "unknown judge": (kit.dpo("evaluation.judge=god"), r"Unknown judge 'god'. Did you mean 'gold'"),
    "unknown option": (kit.dpo("objective.loss.bta=1"), r"objective 'dpo' has no option 'bta'. Did you mean 'beta'"),
    "option out of range": (kit.dpo("objective.loss.beta=-1"), r"option beta must be .*> 0.*got -1.*Change beta"),
    "option of the wrong type": (kit.dpo("objective.loss.beta=a"), r"objective 'dpo': beta = 'a': must be a number"),
    "override without a value": (kit.dpo("seed"), r"Override 'seed' is not of the form key.path=value, such as"),
    "override without a key": (kit.dpo("training.=1"), r"Override 'training.=1' is not of the form key.path=value"),
    "override not yaml": (kit.dpo("seed=[1"), r"Override 'seed=\[1'.*not valid YAML.*Quote"),
    "override inside a number": (kit.dpo("seed=1", "seed.x=2"), r"'x' is inside 1, which has no settings"),
    "schedule misplaced": (
        kit.dpo("seed={by_iteration: [1]}"),
        r"by_iteration is not possible in 'seed'. It may stand in",
    ),
    "schedule empty": (
        kit.dpo("objective.loss.beta={by_iteration: []}"),
        r"by_iteration must.*hold a list with an entry",
    ),
    "schedule too long": (
        kit.dpo("objective.loss.beta={by_iteration: [1, 2]}"),
        r"objective.loss.beta: by_iteration has 2 entries for loop.iterations = 1.*Shorten",
    ),
    "scorer unused": (kit.dpo("offline.scorer=length"), r"offline.scorer is set.*would be ignored. Remove it"),
    "reference unused": (kit.preset("orpo", "loop.reference=initial"), r"loop.reference is set.*'orpo'.*Remove it"),
    "patience too long": (
        kit.dpo("loop.stop={patience: 3}"),
        r"loop.stop.patience = 3 can never act.*Lower the patience",
    ),
    "generation too late": (
        kit.preset("iterative-dpo", "generated.from_iteration=9"),
        r"generated.from_iteration = 9 lies beyond loop.iterations = 3: nothing would ever be generated",
    ),
    "irm before training": (
        kit.preset("sera-dpo", "offline.select_from=1"),
        r"trained iterates.*Set offline.select_from=2",
    ),
    "plugin not installed": (kit.plugins(""), r"scorer 'irm'.*sera-plugin-irm: pip install sera-plugin-irm"),
    "plugin list wrong": (
        kit.plugins("imr"),
        r"SERA_PLUGINS names plugin 'imr', which is not installed.*Did you mean 'irm'",
    ),
    "no policy": (kit.dpo("source=./pairs.jsonl"), r"policy.model is 'auto'.*Set policy.model to"),
    "judge without gold": (kit.run("evaluation.judge=gold"), r"evaluation.judge needs gold.*evaluation.judge=null"),
    "training typo": (
        kit.dpo("training.learning_rat=1"),
        r"training.learning_rat is unknown. Did you mean 'learning_rate'",
    ),
    "training owned": (kit.dpo("training.output_dir=x"), r"training.output_dir cannot be set: .*Remove it"),
    "learning rate zero": (kit.dpo("training.learning_rate=0"), r"learning_rate is 0: nothing.*Give a positive number"),
    "learning rate text": (kit.dpo("training.learning_rate=fast"), r"learning_rate must be a number, got 'fast'"),
    "negative batch": (
        kit.dpo("training.per_device_train_batch_size=-1"),
        r"per_device_train_batch_size must be at least 1, got -1",
    ),
    "negative clipping": (kit.dpo("training.max_grad_norm=-1"), r"max_grad_norm must be at least 0, got -1"),
    "adam beyond one": (kit.dpo("training.adam_beta2=2"), r"adam_beta2 must be at least 0 and below 1, got 2"),
    "scheduler typo": (
        kit.dpo("training.lr_scheduler_type=cosin"),
        r"lr_scheduler_type.*'cosin'. Did you mean 'cosine'",
    ),
    "optimiser typo": (
        kit.dpo("training.optim=adam_torch"),
        r"training.optim.*'adam_torch'. Did you mean 'adamw_torch'",
    ),
    "tracker not installed": (
        kit.given(
            lambda: mock.patch("sera_core.train.arguments.get_available_reporting_integrations", list),
            kit.dpo("training.report_to=wandb"),
        ),
        r"report_to is wandb, whose package is not installed. Install it",
    ),
    "tracker typo": (kit.dpo("training.report_to=wandbb"), r"report_to has no value 'wandbb'. Did you mean 'wandb'"),
    "two precisions": (
        kit.dpo("training.fp16=true", "training.bf16=true"),
        r"training fields: At most one of fp16 and bf16.*Change",
    ),
    "bad dtype": (
        kit.dpo("policy.dtype=float8"),
        r"policy.dtype = 'float8': must be 'float32', 'bfloat16' or 'float16'",
    ),
    "bad attention": (
        kit.run("policy.attn_implementation=flsh"),
        r"attn_implementation 'flsh' cannot.*Choose sdpa or eager",
    ),
    "lora without modules": (
        kit.dpo("policy.lora={target_modules: []}"),
        r"target_modules = \[\]: must be .*all-linear",
    ),
    "lora modules unknown": (kit.run("policy.lora={target_modules: [qproj]}"), r"'qproj'.*Did you mean 'q_proj'"),
    "lora without peft": (
        kit.missing_package("peft", kit.dpo("policy.lora={r: 2}")),
        r"policy.lora needs the package peft: pip install 'sera-core\[peft\]'",
    ),
    "revision of a folder": (kit.run("policy.revision=main"), r"revision 'main'.*not from the hub. Remove"),
}
