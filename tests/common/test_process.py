"""What inherited environment variables do to our processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.process import (
    EMBEDDED_RAY_VARIABLES,
    prepare_matplotlib,
    prepare_ray_environment,
    replaced_variables,
    unexpected_ray_variables,
)

PROJECT = Path(__file__).parents[2]
DRAW = """
from common.process import prepare_matplotlib
prepare_matplotlib()
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import io
figure = Figure()
figure.subplots().set_title("$x^2$")
FigureCanvasAgg(figure).print_png(io.BytesIO())
"""


@pytest.fixture(autouse=True)
def environment_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MPLBACKEND", "module://matplotlib_inline.backend_inline"),  # as Jupyter sets it
        ("MPLBACKEND", "nosuch"),
        ("MATPLOTLIBRC", "{rc}"),
        ("MPLCONFIGDIR", "{rc}"),
        ("MPLCONFIGDIR", "/dev/null/none"),
        ("HOME", "/dev/null"),
    ],
)
def test_figures_are_drawn_whatever_the_user_has_set_for_matplotlib(variable, value, tmp_path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: nosuch\n")
    environment = {**os.environ, variable: value.format(rc=tmp_path), "PATH": "/nonexistent"}  # without LaTeX
    drawn = subprocess.run([sys.executable, "-c", DRAW], env=environment, cwd=PROJECT, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr


def test_matplotlibrc_in_the_current_directory_is_not_used(tmp_path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\n")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PATH": "/nonexistent"}
    program = DRAW.replace("import io", "import io, matplotlib, evaluator.output.plot")
    program += "assert matplotlib.rcParams['font.size'] == 10, matplotlib.rcParams['font.size']"
    drawn = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert drawn.returncode == 0, drawn.stderr


def test_matplotlib_creates_no_cache_below_the_current_directory(tmp_path) -> None:
    environment = {**os.environ, "HOME": "relative", "PYTHONPATH": str(PROJECT)}
    environment.pop("XDG_CACHE_HOME", None)
    drawn = subprocess.run([sys.executable, "-c", DRAW], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr
    assert list(tmp_path.iterdir()) == []


def test_users_matplotlib_settings_are_replaced() -> None:
    os.environ["MPLBACKEND"] = "TkAgg"
    prepare_matplotlib()
    assert (os.environ["MPLBACKEND"], os.environ["MATPLOTLIBRC"]) == ("agg", "/dev/null")


@pytest.mark.parametrize("embedded", [True, False])
def test_variables_of_another_ray_are_removed_for_an_embedded_one(embedded: bool) -> None:
    os.environ.update(dict.fromkeys(EMBEDDED_RAY_VARIABLES, "left by another project"))
    prepare_ray_environment(embedded)
    left = EMBEDDED_RAY_VARIABLES.keys() & os.environ.keys()
    assert left == (set() if embedded else EMBEDDED_RAY_VARIABLES.keys())


@pytest.mark.parametrize(("name", "value"), [("PYTHONWARNINGS", "error"), ("PYTHONOPTIMIZE", "2")])
def test_variables_that_break_rays_processes_do_not_reach_them(name: str, value: str) -> None:
    os.environ[name] = value
    prepare_ray_environment()
    assert name not in os.environ


@pytest.mark.parametrize(("chosen", "used"), [(None, "0"), ("5", "5")])
def test_workers_have_the_learners_priority_unless_the_user_chose_another(chosen: str | None, used: str) -> None:
    name = "RAY_worker_niceness"
    os.environ.pop(name, None)
    if chosen is not None:
        os.environ[name] = chosen
    prepare_ray_environment()
    assert os.environ[name] == used


def test_ray_variables_that_heldout_does_not_know_are_named() -> None:
    inherited = {"RAY_ROTATION_MAX_BYTES": "x", "RAY_ADDRESS": "auto", "RAY_RUNTIME_ENV_HOOK": "a.b", "HOME": "/"}
    assert unexpected_ray_variables(inherited, embedded=True) == ["RAY_ROTATION_MAX_BYTES"]
    assert unexpected_ray_variables(inherited, embedded=False) == ["RAY_ROTATION_MAX_BYTES", "RAY_RUNTIME_ENV_HOOK"]


def test_variables_that_are_not_used_are_named() -> None:
    inherited = {"MPLBACKEND": "TkAgg", "RAY_JOB_ID": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "error"}
    assert replaced_variables(inherited, embedded=True) == ["MPLBACKEND", "PYTHONWARNINGS", "RAY_JOB_ID"]
    assert replaced_variables({"MPLBACKEND": "agg"}, embedded=True) == []
