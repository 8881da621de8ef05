"""Mistakes with adapters, with a server and its keys, and with the disk."""

import errno

from tests.mistakes.mistake import Asked, Mistake

_TURN = [{"role": "user", "content": "abc"}]

ADAPTERS = (
    Mistake("An adapter's name is misspelt", "Did you mean 'support'?", "adapters show suport"),
    Mistake(
        "The directory holds no adapter",
        "Name a run, or an adapter's directory",
        "adapters add data --store adapters",
        {"data/x.txt": ""},
    ),
    Mistake(
        "The adapter is a pickle",
        "convert",
        "adapters add pickled",
        {
            "pickled/adapter_config.json": '{"peft_type": "LORA"}',
            "pickled/adapter_model.bin": b"PK\x03\x04",
        },
    ),
    Mistake(
        "The adapter's file is named",
        "an adapter is a directory",
        "adapters add other/adapter_model.safetensors",
    ),
    Mistake(
        "The adapter's options aren't JSON",
        "expected a JSON object",
        "adapters add broken --base base",
        {"broken/adapter_config.json": "{", "broken/adapter_model.safetensors": b"\2" + b"\0" * 7 + b"{}"},
    ),
    Mistake(
        "A checkpoint of HF PEFT is added alone",
        "Pass --base",
        "adapters add peft",
        {
            "peft/adapter_config.json": '{"peft_type": "LORA"}',
            "peft/adapter_model.safetensors": b"\2" + b"\0" * 7 + b"{}",
        },
    ),
    Mistake(
        "A name has a space in it", "expected up to 100 letters", "adapters add other --name 'my adapter'"
    ),
    Mistake("A name belongs to another adapter", "--move", "adapters add other --name support"),
    Mistake(
        "The adapter was trained on another base",
        "Load the base that it was trained on",
        "generate abc --adapter runs/done --base base2 ",
    ),
    Mistake("An adapter's file is cut off", "again", "adapters verify damaged"),
    Mistake(
        "`generate` names a run that isn't there",
        "there is no such directory",
        "generate abc --adapter runs/dnoe",
    ),
    Mistake("`generate` names no adapter", "name a run, or an adapter by its directory", "generate abc"),
    Mistake(
        "The prompt's field is missing", "needs the field", "generate --adapter runs/done --field txt=abc"
    ),
    Mistake(
        "A run that isn't complete is evaluated",
        "Finish it with `manytune train RECIPE --resume`",
        "evaluate runs/begun",
    ),
    Mistake(
        "An export's target exists",
        "Remove it, or write somewhere else",
        "adapters export support --to peft --output other",
    ),
)

EVALUATION = (
    Mistake("The recipe is evaluated, not its run", "runs/recipe", "evaluate recipe.yaml"),
    Mistake(
        "The report's directory isn't there",
        "Make it, or write somewhere else",
        "evaluate runs/done --report reports/done.html",
    ),
    Mistake("`--report` names a directory", "Name a file in it", "evaluate runs/done --report runs"),
    Mistake("`--report` names a device", "Name a file", "evaluate runs/done --report /dev/null"),
    Mistake(
        "The file of answers is misspelt",
        "did you mean 'answers.jsonl'?",
        "evaluate --answers answer.jsonl",
        {"answers.jsonl": '{"answer": "a"}\n'},
    ),
    Mistake(
        "Nothing answers at `--endpoint`",
        "Check the address and that the server runs",
        "evaluate --endpoint http://127.0.0.1:9/v1 --model m --retries 0 --concurrency 1 --data train.csv "
        "--prompt '{{ question }}' --completion '{{ answer }}'",
    ),
    Mistake("The run has no test rows", "give them with --data", "evaluate runs/done"),
)

PLANS = (
    Mistake("A training's recipe is planned", "Plan its base", "plan recipe.yaml"),
    Mistake(
        "The plan is misspelt", "did you mean 'plan.yaml'?", "plan pland.yaml", {"plan.yaml": "model: base"}
    ),
    Mistake("An adapter is planned for", "Name its base", "plan other"),
    Mistake("The device has a longer name", "did you mean 'h200-sxm'?", "plan base --hardware h200"),
)

SERVER = (
    Mistake("The port is in use", "give another --port", "serve --base base --port {port}"),
    Mistake(
        "The host has a port in it",
        "The port is given with --port",
        "serve --base base --host 127.0.0.1:8000",
    ),
    Mistake("An option begins with a dash", "two hyphens: --", "train recipe.yaml \N{EN DASH}resume"),
    Mistake("An option is misspelt", "Possible options: --host, --log-prompts, --port", "serve --prot 80"),
    Mistake("vLLM isn't installed", "pip install vllm", "serve --engine vllm --base base --vllm absent"),
    Mistake(
        "Others can reach the server, and it has no keys",
        "Give --keys",
        "serve --base base --host 0.0.0.0 --port 0",
    ),
    Mistake(
        "The directory of adapters holds something else",
        "store",
        "serve --base base --port 0 --adapters data",
        {"data/x.txt": ""},
    ),
)

REQUESTS = (
    Asked("A request without a key", "Authorization: Bearer", {"model": "base", "messages": _TURN}, key=None),
    Asked("A request with a wrong key", "key", {"model": "base", "messages": _TURN}, key="secrte"),
    Asked("The model is misspelt", "GET /v1/models lists them", {"model": "bsae", "messages": _TURN}),
    Asked(
        "The prompt is longer than the base reads",
        "shorten the prompt",
        {"model": "base", "messages": [{"role": "user", "content": "a" * 200}]},
    ),
    Asked(
        "More tokens are asked for than the server gives",
        "at most",
        {"model": "base", "messages": _TURN, "max_tokens": 5000},
    ),
    Asked("An ordinary key asks for what an admin may", "admin", None),
)

KEYS = (
    Mistake(
        "The file of keys isn't there", "manytune keys add", "serve --base base --port 0 --keys keys.json"
    ),
    Mistake("A directory is given for keys", "name the file", "keys list --file runs"),
    Mistake("The file of keys isn't JSON", "manytune keys add", "keys list", {"keys.json": "secret\n"}),
    Mistake(
        "The file has a key itself instead of its hash",
        "sha256",
        "keys list",
        {"keys.json": '{"keys": [{"name": "a", "key": "secret"}]}'},
    ),
    Mistake(
        "A key's name is taken",
        "Choose another name",
        "keys add mine",
        {"keys.json": '{"keys": [{"name": "mine", "sha256": "' + "0" * 64 + '"}]}'},
    ),
    Mistake(
        "A key that isn't there is revoked",
        "There are: mine",
        "keys revoke yours",
        {"keys.json": '{"keys": [{"name": "mine", "sha256": "' + "0" * 64 + '"}]}'},
    ),
    Mistake("A key has no name", "expected a text that isn't empty", "keys add ''"),
    Mistake(
        "The directory for the keys isn't there",
        "Make it, or write somewhere else",
        "keys add mine --file secrets/keys.json",
    ),
    Mistake("A device is given for keys", "Name a file", "keys add mine --file /dev/full"),
    Mistake(
        "The key in the environment is blank",
        "set it to a key, or unset it",
        "serve --base base --port 0",
        environment={"MANYTUNE_API_KEY": " "},
    ),
)

DISK = (
    Mistake("The disk is full while a run is written", "Free some", disk=errno.ENOSPC),
    Mistake(
        "The disk is full while an adapter is added", "Free some", "adapters add other", disk=errno.ENOSPC
    ),
    Mistake("The output directory may not be written", "Get access to it", disk=errno.EACCES),
    Mistake(
        "The store is on a read-only disk",
        "Write somewhere else",
        "adapters add other --store new",
        disk=errno.EROFS,
    ),
    Mistake("The output's name is a file's", "Set output to another one", files={"runs/recipe": ""}),
    Mistake("`init` would overwrite a recipe", "Remove it, or write somewhere else", "init train.csv"),
)
