"""Commands about results and what is on offer: download, checkpoints, verify, methods, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stiefel_client import calls
from stiefel_client.cli.follow import fetch
from stiefel_client.cli.options import EXIT_FAILED, JobId, Json, Key, Url, a_folder
from stiefel_client.cli.show import byte_bar, err, out, print_json, table
from stiefel_client.client import Stiefel
from stiefel_client.verify import Claim, TensorCheck, Verification
from stiefel_client.verify import verify as verify_files

ARTIFACT = "art_"  # ids of artifacts begin with it

keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (download, checkpoints, verify, methods):
        app.command()(command)
    app.add_typer(keys_app, name="keys")


def download(
    source: Annotated[str, typer.Argument(metavar="JOB", help="Job id, or artifact id.")],
    target: Annotated[
        Path, typer.Option("--output", "-o", help="Folder (a file for an artifact).")
    ] = Path(),
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Fetch the files of a finished job; run it again after a break and it goes on."""
    if not source.startswith(ARTIFACT):
        a_folder(target)
    with Stiefel(url, key) as client:
        if source.startswith(ARTIFACT):
            paths = [_fetch_artifact(client, source, target, quiet=json)]
        else:
            paths = fetch(client, client.jobs.get(source), target, quiet=json)
    if json:
        print_json([str(path) for path in paths])
    else:
        for path in paths:
            out.print(str(path), markup=False)


def _fetch_artifact(client: Stiefel, artifact_id: str, target: Path, *, quiet: bool) -> Path:
    artifact = client.artifacts.get(artifact_id)
    path = target / Path(artifact.name or artifact.id).name if target.is_dir() else target
    with byte_bar(path.name, quiet=quiet) as on_bytes:
        return client.artifacts.download(artifact, path, on_bytes=on_bytes)


def checkpoints(
    job: JobId,
    target: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=a_folder, help="Fetch one into this folder."),
    ] = None,
    number: Annotated[
        int | None, typer.Option(min=1, help="Which one to fetch; default the newest.")
    ] = None,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """List the checkpoints of a job in any state, or fetch one."""
    with Stiefel(url, key) as client:
        if target is None:
            _list_checkpoints(client, job, json=json)
            return
        with byte_bar("checkpoint", quiet=json) as on_bytes:
            paths = client.jobs.download_checkpoint(job, target, number=number, on_bytes=on_bytes)
    if json:
        print_json([str(path) for path in paths])
    else:
        for path in paths:
            out.print(str(path), markup=False)


def _list_checkpoints(client: Stiefel, job_id: str, *, json: bool) -> None:
    found = client.call(calls.list_checkpoints(job_id)).data
    if json:
        print_json(found)
        return
    rows = [(str(c.number), str(c.step), f"{c.bytes or 0:,}", str(len(c.files))) for c in found]
    out.print(table(("number", "step", "bytes", "files"), rows))


def verify(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="File, index or folder.")],
    certificate: Annotated[
        Path | None, typer.Option(help="Default: certificate.json beside FILE.")
    ] = None,
    original: Annotated[
        Path | None, typer.Option("--input", help="The job's input: distances are checked too.")
    ] = None,
    json: Json = False,
) -> None:
    """Check weights against their certificate, offline: every byte and every claim."""
    outcome = verify_files(target, certificate=certificate, original=original)
    if json:
        print_json(outcome.to_json())
    else:
        show_verification(outcome)
    if not outcome.ok:
        raise typer.Exit(EXIT_FAILED)


def show_verification(outcome: Verification) -> None:
    """The converted tensors with their claims, then what is wrong, then the verdict."""
    converted = [check for check in outcome.tensors if check.role != "unchanged"]
    rows = [_claim_row(check, claim) for check in converted for claim in check.claims]
    if rows:
        out.print(table(("tensor", "role", "claim", "certified", "measured", ""), rows))
    for finding in outcome.findings:
        err.print(f"{finding.where}: {finding.detail} [{finding.code}]", markup=False)
    unchanged = len(outcome.tensors) - len(converted)
    out.print(
        f"{'VERIFIED' if outcome.ok else 'NOT VERIFIED'}: {len(outcome.files)} files, "
        f"{outcome.bytes_read:,} bytes, {len(converted)} converted and {unchanged} unchanged "
        f"tensors, {len(rows)} claims, {len(outcome.findings)} findings, {outcome.seconds:.2f} s",
        markup=False,
    )


def _claim_row(check: TensorCheck, claim: Claim) -> tuple[str, ...]:
    # Of a distance to the optimum there is no figure only where there are many optima.
    unknown = "not unique" if claim.name == "distance_to_optimum" else "not measurable"
    measured = unknown if claim.measured is None else f"{claim.measured:.6g}"
    mark = "ok" if claim.holds else "FAILS"
    return (check.name, check.role, claim.name, f"{claim.claimed:.6g}", measured, mark)


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this one's parameters.")] = None,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """List what the service can do, or the parameters of one method."""
    with Stiefel(url, key) as client:
        if name is None:
            found = client.methods.list()
            if json:
                print_json(found)
            else:
                out.print(table(("method", ""), ((m.name, m.summary or "") for m in found)))
            return
        method = client.methods.get(name)
    if json:
        print_json(method)
        return
    properties = method.json_schema.get("properties", {})
    rows = [(field, _kind(about), _line(about)) for field, about in properties.items()]
    out.print(table(("parameter", "type", ""), rows))


def _kind(about: dict[str, Any]) -> str:
    options = about.get("anyOf") or [about]
    return " or ".join(dict.fromkeys(filter(None, map(_one_kind, options))))


def _one_kind(option: dict[str, Any]) -> str:
    reference = str(option.get("$ref", "")).rpartition("/")[2]
    return str(option.get("const", option.get("type", reference)))


def _line(about: dict[str, Any]) -> str:
    default = f" (default {about['default']!r})" if "default" in about else ""
    return " ".join(str(about.get("description", "")).split())[:90] + default


@keys_app.command("list")
def list_keys(url: Url = None, key: Key = None) -> None:
    """List keys, without their secrets."""
    with Stiefel(url, key) as client:
        print_json(client.keys())


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="May repeat; default all but admin.")
    ] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Make a key; its secret is shown this once."""
    scopes = scope or ["jobs:read", "jobs:write", "artifacts:read", "artifacts:write"]
    with Stiefel(url, key) as client:
        print_json(client.call(calls.create_key(name, scopes)))


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Key id, from `keys list`.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """Make a key worthless at once."""
    with Stiefel(url, key) as client:
        client.call(calls.revoke_key(key_id))
