"""Adapters that somebody has damaged or means harm with, and an independent rule for those that do none."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import pickletools
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from tests.store.tiny import tiny_model

CONFIG, TENSORS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
Mutation = Callable[[random.Random, Path], None]


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return (Path.touch, (self.sign,))


# -- bytes


def one_of(draw: random.Random, directory: Path) -> Path:
    return draw.choice([file for name in (CONFIG, TENSORS, MANIFEST) if (file := directory / name).is_file()])


def cut_off(draw: random.Random, directory: Path) -> None:
    file = one_of(draw, directory)
    os.truncate(file, draw.randrange(file.stat().st_size))


def bits_flipped(draw: random.Random, directory: Path) -> None:
    file = one_of(draw, directory)
    content = bytearray(file.read_bytes())
    for _ in range(draw.choice([1, 1, 2, 8])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def too_large(draw: random.Random, directory: Path) -> None:
    file = one_of(draw, directory)
    os.truncate(file, file.stat().st_size + draw.choice([1, 100, 1 << 34]))


def other_bytes(draw: random.Random, directory: Path) -> None:
    one_of(draw, directory).write_bytes(draw.randbytes(draw.choice([0, 1, 8, 9, 100, 3000])))


# -- files


def pickle_renamed(draw: random.Random, directory: Path) -> None:
    name = draw.choice([TENSORS, TENSORS, CONFIG, "adapter_model.bin", "README.md", "more.safetensors"])
    bomb = Bomb(directory.parent / "executed")
    if draw.random() < 0.5:
        (directory / name).write_bytes(pickle.dumps(bomb, protocol=draw.randint(2, 5)))
    else:
        (directory / name).unlink(missing_ok=True)
        with zipfile.ZipFile(directory / name, "w") as archive:  # as torch.save does
            archive.writestr("archive/data.pkl", pickle.dumps(bomb, protocol=2))


def symbolic_link(draw: random.Random, directory: Path) -> None:
    name = draw.choice([CONFIG, TENSORS, MANIFEST, "more", "README.md"])
    kept = directory.parent / "elsewhere" / f"{draw.getrandbits(60):x}"
    kept.parent.mkdir(exist_ok=True)
    if (directory / name).exists():
        (directory / name).rename(kept)
    target = draw.choice([kept, kept, Path("/etc/passwd"), Path("/dev/zero"), directory, Path("..")])
    (directory / name).symlink_to(target)


def no_plain_file(draw: random.Random, directory: Path) -> None:
    file = directory / draw.choice([CONFIG, TENSORS, MANIFEST, "more"])
    file.unlink(missing_ok=True)
    draw.choice([os.mkfifo, os.mkdir])(file)


def missing(draw: random.Random, directory: Path) -> None:
    one_of(draw, directory).unlink()


# -- tensors


def rewrite(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    (directory / TENSORS).unlink()
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, directory / TENSORS)


def not_finite(draw: random.Random, directory: Path) -> None:
    tensors = load_file(directory / TENSORS)
    tensor = tensors[draw.choice(sorted(tensors))]
    tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice([math.nan, math.inf, -math.inf])
    rewrite(directory, tensors)


def wrong_shape(draw: random.Random, directory: Path) -> None:
    tensors = load_file(directory / TENSORS)
    chosen = sorted(tensors) if draw.random() < 0.3 else [draw.choice(sorted(tensors))]
    dimension, change = draw.randrange(2), draw.randrange(5)
    for name in chosen:
        tensor = tensors[name]
        tensors[name] = [
            lambda t: torch.cat([t, t], dimension % t.dim()),
            lambda t: t[:1] if t.shape[0] > 1 else t[:, :1],
            lambda t: t.flatten(),
            lambda t: t[None],
            lambda t: t.t() if t.dim() == 2 else t[:0],
        ][change](tensor)
    rewrite(directory, tensors)


def wrong_dtype(draw: random.Random, directory: Path) -> None:
    tensors = load_file(directory / TENSORS)
    kind = draw.choice([torch.int8, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])
    chosen = sorted(tensors) if draw.random() < 0.3 else [draw.choice(sorted(tensors))]
    rewrite(directory, tensors | {name: tensors[name].to(kind) for name in chosen})


def other_tensors(draw: random.Random, directory: Path) -> None:
    tensors = load_file(directory / TENSORS)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    new = draw.choice(
        [
            "../../x",
            "",
            "base_model.model.lm_head.weight",
            name.replace("layers.1", "layers.9") + "x",
            "a" * 5000,
        ]
    )
    if draw.random() < 0.6:
        del tensors[name]
    if draw.random() < 0.6 or len(tensors) == 0:
        tensors[new] = tensor
    if name in tensors and new not in tensors:
        del tensors[name]
    rewrite(directory, tensors)


def other_header(draw: random.Random, directory: Path) -> None:
    content = (directory / TENSORS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    start, end = entry["data_offsets"]
    changes: list[Any] = [
        {"data_offsets": [start - 8, end - 8]},
        {"data_offsets": [start, end + 4]},
        {"data_offsets": [end, start]},
        {"data_offsets": [0, end - start]},
        {"data_offsets": [start]},
        {"data_offsets": [float(start), float(end)]},
        {"shape": [float(n) for n in entry["shape"]]},
        {"shape": [2**62, 4]},
        {"shape": [-n for n in entry["shape"]]},
        {"shape": [*entry["shape"], 0]},
        {"shape": "2"},
        {"dtype": draw.choice(["F64", "F128", "", 5, None, ["F32"]])},
        None,
    ]
    change = draw.choice(changes)
    header[name] = None if change is None else entry | change
    text = json.dumps(header).encode()
    choice = draw.random()
    if choice < 0.1:
        text = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    elif choice < 0.15:
        text = json.dumps([header]).encode()
    declared = draw.choice([len(text)] * 6 + [len(text) - 1, 2**63, 2**64 - 1, len(content) * 2])
    (directory / TENSORS).write_bytes(declared.to_bytes(8, "little") + text + data)


# -- what the adapter says about itself

STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**9,
    10**400,
    math.nan,
    math.inf,
    1e308,
    "",
    "\0",
    "../../../etc/passwd",
    "(a+)+$",
    "(((.*)*)*)*x",
    "__import__('os').system('true')",
    "x" * 100_000,
    [],
    [[]],
    {},
    {"a": {"b": None}},
    {"__class__": "os.system"},
)


def deep(draw: random.Random) -> str:
    depth = draw.choice([2_000, 100_000])
    return draw.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth])


def other_json(draw: random.Random, file: Path) -> None:
    content = json.loads(file.read_text())
    chosen: Any = content
    keys = sorted(content)
    key = draw.choice(keys)
    while isinstance(chosen[key], dict) and chosen[key] and draw.random() < 0.7:
        chosen = chosen[key]
        key = draw.choice(sorted(chosen))
    kind = draw.random()
    if kind < 0.1:
        del chosen[key]
    elif kind < 0.2:
        chosen[draw.choice(["new", "../x", "\0", "auto_map", "trust_remote_code"])] = draw.choice(STRANGE)
    elif kind < 0.3:
        chosen[key] = "@"
        return void(file.write_text(json.dumps(content).replace('"@"', deep(draw))))
    elif kind < 0.35:
        return void(file.write_text(draw.choice(["null", "[]", "1", '""', "NaN", deep(draw)])))
    else:
        chosen[key] = draw.choice(STRANGE)
    file.write_text(json.dumps(content))


def void(_: object) -> None:
    return None


def other_options(draw: random.Random, directory: Path) -> None:
    other_json(draw, directory / CONFIG)


def wrong_rank(draw: random.Random, directory: Path) -> None:
    options = json.loads((directory / CONFIG).read_text())
    name = next(key for key in ("r", "num_virtual_tokens", "reduction_factor", "peft_type") if key in options)
    options[name] = draw.choice([1, 3, 4, 8, 64, 10**6, 10**12])
    (directory / CONFIG).write_text(json.dumps(options))


def wrong_base(draw: random.Random, directory: Path) -> None:
    file = directory / MANIFEST
    if not file.is_file():
        return wrong_shape(draw, directory)
    content = json.loads(file.read_text())
    part = draw.choice(sorted(content["fingerprint"]))
    own = content["fingerprint"][part]
    content["fingerprint"][part] = draw.choice(
        [own[::-1], own[:-1], "", own.upper() + "!", own[1:] + own[:1]]
    )
    file.write_text(json.dumps(content))


def other_manifest(draw: random.Random, directory: Path) -> None:
    file = directory / MANIFEST
    if not file.is_file():
        return other_options(draw, directory)
    other_json(draw, file)


def traversal_names(draw: random.Random, directory: Path) -> None:
    """The manifest names files that are none of the adapter's."""
    file = directory / MANIFEST
    if not file.is_file():
        return other_tensors(draw, directory)
    content = json.loads(file.read_text())
    target = directory.parent / "secret"
    target.write_text("secret")
    name = draw.choice(
        ["../secret", str(target), "sub/../../secret", "..\\secret", "../../escaped", "/etc/passwd"]
    )
    known = hashlib.sha256(target.read_bytes()).hexdigest()
    content["files"][name] = draw.choice([known, known, "", None, "0" * 64])
    file.write_text(json.dumps(content))


MUTATIONS: tuple[Mutation, ...] = (
    cut_off,
    bits_flipped,
    too_large,
    other_bytes,
    pickle_renamed,
    symbolic_link,
    no_plain_file,
    missing,
    not_finite,
    wrong_shape,
    wrong_dtype,
    other_tensors,
    other_header,
    other_options,
    wrong_rank,
    wrong_base,
    other_manifest,
    traversal_names,
)


def forge(directory: Path) -> None:
    """Have the manifest agree with the files again, as somebody would who means harm."""
    file = directory / MANIFEST
    if not is_small(file):
        return
    try:
        content = json.loads(file.read_text())
        for name in content["files"]:
            if name in (CONFIG, TENSORS) and is_small(directory / name):
                content["files"][name] = digest(directory / name)
        file.write_text(json.dumps(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # then it stays as it is


def is_small(file: Path) -> bool:
    """Whether reading it ends."""
    return file.is_file() and file.stat().st_size < 1 << 24


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# -- the rule

#: Expressions that some texts keep busy for years.
_ENDLESS = ("(a+)+$", "(((.*)*)*)*x")
#: Options that concern training, or where the adapter came from: they change no answer.
_IDLE = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",  # for another kind of layer
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "revision",
    "tokenizer_name_or_path",
}
#: Options with which the same tensors are another adapter that is as sound.
_SCALE = {"lora_alpha", "use_rslora", "alpha_pattern"}


def is_sound(original: Path, mutant: Path, *, linked: bool) -> bool:
    """Whether a damaged adapter is a whole one for the same base all the same.

    Decided by the safetensors package, json, hashlib and HF PEFT, and by comparison with what it was made from: its
    tensors have the same names, shapes and kinds and are finite, its options ask HF PEFT for the same tensors, and its
    manifest, if it has one, names these files and this base.

    Args:
        original: What it was made from.
        mutant: The damaged one.
        linked: Whether there may be links, as before an adapter is added; those of its own files lead to files of it.
    """
    try:
        paths = list(mutant.rglob("*"))
        if linked and not os.path.lexists(mutant / MANIFEST):
            # Of what HF PEFT wrote `add` takes the adapter's files; what else lies there is never opened.
            paths = [path for path in paths if path.name in (CONFIG, TENSORS, "README.md")]
        if not all(path.is_file() or path.is_dir() for path in paths):
            return False
        own = (CONFIG, TENSORS, MANIFEST, "README.md")
        links = [path for path in paths if path.is_symlink()]
        inside = mutant.resolve()
        if not all(linked and (p.name not in own or p.resolve().is_relative_to(inside)) for p in links):
            return False
        paths = [path for path in paths if path.is_file()]
        if any(path.stat().st_size > 1 << 24 or _is_pickle(path) for path in paths):
            return False
        was, now = load_file(original / TENSORS), load_file(mutant / TENSORS)
        if {k: (v.shape, v.dtype) for k, v in was.items()} != {k: (v.shape, v.dtype) for k, v in now.items()}:
            return False
        if not all(torch.isfinite(tensor).all() for tensor in now.values()):
            return False
        options, others = (json.loads((place / CONFIG).read_text()) for place in (original, mutant))
        # Nothing in other words, such as 0 for {}, is the same.
        known = {
            key
            for key, value in options.items()
            if others.get(key, value) != value and (value or others[key])
        }
        if options["peft_type"] != others["peft_type"]:
            return False
        if any(text in json.dumps(others[name]) for name in known - _IDLE - _SCALE for text in _ENDLESS):
            return False  # HF PEFT itself would look for a match for years
        if known - _IDLE - _SCALE and _names_by_peft(mutant) != {
            name: tensor.shape for name, tensor in now.items()
        }:
            return False
        if not (mutant / MANIFEST).is_file():
            return not (original / MANIFEST).is_file() or linked
        declared, meant = (json.loads((place / MANIFEST).read_text()) for place in (mutant, original))
        return (
            declared["fingerprint"] == meant["fingerprint"]
            and {CONFIG, TENSORS} <= set(declared["files"])
            and all(digest(mutant / name) == known for name, known in declared["files"].items())
            and all("/" not in name for name in declared["files"])
        )
    except Exception:
        return False


def _names_by_peft(directory: Path) -> dict[str, torch.Size]:
    """The tensors that HF PEFT makes for an adapter's options, without any memory."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PeftConfig.from_pretrained(str(directory))
        model = peft.get_peft_model(tiny_model(), config)
        return {name: tensor.shape for name, tensor in peft.get_peft_model_state_dict(model).items()}


def is_same(original: Path, mutant: Path) -> bool:
    """Whether a sound one must answer as what it was made from does."""
    was, now = load_file(original / TENSORS), load_file(mutant / TENSORS)
    options, others = (json.loads((place / CONFIG).read_text()) for place in (original, mutant))
    return (
        all(torch.equal(was[name], now[name]) for name in was)
        and all(options.get(name) == others.get(name) for name in _SCALE)
        and _encoding(original) == _encoding(mutant)
    )


def _encoding(directory: Path) -> Any:
    file = directory / MANIFEST
    return json.loads(file.read_text())["encoding"] if file.is_file() else None


def _is_pickle(file: Path) -> bool:
    if zipfile.is_zipfile(file):
        return True
    content = file.read_bytes()
    if content[:1] != b"\x80":
        return False
    try:
        return any(True for _ in pickletools.genops(content))
    except Exception:
        return False
