"""Mistakes in recipes."""

from tests.mistakes.mistake import Mistake

RECIPES = (
    Mistake("The recipe's name is misspelt", "did you mean 'recipe.yaml'?", "train recpie.yaml"),
    Mistake("There is no recipe yet", "`manytune init FILE` writes a recipe", "train config/first.yaml"),
    Mistake(
        "A template isn't in quotes",
        "is put in quotes",
        recipe={'prompt: "{{ question }}"': "prompt: {{ question }}"},
    ),
    Mistake(
        "A prompt with a colon isn't in quotes",
        "put a value with a colon and a space in it in quotes",
        recipe={'prompt: "{{ question }}"': "prompt: Question: {{ question }}"},
    ),
    Mistake("A line is indented with a tab", "indent with spaces", recipe={"  train:": "\ttrain:"}),
    Mistake(
        "A key has the name that transformers gives it",
        "'lr' is training.learning_rate here",
        recipe={"max_steps: 1": "max_steps: 1\n  lr: 1e-4"},
    ),
    Mistake(
        "A method's option has axolotl's name",
        "'lora_r' is method.r here",
        recipe={"training:": "method: {name: lora, lora_r: 16}\ntraining:"},
    ),
    Mistake("A key is misspelt", "did you mean 'epochs'?", recipe={"max_steps: 1": "epoch: 3"}),
    Mistake("A number is written as a word", "expected a number", recipe={"max_steps: 1": "epochs: three"}),
    Mistake(
        "A number is out of range", "greater than or equal to 1", recipe={"max_steps: 1": "batch_size: 0"}
    ),
    Mistake("A number is in quotes", "without quotes", recipe={"max_steps: 1": 'learning_rate: "1e-4"'}),
    Mistake("A minus is a dash", "write 1e-4", recipe={"max_steps: 1": "learning_rate: 1e\u22124"}),
    Mistake("A number isn't finite", "finite", recipe={"max_steps: 1": "learning_rate: .inf"}),
    Mistake(
        "A key is in the wrong place",
        "is training.epochs here",
        recipe={"base: base": "base: base\nepochs: 3"},
    ),
    Mistake(
        "A space was copied from a web page", "write a space instead", recipe={"  train:": "\u00a0 train:"}
    ),
    Mistake(
        "There are two recipes in one file",
        "leave out the line ---",
        recipe={"base: base": "base: base\n---\nbase: base"},
    ),
    Mistake("A table is given as the recipe", "`manytune init train.csv`", "train train.csv"),
    Mistake(
        "The method is a word alone",
        "write it as {name: lora}",
        recipe={"training:": "method: lora\ntraining:"},
    ),
    Mistake(
        "A soft prompt's length is missing",
        "num_virtual_tokens should be a positive integer",
        recipe={"training:": "method: {name: prefix-tuning}\ntraining:"},
    ),
    Mistake(
        "An optimizer's option has another form",
        "expected a list of 2 numbers",
        recipe={"max_steps: 1": "max_steps: 1\n  optimizer_options: {betas: 0.9}"},
    ),
    Mistake(
        "`target_modules` is no expression",
        "Several names are written as a list",
        recipe={"training:": 'method: {name: lora, target_modules: "*q_proj"}\ntraining:'},
    ),
    Mistake(
        "The scaling is 0",
        "nothing would be learned",
        recipe={"training:": "method: {name: lora, lora_alpha: 0}\ntraining:"},
    ),
    Mistake(
        "There are more virtual tokens than the base reads",
        "Lower method.num_virtual_tokens",
        recipe={"training:": "method: {name: prefix-tuning, num_virtual_tokens: 500}\ntraining:"},
    ),
    Mistake(
        "The base has no tokenizer",
        "Save it there, too",
        files={"bare/config.json": '{"model_type": "llama"}'},
        recipe={"base: base": "base: bare"},
    ),
    Mistake(
        "The output's name is too long",
        "Set output to another one",
        recipe={"base: base": f"base: base\noutput: runs/{'x' * 300}"},
    ),
    Mistake(
        "A key is given twice",
        "keep one of the two",
        recipe={"max_steps: 1": "max_steps: 1\n  max_steps: 2"},
    ),
    Mistake("`data.train` is missing", "this key is missing", recipe={"  train: train.csv\n": ""}),
    Mistake(
        "There is a prompt and no completion",
        "prompt and completion go together",
        recipe={'  completion: "{{ answer }}"\n': ""},
    ),
    Mistake(
        "The method is misspelt",
        "Did you mean 'lora'?",
        recipe={"training:": "method: {name: lorra}\ntraining:"},
    ),
    Mistake(
        "A kind of LoRA is given as the method",
        "use_dora: true",
        recipe={"training:": "method: {name: dora}\ntraining:"},
    ),
    Mistake(
        "`target_modules` match nothing",
        "Did you mean",
        recipe={"training:": "method: {name: lora, target_modules: [query_proj]}\ntraining:"},
    ),
    Mistake("The base is misspelt", "Check the spelling", recipe={"base: base": "base: bsae"}),
    Mistake(
        "The base is an adapter",
        "A base directory has a config.json",
        recipe={"base: base": "base: runs/done/adapter"},
    ),
    Mistake(
        "A GPU is asked for, and there is none", 'Use "auto" or "cpu"', recipe={"device: cpu": "device: cuda"}
    ),
    Mistake(
        "`--set` without a value",
        "expected section.key=value",
        "train recipe.yaml --set training.epochs",
    ),
    Mistake(
        "The output directory has a run already",
        "Continue it with --resume, replace it with --overwrite",
        recipe={"base: base": "base: base\noutput: runs/done"},
    ),
    Mistake(
        "A rank is far too large",
        "would fit",
        recipe={"training:": "method: {name: lora, r: 100000000}\ntraining:"},
    ),
    Mistake(
        "Several names are one text",
        "written as a list",
        recipe={"training:": "method: {name: lora, target_modules: 'q_proj, v_proj'}\ntraining:"},
    ),
    Mistake(
        "A template is in typographic quotes",
        "write straight ones",
        recipe={'prompt: "{{ question }}"': "prompt: “{{ question }}”"},
    ),
    Mistake(
        "A typographic quote closes a straight one",
        "write straight ones",
        recipe={'prompt: "{{ question }}"': 'prompt: "{{ question }}”'},
    ),
    Mistake(
        "A space that can't be seen was copied with a value",
        "remove it",
        recipe={"device: cpu": "device: cpu\u00a0"},
    ),
    Mistake(
        "A name is one of YAML's words for true and false",
        "put the word in quotes",
        recipe={"base: base": "base: base\noutput: on"},
    ),
    Mistake(
        "A template is a list",
        "without brackets and dashes",
        recipe={'prompt: "{{ question }}"': 'prompt: ["{{ question }}"]'},
    ),
    Mistake(
        "A list begins next to its key",
        "in the line below its key",
        recipe={"train: train.csv": "train: - train.csv"},
    ),
    Mistake(
        "A path of Windows is in double quotes",
        "use single quotes, or /",
        recipe={"train: train.csv": 'train: "C:\\data\\train.csv"'},
    ),
    Mistake("Thousands have a comma", "without separators", recipe={"max_steps: 1": "max_steps: 1,000"}),
    Mistake("A share is in per cent", "write a share", recipe={"max_steps: 1": "warmup: 3%"}),
    Mistake("A key is given as an option", "is given with --set", "train recipe.yaml --epochs 3"),
    Mistake(
        "`--set` has a space for the equals sign",
        "write --set as",
        "train recipe.yaml --set training.epochs 3",
    ),
    Mistake("There is nothing to resume", "Leave --resume out", "train recipe.yaml --resume"),
)
