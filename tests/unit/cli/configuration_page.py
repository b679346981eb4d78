"""docs/configuration.md, made from the command line itself and from the types of the configuration file.

`python -m tests.unit.cli.configuration_page` writes it anew. Invariant: nothing in the tables is written by hand.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from modelyard_services.cli.main import app
from modelyard_services.cli.variables import is_option, variable_of
from modelyard_services.policy.entries import ModelBody, ScheduleBody
from modelyard_services.policy.known_settings import RELATIONS
from modelyard_services.policy.known_settings import rows as known_settings
from tests.unit.cli import numbers

PAGE: Final = Path(__file__).parents[3] / "docs" / "configuration.md"
PROCESSES: Final = (
    "up",
    "demo",
    "worker",
    "api",
    "router",
    "gateway",
    "registrar",
    "reconciler",
    "projector",
    "doctor",
)

_INTRODUCTION: Final = """# Configuration

Made from the program by `python -m tests.unit.cli.configuration_page`; a test fails when it is stale.

Every option of every command is also a variable: `--nats-url` is `MODELYARD_NATS_URL`. An option wins over its
variable. What a command acts on (a node, a model, a token's name) is no option and has none. Give secrets (URLs with
passwords, tokens, seeds) as variables: others can read command lines. `modelyard COMMAND --help` tells more.

## Every command

| option | variable | default | |
|---|---|---|---|
| `--api` | `MODELYARD_API` | `http://127.0.0.1:7070` | where the API is |
| `--token` | `MODELYARD_TOKEN` | | who asks |
| `--json` | `MODELYARD_JSON` | `False` | print the API's own answer |
"""

_SETTINGS: Final = """## Settings of the fleet

What the whole fleet goes by is in its log, and changes while it runs, for everybody at once: `modelyard settings` shows
each with its default and bounds, `modelyard settings NAME=VALUE …` changes some, all or none, `modelyard settings reset
NAME` puts one back (`GET`, `PATCH`, `PUT /settings`). The rule is the one that the figure is of.

| setting | default | bounds | rule | |
|---|---|---|---|---|
"""

_TOGETHER: Final = """
Refused, whichever of the two is changed:

"""

_FILE: Final = """
## The configuration file

YAML or JSON, given to `up` and `reconciler` by `--config`; a list of schedule entries alone is accepted too. All
mistakes are reported together, with line and field. A file is authoritative for what it lists, and silent about the
rest.

```yaml
defaults:                            # for the models of this file, unless they say otherwise
  environment: {HF_HOME: /srv/hf}    # variable by variable
models:
  - name: minilm
    command: [python, -m, some.server, --port, "{port}"]
    environment: {HF_TOKEN: {from_env: HF_TOKEN}}
    health: {http: /health}          # or {grpc: service}
    vram: 512MiB
    aliases: [text-embedding-3-small]
schedules:
  - model_name: minilm
    node_selector: {tier: gpu}       # or "tier=gpu, zone in (a,b)"
    min_replicas: 1
    max_replicas: 3                  # or replicas: all
```

`vram` is a replica's footprint. Without it, it is what a replica was measured to take; else what the headers of `files`
tell (GGUF: weights, and the cache for `context_length`; safetensors: weights and a fifth); else `file_size` and a
fifth. With none of these a replica gets a node with no other on it. Files are looked at where the model is defined, by
the API or the reconciler; `modelyard measure FILE` tells the same on a machine that alone has them.

A name in braces, in a word of `command` or a value of `environment`, is filled in by the node: `{port}` and `{host}` to
listen on, `{model}`, `{replica}`, and `{gpu}`, its devices as CUDA and ROCm call them. Any other name there is refused;
`\\{name}` is that text itself. Other braces are left alone: JSON such as `{"a": 1}`, `${HOME}`, `{{name}}`.

A worker refuses a load whose `files` or `devices` (paths on its machine, such as `/dev/dri/renderD128`) it lacks.

A client may ask for a model by any of its `aliases`, over `/v1/*`, routes and gRPC; the replica is asked by the model's
own name. A name that is another model's, or another model's alias, is refused.

On a running installation, `modelyard plan FILE` shows what differs, what the reconciler would place and end for it, and
what can't be met, with the reason and the line; it changes nothing. `modelyard apply FILE` does it, all or nothing;
what stands as written appends no event. With `--prune` what a section doesn't list ends: models that aren't under
`models`, schedules that aren't under `schedules`. What is applied so belongs to the API; a file given to `--config`
wins again at the next start.
"""


def page() -> str:
    """The whole page."""
    models, schedules = (
        _fields("models", ModelBody, "name", "command"),
        _fields("schedules", ScheduleBody, "model_name"),
    )
    return "\n".join(
        [_INTRODUCTION, *map(_process, PROCESSES), _settings(), _FILE, models, schedules, numbers.section()]
    )


def variables(command: str) -> set[str]:
    """The variables that `command` reads."""
    return {row[1] for row in _options(command)}


def _settings() -> str:
    rows = [
        f"| `{name}` | {str(default).lower()} | {known.span} | {known.rule} | {known.told} |"
        for name, default, known in known_settings()
    ]
    refused = [
        f"* {f'{each.times:g} × ' if each.times != 1 else ''}`{each.small}` above `{each.large}`: {each.why}"  # noqa: RUF001
        for each in RELATIONS
    ]
    return "".join([_SETTINGS, "\n".join(rows), "\n", _TOGETHER, "\n".join(refused), "\n"])


def _process(command: str) -> str:
    doc = (app[command].help or "").split("\n", 1)[0]
    rows = [f"| `{option}` | `{name}` | {default} | {told} |" for option, name, default, told in _options(command)]
    head = "\n| option | variable | default | |\n|---|---|---|---|"
    return "\n".join([f"## `modelyard {command}`\n", doc, head, *rows, ""])


def _options(command: str) -> Iterator[tuple[str, str, str, str]]:
    for argument in app[command].assemble_argument_collection(parse_docstring=True):
        name = argument.names[0]
        if not is_option(argument) or not name.startswith("--"):
            continue
        default = argument.field_info.default
        shown = "" if default is None else "required" if default is argument.field_info.empty else f"`{default}`"
        told = str(argument.parameter.help or "").replace("\n", " ")
        yield name, variable_of(name), shown, told


def _fields(title: str, body: type[msgspec.Struct], *required: str) -> str:
    rows = [f"| `{name}` | text | yes |" for name in required if name not in body.__struct_fields__]
    rows += [
        f"| `{field.name}` | {_type(field.type)} | {'yes' if field.name in required else ''} |"
        for field in msgspec.structs.fields(body)
    ]
    return "\n".join([f"### `{title}`\n\n| field | | required |\n|---|---|---|", *rows, ""])


_WORDS: Final = {
    "StrType": "text",
    "IntType": "number",
    "FloatType": "number",
    "BoolType": "true or false",
    "NoneType": "",
}


def _type(annotation: Any) -> str:
    info = msgspec.inspect.type_info(annotation)
    return _type_of(info)


def _type_of(info: Any) -> str:
    match info:
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(dict.fromkeys(word for word in map(_type_of, types) if word))
        case msgspec.inspect.ListType(item_type=item):
            return f"list of {_type_of(item)}"
        case msgspec.inspect.DictType(value_type=value):
            return f"names to {_type_of(value)}"
        case msgspec.inspect.LiteralType(values=values):
            return " or ".join(f"`{value}`" for value in values)
        case msgspec.inspect.StructType(cls=cls):
            return "one of " + ", ".join(f"`{name}`" for name in cls.__struct_fields__)
        case _:
            return _WORDS[type(info).__name__]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
