"""The roof: thin commands over ``rewound.experiment``, and how answers and errors reach people and programs.

Exit codes: 0 done, 1 a run failed or a verification did, 2 bad usage or a bad recipe, 130 stopped by Ctrl-C.
With ``--json`` standard output holds one JSON document and nothing else. Nothing heavy is imported before it
is needed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="rewound",
    help="Prune neural networks by rewinding: fine-tuning, weight rewinding, learning-rate rewinding.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
RecipePath = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RECIPE.toml]",
        show_default=False,
        help="A recipe, or an experiment's folder; left out: the demonstration on real digits.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as until=20x; may be repeated."),
]
FolderOption = Annotated[str | None, typer.Option("--folder", help="Where results go.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"rewound {installed('rewound')}")
        raise typer.Exit


@app.command()
def run(
    recipe: RecipePath = None,
    set_: Overrides = None,
    folder: FolderOption = None,
    on: Annotated[
        str, typer.Option("--on", help="local, dask:ADDRESS of a scheduler, or slurm:KEY=VALUE,...")
    ] = "local",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run an experiment or a grid, or go on with it; without a recipe, the demonstration (a minute or two)."""
    with _answering(as_json, debug), _ended_by_signals():
        from rewound.experiment.findings import caution
        from rewound.experiment.runner import draw_picture, run_experiment
        from rewound.experiment.screen import progress, show_table
        from rewound.experiment.table import counted, make_table

        asked = _recipe(recipe, set_, folder)
        if hasattr(asked, "runs"):
            _run_grid(asked, on, as_json, debug)
            return
        if not as_json:
            runs = f"{counted(len(asked.techniques), 'technique')} x {counted(len(asked.seeds), 'seed')}"
            print(f"{asked.name}: {runs} on {asked.task}, into {asked.place}", flush=True)
        trained = False

        def show(labels: Sequence[str], epochs: Sequence[int], metric: str) -> Any:
            nonlocal trained
            trained = True
            return progress(labels, epochs, metric, sys.stderr if as_json else sys.stdout)

        results = run_experiment(asked, show, on)
        picture = draw_picture(asked.place, results)
        failed = [arm for arm in results["arms"] if arm["status"] != "finished"]
        if as_json:
            _print_json(results)
        elif len(failed) < len(results["arms"]):
            print("" if trained else "All of it was finished before; another --folder begins anew.\n")
            show_table(make_table(results), sys.stdout)
            print("\n" + "\n".join([*results["findings"], *caution(results)]))
            print(f"\n{picture}\nEverything is in {asked.place}; check it with: rewound verify {asked.place}")
        if failed:
            _tell_failures(failed, debug)
            raise typer.Exit(1)


@app.command()
def plan(
    recipe: RecipePath = None,
    set_: Overrides = None,
    folder: FolderOption = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure", help="Train for a moment, in memory, to estimate the time; or do not."
        ),
    ] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what would be trained, what it would cost and about how long it would take; nothing is written."""
    with _answering(as_json, debug):
        from rewound.experiment.arms import task_keeper
        from rewound.experiment.estimate import estimate_experiment, estimate_grid

        asked, tasks = _recipe(recipe, set_, folder), task_keeper()
        if hasattr(asked, "runs"):
            from rewound.experiment.grid_plan import as_lines, plan_grid

            found = plan_grid(asked, tasks)
            if measure:
                found["estimate"] = estimate_grid(asked, tasks, found)
        else:
            from rewound.experiment.plan import as_lines, make_plan

            found = make_plan(asked, tasks(asked))
            if measure:
                found["estimate"] = estimate_experiment(asked, tasks(asked), found)
        _tell(found, as_lines, as_json)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Look at this machine: versions, devices, extras, data, and a self-check of a few seconds."""
    with _answering(as_json, debug):
        from rewound.experiment.doctor import as_lines, examine

        found = examine()
        _tell(found, as_lines, as_json)
        if not found["healthy"]:
            raise typer.Exit(1)


@app.command()
def new(
    path: Annotated[
        Path, typer.Argument(help="my_task.py for a task of your own, recipe.toml for a recipe.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a task or a recipe to begin from; never overwrites."""
    with _answering(as_json, debug):
        from rewound.experiment.new import write_new

        says = write_new(path)
        _tell({"path": str(path), "next": says}, lambda found: [found["next"]], as_json)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A run's folder, an experiment's or a grid's.")],
    replay: Annotated[bool, typer.Option(help="Train the last epoch again and compare to the bit.")] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a finished run again: checksums, masks, zeros, densities, and the last epoch replayed."""
    with _answering(as_json, debug):
        from rewound.experiment.verify import as_lines, verify_folder

        if not as_json:
            print(f"checking {folder}", flush=True)
        found = verify_folder(folder, replay=replay)
        _tell(found, as_lines, as_json)
        if not found["passed"]:
            raise typer.Exit(1)


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder of a run, an experiment or a grid, a .pt2 file, or module:function that returns (model, example)."
        ),
    ],
    runtimes: Annotated[
        list[str] | None,
        typer.Option(
            help="torch, torch.compile, onnxruntime, openvino, engine; may be repeated. Default: all."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of every runtime.")] = 1,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="A batch size; may be repeated. Default: 1, or the example's own."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns that every runtime gets.")] = 15,
    out: Annotated[Path | None, typer.Option(help="A file for the JSON document too.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a network in several runtimes, side by side: latency, memory, load time, and what the zeros bring."""
    with _answering(as_json, debug):
        from rewound.experiment.networks import find_network
        from rewound.experiment.store import write_json
        from rewound.measure.bench.compare import compare

        network, example, name = find_network(model)
        found = compare(
            network,
            example,
            runtimes=runtimes or None,
            batches=batch or None,
            threads=threads,
            rounds=rounds,
            name=name,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        if out is not None:
            write_json(out, found.to_dict())
        _tell(found.to_dict(), lambda _: [str(found)], as_json)


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="A folder of a finished run (GRID/runs/KEY), an experiment or a grid.")
    ],
    engine: Annotated[Path | None, typer.Option(help="Where the sparse engine's file goes.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Where plain weights go (safetensors).")] = None,
    technique: Annotated[str | None, typer.Option(help="Only networks of this technique.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only networks of this seed.")] = None,
    within: Annotated[
        float, typer.Option(help="Of several networks, the smallest that lost at most so much of its metric.")
    ] = 0.01,
    threads: Annotated[int, typer.Option(help="Threads of the engine while it is checked and measured.")] = 1,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the latency too, beside torch.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a finished run's network as an engine's file, checked against the model before it is kept."""
    with _answering(as_json, debug):
        from rewound.experiment.export import as_lines
        from rewound.experiment.export import export as write

        found = write(
            run,
            engine=engine,
            weights=weights,
            technique=technique,
            seed=seed,
            within=within,
            threads=threads,
            measure=measure,
        )
        _tell(found, as_lines, as_json)


@app.command()
def index(
    folder: Annotated[
        Path, typer.Argument(help="A grid's folder, an experiment's, or one that holds several.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make the index of runs and rounds, for SQL, anew from the folders; every run of a grid does so too."""
    with _answering(as_json, debug):
        from rewound.experiment.index import as_lines, counts, rebuild_index

        _tell(counts(rebuild_index(folder)), as_lines, as_json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Experiments' folders, or folders that hold some.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page's file.")] = Path("report.html"),
    overlay: Annotated[
        Path | None, typer.Option(help="A CSV of published points, to be drawn behind one's own.")
    ] = None,
    bench: Annotated[
        list[Path] | None, typer.Option(help="What 'rewound bench --out' wrote; may be repeated.")
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show the page while runs go on, on this machine only; writes nothing."),
    ] = False,
    port: Annotated[int, typer.Option(help="Port of --watch; 0 takes a free one.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write what experiments showed as one page: figures, tables, costs and caveats, readable without a network."""
    with _answering(as_json, debug):
        from rewound.report.making import as_lines, live_page, write_report

        if watch:
            _watch(runs, live_page(runs, overlay=overlay, benches=bench or []), port, as_json)
        else:
            _tell(write_report(runs, out, overlay=overlay, benches=bench or []), as_lines, as_json)


def _watch(runs: list[Path], make: Callable[[str], str], port: int, as_json: bool) -> None:
    from rewound.report.watch import Live, serve, url_of

    with serve(Live(runs, make), port) as server:
        url = url_of(server)
        _tell({"url": url}, lambda _: [f"Live at {url} (this machine only); Ctrl-C ends it."], as_json)
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _run_grid(grid: Any, on: str, as_json: bool, debug: bool) -> None:
    from rewound.experiment.screen import progress
    from rewound.experiment.sweep import run_grid, summary
    from rewound.experiment.table import counted

    if not as_json:
        print(
            f"{grid.recipe.name}: a grid of {counted(len(grid.runs), 'run')}, into {grid.place}", flush=True
        )

    def show(labels: Sequence[str], epochs: Sequence[int], metric: str) -> Any:
        return progress(labels, epochs, metric, sys.stderr if as_json else sys.stdout)

    study = run_grid(grid, show, on=on, command=" ".join(["rewound", *sys.argv[1:]]))
    if as_json:
        _print_json(study)
    elif any(run["status"] == "finished" for run in study["runs"]):
        print("\n" + "\n".join(summary(study, grid.place)))
    failed = [run for run in study["runs"] if run["status"] != "finished"]
    if failed:
        _tell_failures([{**run, **run["cell"]} for run in failed], debug)
        raise typer.Exit(1)


def _recipe(path: Path | None, overrides: list[str] | None, folder: str | None) -> Any:
    from rewound.experiment.demonstration import DEMONSTRATION
    from rewound.experiment.grid import make_grid, read_grid
    from rewound.experiment.store import own_recipe

    chosen = [*(overrides or []), *([f"folder={json.dumps(folder)}"] if folder else [])]
    if path is None:
        return make_grid(DEMONSTRATION.model_dump(mode="json", exclude_none=True), chosen, origin="--set")
    path, goes_on = own_recipe(path)
    return read_grid(path, [*goes_on, *chosen])


def _tell_failures(failed: list[dict[str, Any]], debug: bool) -> None:
    """Say of each error once what it was, and whom it met."""
    met: dict[str, list[dict[str, Any]]] = {}
    for arm in failed:
        met.setdefault(arm["error"], []).append(arm)
    for error, arms in met.items():
        first, *others = [f"{arm['technique']}, seed {arm['seed']}" for arm in arms]
        likewise = f" (and so did {'; '.join(others)})" if others else ""
        print(f"{first} failed: {error}{likewise}", file=sys.stderr)
        if debug and arms[0].get("traceback"):
            print(arms[0]["traceback"], file=sys.stderr)
    where = "" if debug else "; with --debug it shows where"
    print(f"The same command goes on from there, with what failed tried again{where}.", file=sys.stderr)


def _tell(found: dict[str, Any], as_lines: Callable[[dict[str, Any]], list[str]], as_json: bool) -> None:
    if as_json:
        _print_json(found)
    else:
        print("\n".join(as_lines(found)))


def _print_json(found: Any) -> None:
    from rewound.experiment.store import as_json

    print(as_json(found))


class _Ended(KeyboardInterrupt):
    """A signal that asks the process to end, to be met like Ctrl-C: workers gone, one sentence, an exit code."""


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Meet SIGTERM, and SIGHUP of a closed terminal, like Ctrl-C; who ignores them (nohup) goes on to."""

    def end(number: int, _: Any) -> None:
        raise _Ended(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _answering(as_json: bool, debug: bool) -> Iterator[None]:
    """Turn an exception into one paragraph and an exit code; with --debug, into its traceback first."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be gone
            print("Stopped. What was done is kept; the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(128 + (stop.args[0] if isinstance(stop, _Ended) else signal.SIGINT)) from None
    except BrokenPipeError:
        with suppress(OSError):  # or Python would stumble once more, over what it could not flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(
            "Stopped: nobody reads the output any more. The same command goes on from there.", file=sys.stderr
        )
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        usage = isinstance(error, (ValueError, TypeError, OSError, ImportError, SyntaxError))
        known = usage or type(error) is RuntimeError  # its subclasses, such as RecursionError, are bugs
        ours = _raised_here(error)
        says = str(error) if known and ours and str(error) else f"{type(error).__name__}: {error}"
        if as_json:
            _print_json({"error": says, "type": type(error).__name__})
        hint = "" if (known and ours) or debug else " (--debug shows where)"
        print(f"rewound: {says}{hint}", file=sys.stderr)
        raise typer.Exit(2 if usage else 1) from None


def _raised_here(error: BaseException) -> bool:
    """Return whether this package raised it, so that its words were chosen for the reader; else it is torch's,
    or comes out of a file of the user's."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is None or Path(place.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def main() -> None:
    """The ``rewound`` command."""
    app()
