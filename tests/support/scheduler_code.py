"""Makes the Python code of the gRPC contract; the result is committed, and a test makes it again.

python -m tests.support.scheduler_code
"""

import sys
from pathlib import Path
from typing import Final

from grpc_tools import protoc  # type: ignore[import-untyped]

SERVICES: Final = Path(__file__).parents[2] / "services"
CONTRACT: Final = Path("modelyard_services/router/proto/modelyard/v1/scheduler.proto")


def generate(out: Path) -> None:
    """Write the code below `out`, by the contract's own path."""
    includes = Path(protoc.__file__).parent / "_proto"
    made = protoc.main(
        [
            "protoc",
            f"--proto_path={SERVICES}",
            f"--proto_path={includes}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            str(CONTRACT),
        ]
    )
    assert made == 0, "protoc says on stderr what is wrong"


if __name__ == "__main__":
    generate(SERVICES)
    sys.stderr.write(f"made from {CONTRACT}\n")
