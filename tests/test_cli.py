"""The command line as people and programs meet it: exit codes, one JSON document, plain lines, no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from rewound.cli import app

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
TINY = ["epochs=2", "until=2 rounds", "seeds=1", "workers=1", "techniques=[fine-tuning, lr-rewinding]"]
TINY = [part for setting in TINY for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rewound(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def finished_experiment(tmp_path_factory):
    """The folder of a small finished experiment; copy it before changing anything."""
    place = tmp_path_factory.mktemp("experiment") / "tiny"
    done = rewound("run", *TINY, "--folder", place)
    assert done.exit_code == 0, done.output
    return place


def python(code, *words):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)


# ---- light on its feet ----------------------------------------------------------------------------


def test_help_imports_neither_torch_nor_pydantic():
    code = (
        "import sys; from typer.testing import CliRunner; from rewound.cli import app; "
        "shown = CliRunner().invoke(app, ['--help']); assert shown.exit_code == 0, shown.output; "
        "print({'torch', 'numpy', 'pydantic', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    assert python(code).stdout == "set()\n"


def test_every_command_is_in_the_help():
    shown = rewound("--help").output
    assert all(name in shown for name in ("run", "plan", "doctor", "new", "verify"))


def test_a_finished_experiment_costs_no_torch_the_second_time(finished_experiment):
    code = (
        "import sys; from typer.testing import CliRunner; from rewound.cli import app; "
        "done = CliRunner().invoke(app, ['run', sys.argv[1] + '/recipe.toml', '--json']); "
        "assert done.exit_code == 0, done.output; print('torch' in sys.modules)"
    )
    found = python(code, str(finished_experiment))
    assert found.stdout == "False\n", found.stderr


def test_the_version_is_printed():
    assert rewound("--version").output.startswith("rewound ")


# ---- run ------------------------------------------------------------------------------------------


def test_run_without_a_recipe_is_the_demonstration(tmp_path):
    done = rewound("run", *TINY)
    assert done.exit_code == 0, done.output
    assert "validation accuracy" in done.stdout
    assert "search cost" in done.stdout
    assert "\x1b" not in done.output
    place = tmp_path / "rewound-demo"
    assert {"recipe.toml", "results.json", "table.md", "picture.png", "arms"} <= {
        p.name for p in place.iterdir()
    }
    assert "epochs = 2\n" in (place / "recipe.toml").read_text()
    results = json.loads((place / "results.json").read_text())
    assert [(a["technique"], len(a["rounds"])) for a in results["arms"]] == [
        ("fine-tuning", 3),
        ("lr-rewinding", 3),
    ]
    assert all(set(arm["test"]) == {"loss", "accuracy"} for arm in results["arms"])


def test_run_as_json_is_one_document_and_progress_goes_elsewhere(tmp_path):
    done = rewound("run", *TINY, "--json", "--folder", tmp_path / "here")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "here" / "results.json").read_text())
    assert "fine-tuning, seed 0: finished" in done.stderr


def test_a_second_seed_joins_what_is_there(tmp_path):
    rewound("run", *TINY)
    first = tmp_path / "rewound-demo" / "arms" / "fine-tuning" / "seed-0.json"
    written = first.stat().st_mtime_ns
    done = rewound("run", *TINY, "--set", "seeds=2", "--json")
    assert [arm["seed"] for arm in json.loads(done.stdout)["arms"]] == [0, 0, 1, 1]
    assert first.stat().st_mtime_ns == written


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference():
    rewound("run", *TINY)
    done = rewound("run", *TINY, "--set", "rate=0.5")
    assert done.exit_code == 2
    assert "rate: 0.2 there, 0.5 here" in done.stderr


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    done = rewound("run", *TINY, "--folder", "photos")
    assert done.exit_code == 2
    assert "holds no experiment" in done.stderr
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_folder_that_cannot_be_made_is_named():
    done = rewound("run", *TINY, "--folder", "/proc/nowhere/out")
    assert done.exit_code == 2
    assert "cannot write to /proc/nowhere/out" in done.stderr
    assert "choose another --folder" in done.stderr


def test_a_moved_folder_with_a_task_of_ones_own_goes_on_and_holds(tmp_path):
    rewound("new", "mine.py")
    assert rewound("run", *TINY, "--set", "task=mine.py:Mine", "--folder", "there").exit_code == 0
    shutil.move("there", "elsewhere")
    (tmp_path / "mine.py").unlink()
    assert str(tmp_path) not in (tmp_path / "elsewhere" / "recipe.toml").read_text()
    held = rewound("verify", "elsewhere", "--json")
    assert held.exit_code == 0, held.output
    assert all("replay" in [c["name"] for c in run["checks"]] for run in json.loads(held.stdout)["runs"])
    again = rewound("run", "elsewhere")
    assert again.exit_code == 0, again.output
    assert "All of it was finished before; another --folder begins anew." in again.stdout
    more = rewound("run", "elsewhere", "--set", "seeds=2")
    assert more.exit_code == 0, more.output
    assert (tmp_path / "elsewhere" / "arms" / "fine-tuning" / "seed-1.json").is_file()
    assert not (tmp_path / "there").exists()


def test_two_processes_on_one_experiment_are_one_too_many(tmp_path):
    from rewound.experiment.store import locked

    rewound("run", *TINY)
    with locked(tmp_path / "rewound-demo"):
        done = rewound("run", *TINY, "--set", "seeds=2")
    assert done.exit_code == 1
    assert "another process is running the experiment" in done.stderr


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("untill=3", "unknown key 'untill' (did you mean 'until'?)"),
        ("techniques=lr-rewindin", "did you mean 'lr-rewinding'?"),
        ("techniques=[fine-tuning, fine-tuning]", "names one of them twice"),
        ("task=digit", "did you mean 'digits'?"),
        ("task=gone.py:Gone", "gone.py"),
        ("task_options.hiden=[8]", "hiden"),
        ("criterion=magnitud", "did you mean 'magnitude'?"),
        ("allocation=globl", "did you mean 'global'?"),
        ("pattern=wait", "unknown pattern 'wait'"),
        ("until=soon", "soon"),
        ("scope.exclude=nothing.like.it", "nothing.like.it"),
        ("techniques=lr-rewinding:9ep", "9"),
        ("until=acc drops 0.1", "'until' stops by 'acc', which task 'digits' does not measure; did you mean"),
        ("task_options.lr=fast", "option 'lr' of task 'digits' must be a number (got 'fast')"),
    ],
)
def test_what_a_recipe_gets_wrong_is_said_before_anything_is_written(setting, says, tmp_path):
    done = rewound("run", *TINY, "--set", setting)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_errors_are_a_json_document_too_and_debug_shows_the_traceback():
    done = rewound("run", "nope.toml", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["type"] == "FileNotFoundError"
    assert "Traceback" in rewound("run", "nope.toml", "--debug").stderr


def test_a_failing_arm_loses_nothing_else_and_is_tried_again(tmp_path):
    rewound("new", "mine.py")
    text = (tmp_path / "mine.py").read_text()
    luck = (
        "        import os\n"
        "        if seed == 1 and os.path.exists('bad-luck'):\n"
        "            raise OSError('no luck')\n"
    )
    place = "    def batches(self, epoch: int, seed: int, round: int = 0):\n"
    assert place in text
    (tmp_path / "mine.py").write_text(text.replace(place, place + luck))
    (tmp_path / "bad-luck").touch()
    words = ["run", *TINY, "--set", "task=mine.py:Mine", "--set", "seeds=2", "--folder", "out"]
    done = rewound(*words)
    assert done.exit_code == 1
    assert "fine-tuning, seed 1 failed: OSError: no luck" in done.stderr
    assert "2 of 4 arms did not finish" in done.stdout
    (tmp_path / "bad-luck").unlink()
    assert rewound(*words).exit_code == 0
    assert rewound("verify", "out").exit_code == 0


def test_without_matplotlib_the_table_still_comes(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = rewound("run", *TINY)
    assert done.exit_code == 0, done.output
    assert "search cost" in done.stdout
    assert "There is no picture: the picture needs matplotlib: pip install 'rewound[tasks]'" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('metric = "accuracy"', 'metric = "acuracy"', "did you mean 'accuracy'?"),
        (
            "[self.metric], self.loss)",
            '["f1"], self.loss)',
            "'accuracy', which its evaluate() does not return",
        ),
        ("return evaluate(", "return 0.5 #", "must return a dict of numbers (got float)"),
        ("return batches(", "return iter(()) #", "has no data to train on"),
        ("import torch\n", "import torch\n  oops\n", "IndentationError: unexpected indent (mine.py, line"),
        (
            "nn.Linear(2, 64)",
            "nn.Linear(3, 64)",
            "cannot be multiplied (32x2 and 3x64) (--debug shows where)",
        ),
    ],
)
def test_what_a_task_gets_wrong_is_said_before_anything_is_written(old, new, says, tmp_path):
    rewound("new", "mine.py")
    text = (tmp_path / "mine.py").read_text()
    assert old in text
    (tmp_path / "mine.py").write_text(text.replace(old, new, 1))
    done = rewound("run", *TINY, "--set", "task=mine.py:Mine")
    assert done.exit_code in (1, 2), done.output
    assert says in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["mine.py"]


def test_equal_failures_are_told_once_and_numbers_that_are_none_are_null_in_json(tmp_path):
    words = ["run", *TINY, "--set", "task_options.lr=1e30", "--json"]
    done = rewound(*words)
    assert done.exit_code == 1
    assert done.stderr.count("(and so did lr-rewinding, seed 0)") == 1
    json.loads((tmp_path / "rewound-demo" / "results.json").read_text(), parse_constant=pytest.fail)


def test_a_metric_that_is_no_number_still_ends_in_a_table(tmp_path):
    rewound("new", "mine.py")
    text = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace("return evaluate(", "return {'accuracy': float('nan')} #"))
    done = rewound("run", *TINY, "--set", "task=mine.py:Mine", "--folder", "out")
    assert done.exit_code == 0, done.output
    assert "The validation accuracy was no number in any round" in done.stdout
    assert "There is no picture: there is nothing to draw" in done.stdout
    json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.filterwarnings("default")  # as outside of tests
def test_a_collapsed_layer_is_said_in_a_line_without_the_places_of_python():
    done = rewound("run", *TINY, "--set", "until=0.001", "--set", "rate=one-shot")
    assert done.exit_code == 0, done.output
    assert "fine-tuning, seed 0: round 1: nothing survives in" in done.stdout
    assert "UserWarning" not in done.output
    assert "In 2 runs nothing survived of some tensor (layer collapse)" in done.stdout


def test_a_dense_control_is_a_recipe_like_any_other():
    done = rewound("run", *TINY, "--set", "rate=0")
    assert done.exit_code == 0, done.output
    assert "1 (retrained)" in done.stdout
    assert "this is a dense control" in done.stdout


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_being_told_to_end_is_met_like_ctrl_c(name, code, monkeypatch):
    number = getattr(signal, name)
    monkeypatch.setattr(
        "rewound.experiment.runner.run_experiment", lambda *_: os.kill(os.getpid(), number) or time.sleep(60)
    )
    done = rewound("run", *TINY)
    assert done.exit_code == code
    assert done.stderr == "Stopped. What was done is kept; the same command goes on from there.\n"
    assert signal.getsignal(number) is signal.SIG_DFL


def test_output_that_nobody_reads_ends_in_one_sentence():
    code = "import sys; from rewound.cli import main; sys.argv = ['rewound', 'plan']; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert errors == "Stopped: nobody reads the output any more. The same command goes on from there.\n"


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_the_same_command_goes_on(tmp_path):
    recipe = tmp_path / "long.toml"
    recipe.write_text(
        'techniques = ["fine-tuning", "lr-rewinding"]\nseeds = 1\nepochs = 10\nuntil = "8 rounds"\n'
    )
    words = [sys.executable, "-m", "rewound", "run", str(recipe)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        lines = iter(process.stdout.readline, "")
        begun = {next((line for line in lines if "began" in line), "") for _ in range(2)}
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert begun == {"fine-tuning, seed 0: began\n", "lr-rewinding, seed 0: began\n"}, errors
    assert process.returncode == 130
    assert errors.strip() == "Stopped. What was done is kept; the same command goes on from there."
    assert not (tmp_path / "runs/long/results.json").exists()
    # a worker left behind would still hold its folder, and this would fail
    again = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    straight = rewound("run", recipe, "--folder", "straight", "--json", "--set", "workers=1")
    there, here = (
        json.loads(text)["arms"]
        for text in ((tmp_path / "runs/long/results.json").read_text(), straight.stdout)
    )
    for arm in (*there, *here):
        for done in arm["rounds"]:
            assert done.pop("seconds") > 0
    assert [arm["rounds"] for arm in there] == [arm["rounds"] for arm in here]
    assert [arm["test"] for arm in there] == [arm["test"] for arm in here]


# ---- the others -----------------------------------------------------------------------------------


def test_plan_says_what_it_will_cost_and_writes_nothing(tmp_path):
    shown = rewound("plan", *TINY)
    assert shown.exit_code == 0, shown.output
    assert "fine-tuning: 2 + 2 x 2 = 6 epochs a seed" in shown.stdout
    assert "In all 2 runs, 12 epochs of search" in shown.stdout
    assert "at the most" not in shown.stdout
    stops = rewound("plan", *TINY, "--set", "until=accuracy drops 0.1").stdout
    assert stops.count("at the most") == 3
    plan = json.loads(rewound("plan", *TINY, "--json").stdout)
    assert plan["total_epochs"] == 12
    assert plan["techniques"][1]["densities"] == pytest.approx([0.8, 0.64], abs=1e-3)
    assert plan["disk_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_plan_of_gradual_pruning_is_one_training():
    shown = rewound("plan", *TINY, "--set", "techniques=gradual", "--set", "epochs=6", "--no-measure")
    assert shown.exit_code == 2  # it needs a density
    words = [*TINY, "--set", "techniques=gradual", "--set", "epochs=6", "--set", "until=0.1", "--no-measure"]
    lines = rewound("plan", *words).stdout.splitlines()
    assert lines[3].startswith("gradual: 6 epochs a seed, pruned 4 times within them, before epochs 1 to 4, ")
    assert lines[-1].startswith("In all 1 run, 6 epochs of search")


def test_plan_says_about_how_long_it_will_take_unless_told_not_to_measure(tmp_path):
    last = rewound("plan", *TINY).stdout.splitlines()[-1]
    assert last.startswith("About ")
    assert re.search(r" on 1 worker of this machine \(measured: \d+ (epoch|step)s? of ", last)
    grid = ["--set", "grid.rate=[0.2, 0.5]", "--json"]
    for words in (["--json"], grid):
        plan = json.loads(rewound("plan", *TINY, *words).stdout)
        assert 0 < plan["estimate"]["seconds"] == plan["estimate"]["work_seconds"]
        assert "estimate" not in json.loads(rewound("plan", *TINY, *words, "--no-measure").stdout)
    assert "About" not in rewound("plan", *TINY, "--no-measure").stdout
    assert list(tmp_path.iterdir()) == []


def test_the_plan_holds():
    plan = json.loads(rewound("plan", *TINY, "--json").stdout)
    results = json.loads(rewound("run", *TINY, "--json").stdout)
    for planned, arm in zip(plan["techniques"], results["arms"]):
        assert planned["total_epochs"] == arm["search_cost"]["epochs"]
        assert planned["densities"] == [r["density"] for r in arm["rounds"][1:]]


def test_the_demonstration_is_the_one_that_was_promised():
    from rewound.experiment.demonstration import DEMONSTRATION
    from rewound.experiment.recipe import read_recipe

    assert read_recipe(RECIPES / "demonstration.toml") == DEMONSTRATION
    plan = json.loads(rewound("plan", "--json").stdout)
    assert [one["technique"] for one in plan["techniques"]] == [
        "fine-tuning",
        "weight-rewinding",
        "lr-rewinding",
    ]
    assert plan["seeds"] == [0, 1, 2]
    assert all(one["rounds"] >= 10 for one in plan["techniques"])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_recipe_can_be_planned(path):
    shown = rewound("plan", path)
    if path.stem in ("fashion-mnist", "translation") and shown.exit_code == 2:
        assert f"{path.stem} is not there: get" in shown.stderr  # its data do not come with a package
    else:
        assert shown.exit_code == 0, shown.output


def test_doctor_finds_this_machine_fit():
    found = json.loads(rewound("doctor", "--json").stdout)
    assert found["healthy"]
    assert " 0 revived weights" in found["self_check"]["says"]
    assert found["data"]["digits"] == "found, with scikit-learn"
    lines = rewound("doctor")
    assert lines.exit_code == 0
    assert "check    passed" in lines.stdout


def test_doctor_says_where_a_data_set_lies_or_what_to_get(tmp_path, monkeypatch):
    (tmp_path / "sets" / "imagenet" / "train").mkdir(parents=True)
    (tmp_path / "sets" / "imagenet" / "val").mkdir()
    monkeypatch.setenv("REWOUND_DATA", str(tmp_path / "sets"))
    data = json.loads(rewound("doctor", "--json").stdout)["data"]
    assert data["imagenet"] == f"found in {tmp_path / 'sets' / 'imagenet'}"
    assert data["cifar-10"].startswith("not there: get CIFAR-10")


def test_doctor_fails_where_pruned_weights_come_back(monkeypatch):
    idle = SimpleNamespace(check=lambda: None, remove=lambda: None)
    monkeypatch.setattr("rewound.guarding.guard", lambda *_: idle)
    done = rewound("doctor", "--json")
    assert done.exit_code == 1
    check = json.loads(done.stdout)["self_check"]
    assert not check["passed"]
    assert "revived weights" in check["says"]


def test_doctor_says_how_to_get_a_missing_extra(monkeypatch):
    from rewound.experiment import doctor

    monkeypatch.setitem(doctor.EXTRAS, "huggingface", {"no_such_module": "no-such-package"})
    assert "missing: no-such-package; pip install 'rewound[huggingface]'" in rewound("doctor").stdout


def test_new_writes_a_task_and_a_recipe_that_run(tmp_path):
    assert rewound("new", "my_task.py").exit_code == 0
    assert rewound("new", "recipe.toml").exit_code == 0
    done = rewound("run", "recipe.toml", *TINY, "--set", "task=my_task.py:MyTask", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["task"]["name"] == "my_task"
    assert rewound("plan", "recipe.toml").exit_code == 0


def test_a_task_edited_in_mid_run_is_refused(tmp_path):
    """Not only once an arm has its result: states of the old task must not go on under the new one."""
    assert rewound("new", "my_task.py").exit_code == 0
    assert rewound("new", "recipe.toml").exit_code == 0
    command = ["run", "recipe.toml", *TINY, "--set", "task=my_task.py:MyTask", "--folder", "here"]
    assert rewound(*command).exit_code == 0
    for result in (tmp_path / "here").glob("arms/*/*.json"):  # as if the run had been killed before its end
        result.unlink()
    with open("my_task.py", "a") as file:
        file.write("\n# edited\n")
    done = rewound(*command)
    assert done.exit_code == 2
    assert "my_task.py has changed since the runs in here began" in done.stderr.replace("\n", " ")
    assert rewound("run", "here").exit_code == 0  # the folder's own copy of the task goes on


def test_new_never_overwrites(tmp_path):
    (tmp_path / "my_task.py").write_text("mine")
    done = rewound("new", "my_task.py")
    assert done.exit_code == 2
    assert "already there" in done.stderr
    assert (tmp_path / "my_task.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["task.yaml", "my-task.py", "gone/task.py"])
def test_new_says_what_it_can_write(name):
    assert rewound("new", name).exit_code == 2


def test_verify_tells_sound_from_altered(finished_experiment, tmp_path):
    place = shutil.copytree(finished_experiment, tmp_path / "copy")
    assert rewound("verify", place).exit_code == 0
    mask = next(place.glob("arms/*/seed-0/rounds/01/mask-*.pt"))
    mask.write_bytes(mask.read_bytes()[:-1])
    done = rewound("verify", place, "--json")
    assert done.exit_code == 1
    assert not json.loads(done.stdout)["passed"]
    assert mask.name in rewound("verify", place).stdout
    assert rewound("verify", tmp_path / "nowhere").exit_code == 2
