"""The upload and submit commands: files in, a job out, on request everything to the download."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stiefel_client.cli.companions import bring_along
from stiefel_client.cli.follow import follow
from stiefel_client.cli.options import Json, Key, Url, a_folder, read_labels, read_parameters
from stiefel_client.cli.show import byte_bar, out, print_json, say
from stiefel_client.client import Stiefel
from stiefel_client.errors import ConfigurationError
from stiefel_client.models import Artifact
from stiefel_client.shards import index_of, shards


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (upload, submit):
        app.command()(command)


def upload(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="Data or weights."),
    ],
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Upload files for specs to name, such as data to train on; print their artifact ids."""
    found: list[Artifact] = []
    with Stiefel(url, key) as client:
        for file in files:
            found.append(_upload(client, file, quiet=json))
            if not json:
                # The file's own name: equal bytes may lie there under another one already.
                out.print(f"{found[-1].id} {file.name}", markup=False, soft_wrap=True)
    if json:
        print_json(found)


def submit(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A .safetensors file, a folder or index of shards, or an artifact id.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="See `stiefel methods`.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Pattern of tensors to convert; may repeat.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Pattern of tensors to leave; may repeat.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="Field of the spec: name=value.")
    ] = None,
    spec: Annotated[
        str | None, typer.Option(help="A JSON file with the spec, or - for stdin.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="name=value; may repeat.")] = None,
    priority: Annotated[str | None, typer.Option(help="low, normal or high.")] = None,
    deadline: Annotated[str | None, typer.Option(help="ISO 8601, such as PT2H.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key never makes a second job.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait; then exit 3.")
    ] = None,
    download: Annotated[
        Path | None, typer.Option(callback=a_folder, help="Folder for the result; implies --wait.")
    ] = None,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Submit a job."""
    body = _read_spec(spec) | read_parameters(param or [])
    given = {"method": method, "include": include, "exclude": exclude, "seed": seed}
    body |= {name: value for name, value in given.items() if value is not None}
    if "method" not in body:
        raise typer.BadParameter("name a --method; `stiefel methods` lists them")
    if source is not None:
        _require_input(str(body["method"]))
    options: dict[str, Any] = {"priority": priority, "deadline": deadline, "device": device}
    if label:
        options["labels"] = read_labels(label)
    with Stiefel(url, key) as client:
        if source is not None:
            body["input"] = bring(client, source, quiet=json)
        if dry_run:
            print_json(client.jobs.plan(body, **options))
            return
        job = client.jobs.submit(body, idempotency_key=idempotency_key, **options)
        if wait or download is not None:
            say(f"submitted {job.id}")
            paths = follow(client, job.id, timeout=timeout, download=download, json=json)
            if download is not None and source is not None and Path(source).is_dir():
                bring_along(Path(source), download, paths)
        elif json:
            print_json(job)
        else:
            out.print(job.id, markup=False)
            say(f"follow it with: stiefel watch {job.id}")


def _require_input(method: str) -> None:
    """Refuse a FILE for methods without an ``input`` before anything is uploaded."""
    if method.startswith("train."):
        raise typer.BadParameter(
            f"{method} takes no FILE: trainings take data.train; upload with `stiefel upload` "
            "first, and name the art_... that it prints in the spec"
        )


def bring(client: Stiefel, source: str, *, quiet: bool) -> str | dict[str, str]:
    """The spec's ``input`` for a source: an artifact id, or one by shard name."""
    path = Path(source)
    if not path.exists():
        if source.startswith("art_"):
            return source
        raise ConfigurationError(f"{source} is neither a file nor an artifact id")
    if path.is_file() and not path.name.endswith(".index.json"):
        return _upload(client, path, quiet=quiet).id
    found = shards(path)
    index = index_of(path)
    if index is not None:
        found.append(index)
    elif len(found) == 1:
        return _upload(client, found[0], quiet=quiet).id
    return {file.name: _upload(client, file, quiet=quiet).id for file in found}


def _upload(client: Stiefel, path: Path, *, quiet: bool) -> Artifact:
    with byte_bar(path.name, quiet=quiet) as on_bytes:
        return client.uploads.upload(path, on_bytes=on_bytes)


def _read_spec(source: str | None) -> dict[str, Any]:
    if source is None:
        return {}
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        body = jsonlib.loads(text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"--spec {source}: {error}") from error
    if not isinstance(body, dict):
        raise typer.BadParameter(f"--spec {source}: a spec is a JSON object")
    return body
