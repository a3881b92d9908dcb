"""Commands that run or examine a service: serve, worker, doctor."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from stiefel_client.cli.options import EXIT_FAILED, Json, Key, Url
from stiefel_client.cli.show import err, out, print_json, say, table
from stiefel_client.doctor import examine
from stiefel_client.locate import DEFAULT_PORT, data_dir
from stiefel_client.serve import Supervisor

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="STIEFEL_DATA_DIR", help="Where everything is kept."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(serve)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(worker)
    app.command()(doctor)


def serve(
    folder: DataDir = None,
    host: Annotated[
        str, typer.Option(envvar="STIEFEL_API_HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="STIEFEL_API_PORT", min=0, max=65535, help="0: any free port.")
    ] = DEFAULT_PORT,
) -> None:
    """Run API and worker on this machine until Ctrl-C."""
    where = (folder or data_dir()).expanduser().absolute()
    supervisor = Supervisor(where, host=host, port=port, say=say)

    def ready() -> None:
        out.print(f"Stiefel is up at {supervisor.url}", markup=False)
        found = ", found by `stiefel` on its own" if _is_default(where) else ""
        out.print(f"API key: in {where / 'api_key'}{found}", markup=False)
        out.print(f"Data: {where}", markup=False)
        if not found:
            out.print("In other shells, so that `stiefel` finds URL and key there:")
            # One line however narrow the terminal: it is there to be copied.
            line = f"export STIEFEL_DATA_DIR={shlex.quote(str(where))}"
            out.print(line, markup=False, soft_wrap=True)
        sys.stdout.flush()

    raise typer.Exit(supervisor.run(ready))


def _is_default(where: Path) -> bool:
    """Whether `stiefel` looks there by itself; another shell need not have this one's variable."""
    return not os.environ.get("STIEFEL_DATA_DIR") and where == data_dir().expanduser().absolute()


def worker(context: typer.Context, folder: DataDir = None) -> None:
    """Run one worker; database, broker and store come from STIEFEL_* variables."""
    env = {**os.environ, "PYTHONSAFEPATH": "1"}  # nothing is imported from the current folder
    if folder is not None:
        env["STIEFEL_DATA_DIR"] = str(folder.expanduser().absolute())
    command = [sys.executable, "-m", "stiefel_worker", *context.args]
    os.execve(sys.executable, command, env)  # noqa: S606 - our own interpreter and module


def doctor(url: Url = None, key: Key = None, json: Json = False) -> None:
    """Check this machine and the service; exit 1 when something needed is missing."""
    checks = list(examine(url, key))
    if json:
        print_json([check.__dict__ for check in checks])
    else:
        marks = {True: "ok", False: "missing"}
        rows = [
            (check.name, marks[check.ok] if check.needed or check.ok else "note", check.detail)
            for check in checks
        ]
        out.print(table(("check", "", ""), rows))
        for check in checks:
            if not check.ok and check.fix:
                err.print(f"{check.name}: {check.fix}", markup=False)
    if any(check.needed and not check.ok for check in checks):
        raise typer.Exit(EXIT_FAILED)
