"""`python -m evaluator aggregate`: one table of many runs, over games, variants and seeds."""

import argparse
import json
from typing import Any

from common.text import format_interval, format_number
from evaluator.commands.files import require_new_path, write_new_directory, write_new_file
from evaluator.levels.level_sets import Split
from evaluator.output.text import print_table
from evaluator.studies.figures import plots
from evaluator.studies.page import render_page
from evaluator.studies.runs import find_runs
from evaluator.studies.selection import add_published, select
from evaluator.studies.summary import summarize

Summary = dict[str, Any]


def run(options: argparse.Namespace) -> None:
    """Prints the tables, or writes them as JSON or a page; UsageError if the runs cannot be compared."""
    if options.output is not None:
        require_new_path(options.output)
    if options.plots is not None:
        require_new_path(options.plots, "--plots")
    runs, at = find_runs(options.paths), options.at
    split: Split | None = options.split
    if options.rescore:
        from evaluator.commands.rescoring import rescore  # imports torch, which reading runs does not need

        split = split or "test"
        runs, at = rescore(runs, split, at, options.episodes_per_level)
    selection = select(runs, split, at, require_equal_evaluations=not options.rescore)
    if options.published:
        add_published(selection)
    summary = summarize(selection, options.ranges)
    if options.output is not None:
        write_new_file(options.output, render_page(summary).encode())
    if options.plots is not None:
        files = {f"{name}.png": data for name, data in plots(summary).items()}
        write_new_directory(options.plots, files, "--plots")
    if options.json:
        print(json.dumps(summary))
        return
    print_summary(summary)
    for written in (options.output, options.plots):
        if written is not None:
            print(written)


def print_summary(summary: Summary) -> None:
    """The tables, the comparisons and what was left out."""
    variants = summary["variants"]
    print(
        f"{summary['split']} levels, {summary['distribution_mode']}, newest score at or before {summary['at']:,} "
        f"frames; normalized by the ranges `{summary['ranges']}`; 95 % intervals over seeds"
    )
    rows = [
        (
            variant,
            str(own["runs"]),
            *(_number(own[name]) for name in ("iqm", "mean", "optimality_gap")),
            format_number(own["frames_per_second"], ",.0f"),
            format_number(own["parameters"], ",d"),
        )
        for variant, own in variants.items()
    ]
    columns = ("variant", "runs", "IQM", "mean", "optimality gap", "frames/s", "parameters")
    print_table(columns, rows, left=("variant",))
    by_game = [
        (
            game,
            variant,
            str(len(own["games"][game]["seeds"])),
            f"{own['games'][game]['frames'][1]:,}",
            f"{own['games'][game]['mean']:.2f}",
            format_interval(own["games"][game]["interval"]),
            f"{own['games'][game]['normalized']:.3f}",
            format_interval(own["games"][game]["normalized_interval"], ".3f"),
        )
        for game in summary["games"]
        for variant, own in variants.items()
    ]
    headings = ("game", "variant", "seeds", "frames", "return", "95 % interval", "normalized", "95 % interval ")
    print_table(headings, by_game, left=("game", "variant"))
    for comparison in summary["comparisons"]:
        improvement = comparison["probability_of_improvement"]
        print(
            f"{comparison['says']}. Probability that {comparison['second']} is better than {comparison['first']}: "
            f"{_number(improvement, '.2f')}"
        )
    for note in summary["notes"]:
        print(f"note: {note}")


def _number(entry: Summary, spec: str = ".3f") -> str:
    """`0.412 [0.380, 0.444]`, or only the value without an interval."""
    ends = entry["interval"]
    return f"{entry['value']:{spec}}" + (f" [{ends[0]:{spec}}, {ends[1]:{spec}}]" if ends else "")
