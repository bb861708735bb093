"""The command line. One module a command group; every error of the family ends here, with its exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from audit.errors import AuditError
from engine import __version__
from engine.errors import SallyportError

_MODULES = {
    "run": "engine.cli.run",
    "status": "engine.cli.status",
    "verdict": "engine.cli.orders",
    "strategy": "engine.cli.orders",
    "policy": "engine.cli.policy",
    "audit": "audit.cli",
    "inspect": "engine.cli.inspect",
    "lab": "engine.cli.lab",
    "selftest": "engine.cli.selftest",
    "panic": "engine.cli.panic",
}
"""Command and module. Only the module of the command that is called is imported: the engine runs for months with what
its own command imported, and the others would cost it 10 MiB."""

_EPILOG = """\
exit codes:
  0  done                              6  the kernel lacks something, or refused
  1  the command found something       7  a network interface is missing or cannot be guarded
  2  the words are off                 8  the state directory cannot be used
  3  no engine answers                 9  an evaluator does not answer
  4  the policy is refused            10  a file cannot be read as what it should be
  5  more privilege is needed         11  the configuration is not usable

start here:
  sallyport policy check policies
  sallyport run --interface eth0 --policy policies --state-dir /var/lib/sallyport
"""


def parser(command: str = "") -> argparse.ArgumentParser:
    """Return the command line: of one command where it is a known one, else of all of them."""
    top = argparse.ArgumentParser(
        prog="sallyport",
        description="A network security policy engine for Linux hosts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sallyport {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = [_MODULES[command]] if command in _MODULES else dict.fromkeys(_MODULES.values())
    for module in wanted:
        importlib.import_module(module).register(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser(words[0] if words else "").parse_args(words)
    try:
        code: int = args.handler(args)
        sys.stdout.flush()
    except (SallyportError, AuditError) as error:
        print(f"sallyport: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is wrong, and the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 - the last edge
        # Never 1, with which a script reads that the command worked and found something.
        traceback.print_exc()
        return SallyportError.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
