"""The command line: parses, wires, prints. What a verb does is in the module of its name."""

import json
import sys
import traceback
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from infra.errors import ClvrError
from infra.settings import Settings, load_settings, origins

EXIT_CODES = """
Exit codes: 0 done; 1 unexpected; 2 usage; 3 bad input; 4 object storage; 5 Milvus; 6 parts that do not
belong together; 7 numbers that do not add up; 8 the gate said no; 9 too many bad pictures; 10 locked by
somebody else; 11 training diverged; 130 interrupted.
"""


class Verbs(TyperGroup):
    """Turns our errors into one line, a remedy and the documented exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a traceback is shown only with --debug."""
        try:
            return super().invoke(ctx)
        except ClvrError as error:
            _fail(error, debug=bool(ctx.params.get("debug")))
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command continues where this stopped", err=True)
            raise SystemExit(130) from None


def _fail(error: ClvrError, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    typer.echo(f"error: {error.message}", err=True)
    if error.remedy:
        typer.echo(f"remedy: {error.remedy}", err=True)
    raise SystemExit(error.exit_code)


app = typer.Typer(
    cls=Verbs,
    help="Vehicle re-identification over a whole archive." + "\n\n" + EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

_config: Path | None = None

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Runs = Annotated[str | None, typer.Option("--runs", help="URI of the folder that holds the runs.")]
Milvus = Annotated[str | None, typer.Option("--milvus", help="http(s)://host:port, or a Milvus Lite file.")]
Alias = Annotated[str | None, typer.Option("--alias", help="The alias that searches use.")]
Ray = Annotated[str | None, typer.Option("--ray", help="Ray address; without one a local Ray is started.")]
RunIds = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Run ids in --runs; `latest` is one too.")
]


@app.callback()
def common(
    config: Annotated[Path | None, typer.Option(help="YAML settings file (default: clvr.yaml).")] = None,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Take the options that stand before the verb."""
    global _config
    _config = config


def _settings(**flags: Any) -> Settings:
    return load_settings(flags, file=_config)


def _emit(result: Any, as_json: bool, text: str) -> None:
    if not as_json:
        typer.echo(text)
        return
    data = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
    json.dump(data, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything the demo makes goes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the made-up archive.")] = 7,
) -> None:
    """Run the whole way on a small made-up archive and write a page. Example: clvr demo"""
    from jobs.demo import run_demo

    run_demo(folder, seed=seed)


@app.command()
def generate(
    archive: Annotated[str, typer.Argument(help="Where the crops go: s3://… or a folder.")],
    seed: int = 7,
    models: Annotated[int, typer.Option(help="Vehicle models.")] = 12,
    vehicles: Annotated[int, typer.Option(help="Vehicles a model.")] = 10,
    sightings: Annotated[int, typer.Option(help="Pictures a vehicle.")] = 6,
    cameras: int = 6,
    as_json: Json = False,
) -> None:
    """Make a made-up archive with labels. Example: clvr generate s3://archive --models 50"""
    from clvr_model.datasets.synthetic import ArchiveSpec
    from jobs.demo import make_archive

    spec = ArchiveSpec(
        seed=seed,
        models=models,
        vehicles_per_model=vehicles,
        sightings_per_vehicle=sightings,
        cameras=cameras,
    )
    summary = make_archive(archive, spec)
    _emit(summary, as_json, f"{summary.crops:,} crops in {archive}")


@app.command()
def train(
    data: Annotated[
        str, typer.Argument(help="VehicleID folder, folder of class folders, or CSV/Parquet table.")
    ],
    to: Annotated[str, typer.Option("--to", help="URI of the checkpoint to write.")],
    recipe: Annotated[str, typer.Option(help="paper, demo, or a YAML file.")] = "paper",
    override: Annotated[list[str] | None, typer.Option("--set", help="e.g. stage2.epochs=5")] = None,
    weights: Annotated[
        str, typer.Option(help="Start: a local .pth/.safetensors, hf:NAME, or the word random.")
    ] = "hf:timm/inception_v3.tv_in1k",
    workers: Annotated[int, typer.Option(help="Ray Train workers.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="One GPU a worker.")] = False,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Fit the CLVR classifier on vehicle models. Example: clvr train data/VehicleID --to models/clvr"""
    from jobs.train import TrainRequest, train_checkpoint

    request = TrainRequest(data, to, recipe, tuple(override or ()), weights, workers, gpu)
    result = train_checkpoint(request, _settings(ray=ray))
    _emit(
        result, as_json, f"checkpoint {to}: accuracy {result.accuracy:.1%}, fingerprint {result.fingerprint}"
    )


@app.command()
def embed(
    archive: Annotated[str, typer.Argument(help="The archive: s3://bucket/prefix or a folder.")],
    model: Annotated[str, typer.Option(help="URI of the checkpoint.")],
    runs: Annotated[str | None, typer.Option("--to", "--runs", help="URI of the folder of runs.")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run (default: the time).")] = None,
    key_pattern: Annotated[
        str | None, typer.Option(help="e.g. dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="CSV/Parquet: key or uri, vehicle_id, model_id.")] = None,
    actors: Annotated[int | None, typer.Option(help="Model actors (default: one a core).")] = None,
    precision: Annotated[Literal["fp32", "bf16", "auto"], typer.Option(help="Of the network.")] = "fp32",
    max_quarantine_rate: Annotated[float, typer.Option(help="Stop above this share of bad pictures.")] = 0.01,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Embed an archive into a run. Example: clvr embed s3://archive --model models/clvr --to s3://runs"""
    from jobs.embed import EmbedRequest
    from jobs.embed import embed as embed_archive

    request = EmbedRequest(
        archive=archive,
        model=model,
        key_pattern=key_pattern,
        labels=labels,
        run_id=run_id,
        actors=actors,
        precision=precision,
        max_quarantine_rate=max_quarantine_rate,
    )
    summary = embed_archive(request, _settings(runs=runs, ray=ray))
    _emit(summary, as_json, f"run {summary.run_id} is finished; next: clvr load {summary.run_id}")


@app.command()
def load(
    run: RunIds,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    index_type: Annotated[str, typer.Option(help="auto, FLAT, HNSW, IVF_FLAT, IVF_SQ8, …")] = "auto",
    as_json: Json = False,
) -> None:
    """Build a generation from runs, beside the live one. Example: clvr load latest"""
    from jobs.load import load_generation

    generation = load_generation(run, _settings(runs=runs, milvus=milvus, alias=alias), index_type=index_type)
    _emit(generation, as_json, f"generation {generation.name} is built; next: clvr promote {generation.name}")


@app.command()
def promote(
    generation: Annotated[str, typer.Argument(help="Generation, or `latest`.")] = "latest",
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    new_model: Annotated[bool, typer.Option(help="The live generation is of another model.")] = False,
    force: Annotated[
        str | None, typer.Option(help="Promote against the gate; the reason is recorded.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a generation and point the alias to it. Example: clvr promote latest"""
    from jobs.load import promote_generation

    settings = _settings(runs=runs, milvus=milvus, alias=alias)
    report = promote_generation(generation, settings, new_model=new_model, force=force)
    _emit(report, as_json, f"{report.generation} is live as {report.alias}; next: clvr search PICTURE")


@app.command()
def rollback(runs: Runs = None, milvus: Milvus = None, alias: Alias = None, as_json: Json = False) -> None:
    """Point the alias back to the previous generation. Example: clvr rollback"""
    from jobs.load import rollback_generation

    generation = rollback_generation(_settings(runs=runs, milvus=milvus, alias=alias))
    _emit(generation, as_json, f"{generation.name} is live again")


@app.command()
def generations(runs: Runs = None, milvus: Milvus = None, alias: Alias = None, as_json: Json = False) -> None:
    """List the generations and who is live. Example: clvr generations"""
    from jobs.load import as_documents, generation_rows, rows_text

    rows = generation_rows(_settings(runs=runs, milvus=milvus, alias=alias))
    _emit(as_documents(rows), as_json, rows_text(rows))


@app.command()
def search(
    picture: Annotated[str, typer.Argument(help="A picture: a file or s3://…")],
    model: Annotated[str | None, typer.Option(help="Checkpoint (default: the one the run names).")] = None,
    top: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    camera: Annotated[list[str] | None, typer.Option(help="Only these cameras.")] = None,
    not_camera: Annotated[list[str] | None, typer.Option(help="Not these cameras.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="ISO time, UTC.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="ISO time, UTC.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the rank strip as a page.")] = None,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    as_json: Json = False,
) -> None:
    """Find where a vehicle was seen. Example: clvr search probe.jpg --top 10 --html ranks.html"""
    from jobs.search import SearchRequest, search_picture

    request = SearchRequest(
        picture, model, top, tuple(camera or ()), tuple(not_camera or ()), since, until, html
    )
    found = search_picture(request, _settings(runs=runs, milvus=milvus, alias=alias))
    _emit(found, as_json, found.table())


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Run id in --runs, or `latest`.")],
    runs: Runs = None,
    labels: Annotated[str | None, typer.Option(help="CSV/Parquet: key or uri, vehicle_id.")] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="vehicleid-paper, vehicleid-common, leave-one-out")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 10,
    seed: int = 0,
    html: Annotated[Path | None, typer.Option(help="Write the report page.")] = None,
    as_json: Json = False,
) -> None:
    """CMC of a run by exact L2. Example: clvr evaluate latest --protocol vehicleid-paper --html cmc.html"""
    from jobs.evaluate import EvaluateRequest, evaluate_run

    protocols = tuple(protocol or ("vehicleid-paper", "vehicleid-common"))
    result = evaluate_run(EvaluateRequest(run, labels, protocols, repeats, seed, html), _settings(runs=runs))
    _emit(result.figures(), as_json, result.table())


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="Run id in --runs, or `latest`.")] = "latest",
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Prove a run's counts: listed = embedded + quarantined + duplicates. Example: clvr status latest"""
    from jobs.status import run_status

    report = run_status(run, _settings(runs=runs))
    _emit(report, as_json, str(report))


@app.command("config")
def show_config(as_json: Json = False) -> None:
    """Show every setting, its value and where it came from. Example: clvr config"""
    rows = origins(file=_config)
    text = "\n".join(f"{row.name:16} {row.value:28} {row.origin:16} {row.description}" for row in rows)
    _emit([asdict(row) for row in rows], as_json, text)


def main() -> None:
    """Entry point of the console script."""
    app()
