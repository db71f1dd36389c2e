"""`python -m evaluator aggregate`: one table of many runs, over games, variants and seeds."""

import argparse
import json
from string import ascii_uppercase
from typing import Any

from common.cli import UsageError
from common.text import format_interval, format_number
from evaluator.commands.files import require_new_path, write_new_directory, write_new_file
from evaluator.commands.rescoring import rescore
from evaluator.output.text import print_table
from evaluator.studies.figures import plots
from evaluator.studies.page import render_page
from evaluator.studies.runs import find_runs
from evaluator.studies.selection import add_published, select
from evaluator.studies.summary import frames_text, played_text, runs_text, summarize

Summary = dict[str, Any]


def run(options: argparse.Namespace) -> None:
    """Prints the tables, or writes them as JSON or a page; UsageError if the runs cannot be compared."""
    if options.output is not None:
        require_new_path(options.output)
    if options.plots is not None:
        require_new_path(options.plots, "--plots")
        if options.output is not None and options.output.resolve() == options.plots.resolve():
            raise UsageError(f"--output and --plots are both {options.plots}; choose another name for one of them")
    runs, left_out = find_runs(options.paths)
    if options.rescore:
        selection = rescore(runs, options.split, options.at, options.episodes_per_level)
    else:
        selection = select(runs, options.split, options.at, require_equal_evaluations=True)
    selection.notes[:0] = left_out
    if options.published:
        add_published(selection)
    summary = summarize(selection, options.ranges)
    try:  # what may have taken hours is printed before anything that can fail
        if options.json:
            print(json.dumps(summary))
        else:
            print_summary(summary)
    finally:  # also if the reader of a pipe ends early, as `head` does
        _write_files(options, summary)
    for written in (options.output, options.plots):
        if written is not None and not options.json:
            print(written)


def _write_files(options: argparse.Namespace, summary: Summary) -> None:
    """The page and the plots; UsageError if they cannot be written."""
    if options.output is not None:
        write_new_file(options.output, render_page(summary).encode(errors="backslashreplace"))
    if options.plots is not None:
        files = {f"{name}.png": data for name, data in plots(summary).items()}
        write_new_directory(options.plots, files, "--plots")


def print_summary(summary: Summary) -> None:
    """The tables, the comparisons and what was left out. Tables name variants by letters, so that they fit."""
    variants: dict[str, Summary] = summary["variants"]
    letters = {variant: _letter(index) for index, variant in enumerate(variants)}
    print(
        f"{summary['split']} levels, {summary['distribution_mode']}, newest score at or before {summary['at']:,} "
        f"frames; normalized by the ranges `{summary['ranges']}`; 95 % intervals over seeds\n"
        f"played by each run: {played_text(summary)}"
    )
    print_table(
        ("", "variant", "runs", "frames/s", "parameters"),
        [
            (
                *(letters[variant], variant, str(own["runs"])),
                format_number(own["frames_per_second"], ",.0f"),
                format_number(own["parameters"], ",d"),
            )
            for variant, own in variants.items()
        ],
        left=("", "variant"),
        folded=("variant",),
    )
    print_table(
        ("", "IQM", "mean", "optimality gap"),
        [
            (letters[variant], *(_number(own[name]) for name in ("iqm", "mean", "optimality_gap")))
            for variant, own in variants.items()
        ],
        left=("",),
    )
    print_table(
        ("game", "", "seeds", "frames", "return", "95 % interval", "normalized", "95 % interval "),
        [
            (game, letters[variant], *_numbers_of_game(own["games"][game]))
            for game in summary["games"]
            for variant, own in variants.items()
        ],
        left=("game", ""),
        folded=("frames",),
    )
    _print_comparisons(summary["comparisons"], letters)
    for note in summary["notes"]:
        print(f"note: {note}")


def _print_comparisons(comparisons: list[Summary], letters: dict[str, str]) -> None:
    """One as a sentence, several as a table."""
    if len(comparisons) == 1:
        (only,) = comparisons
        improvement = _number(only["probability_of_improvement"], ".2f")
        print(f"{only['says']}. Probability that {only['second']} is better than {only['first']}: {improvement}")
    if len(comparisons) > 1:
        rows = [
            (
                f"{letters[each['second']]} - {letters[each['first']]}",
                _number(each["iqm_difference"], "+.3f"),
                _number(each["probability_of_improvement"], ".2f"),
                runs_text(each["runs"], each["paired"]),
                each["verdict"],
            )
            for each in comparisons
        ]
        print_table(("pair", "IQM difference", "P(better)", "runs", "verdict"), rows, left=("pair", "verdict"))
        print("B - A is about B: its IQM minus that of A, and the probability that a run of B is better than one of A")


def _numbers_of_game(game: Summary) -> tuple[str, ...]:
    """Seeds, frames, the mean return and the normalized one with their intervals."""
    return (
        str(len(game["seeds"])),
        frames_text(game["frames"]),
        f"{game['mean']:.2f}",
        format_interval(game["interval"]),
        f"{game['normalized']:.3f}",
        format_interval(game["normalized_interval"], ".3f"),
    )


def _letter(index: int) -> str:
    """A to Z, then A2 to Z2 and so on."""
    turn, place = divmod(index, len(ascii_uppercase))
    return ascii_uppercase[place] + (str(turn + 1) if turn else "")


def _number(entry: Summary, spec: str = ".3f") -> str:
    """`0.412 [0.380, 0.444]`, or only the value without an interval."""
    ends = entry["interval"]
    return f"{entry['value']:{spec}}" + (f" [{ends[0]:{spec}}, {ends[1]:{spec}}]" if ends else "")
