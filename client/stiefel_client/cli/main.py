"""Entry point: commands gathered, errors turned into exit codes.

Exit codes: 0 succeeded, 1 failed, 2 bad use, 3 timeout, 130 detached by Ctrl-C.
"""

from __future__ import annotations

import sys

import typer

from stiefel_client.cli import files, jobs, service, submit, sweep
from stiefel_client.cli.options import EXIT_BAD_USE, EXIT_FAILED, EXIT_TIMEOUT
from stiefel_client.cli.show import complain
from stiefel_client.errors import (
    ServerError,
    ServiceUnreachableError,
    StiefelApiError,
    StiefelClientError,
    TransferError,
    WaitTimeoutError,
)

app = typer.Typer(
    name="stiefel",
    help="Unitary and low-rank weights through a job API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (service, submit, jobs, sweep, files):
    part.register(app)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except StiefelClientError as error:
        complain(error)
        sys.exit(_exit_code(error))
    except BrokenPipeError:
        # The reader of our output has gone, as in `stiefel jobs | head`.
        sys.stderr.close()
        sys.exit(EXIT_FAILED)
    except OSError as error:
        # A disk that is full, a folder that may not be written: the machine's matter, not ours.
        fix = "Check the path, who may write there, and the free space" if error.filename else None
        complain(StiefelClientError(str(error), fix=fix))
        sys.exit(EXIT_FAILED)


def _exit_code(error: StiefelClientError) -> int:
    if isinstance(error, WaitTimeoutError):
        return EXIT_TIMEOUT
    if isinstance(error, ServerError | ServiceUnreachableError):
        return EXIT_FAILED
    if isinstance(error, TransferError) and not isinstance(error, StiefelApiError):
        return EXIT_FAILED
    return EXIT_BAD_USE
