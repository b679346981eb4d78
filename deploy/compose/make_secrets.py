"""Make what compose.yaml needs and nobody should see, once, beside this file, mode 0600.

Run with modelyard installed: `python deploy/compose/make_secrets.py`. Invariant: what is there is never replaced.
"""

# ruff: noqa: INP001 - a script, run by its path

import os
import secrets
import sys
from pathlib import Path

from modelyard_services.effects.nats_access.keys import generate_keys
from modelyard_services.effects.nats_access.server import secrets_file


def main(folder: Path) -> None:
    """Write the files into `folder`."""
    os.umask(0o077)
    keys, password = generate_keys(), secrets.token_urlsafe(32)

    def urls(user: str, key: str) -> str:
        return ",".join(f"nats://{user}:{key}@nats-{number}:4222" for number in (1, 2, 3))

    files = {
        "secrets.conf": secrets_file(keys),
        "postgres_password": password,
        "control.env": (
            f"MODELYARD_NATS_URL={urls('control', keys.control_password)}\n"
            "MODELYARD_NATS_REPLICAS=3\n"
            f"MODELYARD_DATABASE_URL=postgresql://modelyard:{password}@postgres:5432/modelyard\n"
        ),
        "registrar.env": (
            f"MODELYARD_NATS_CALLOUT_URL={urls('callout', keys.callout_password)}\n"
            f"MODELYARD_NATS_ISSUER_SEED={keys.issuer_seed}\n"
        ),
        "projector.env": f"MODELYARD_NATS_COPIER_URL={urls('copier', keys.copier_password)}\n",
        "worker.env": "MODELYARD_NATS_URL=nats://nats-1:4222\nMODELYARD_REGISTRATION_TOKEN=replace-me\n",
    }
    for name, content in files.items():
        with (folder / name).open("x", encoding="utf-8") as file:
            file.write(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
