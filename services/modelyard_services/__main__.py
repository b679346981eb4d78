"""`modelyard`, and `python -m modelyard_services`.

Invariant: Ctrl-C ends it without a trace from its first moment, also while the program is still being read, which takes
a second on a busy machine.
"""

import signal


def main() -> None:
    """Run one command and exit with its code."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from modelyard_services.cli.main import main as run  # noqa: PLC0415 - what is read here may be interrupted

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
