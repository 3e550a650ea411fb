"""Measure what a request and a streamed chunk cost: with Tokenweir, without it, and with what stands beside it.

Real Envoy, Valkey and processors; a load generator and an upstream in C. Envoy, load and upstream run on one core,
the processor and Valkey on another. All variants run in turn in each round. A figure counts only if every answer
was checked and the ledger has exactly the admitted requests and their tokens.
"""

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import documents
from benchmarks.errors import CannotRunError
from benchmarks.fleet import running
from benchmarks.forms import FORMS, FULL, QUICK, Form
from benchmarks.litellm_proxy import installed
from benchmarks.machine import describe, two_cores
from benchmarks.measuring import Meter, Sample
from benchmarks.picture import picture
from benchmarks.programs import CACHE, compiled
from benchmarks.report import Results, as_json, by_reason, markdown
from benchmarks.variants import Chosen, Kind, all_variants, choose
from extproc.local.errors import LocalError

COUNTS: Final = 0
DOES_NOT_COUNT: Final = 1
CANNOT_RUN: Final = 3
INTERRUPTED: Final = 130
_IDLE_S: Final = 2.0

_EPILOG = """examples:
  make bench                                       the quick form, in less than 3 minutes
  make bench FORM=--full                           all variants and rates, five rounds; an hour at the most
  make bench FORM="--variants jwt,'tokenweir-*'"   some variants, by name or pattern
  make bench FORM="--variants envoy,tokenweir-grpc-reserve-2,litellm --rounds 5"
  make bench FORM="--full --docs"                  and write the tables and the picture of docs/performance.md
  make bench FORM=--list                           the names of all variants

exit status:
  0    every figure counts, but for those that a variant can't have by its design; the tables name them
  1    some figures do not count; the tables say which, and why
  2    a wrong argument
  3    it can't run here: a part is missing, or there are fewer than two cores
  130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.list:
        print("\n".join(f"{each.name:28} {each.title}" for each in all_variants()))
        return COUNTS
    form = FULL if arguments.full else FORMS[arguments.form]
    if arguments.rounds is not None:
        form = replace(form, rounds=arguments.rounds)
    try:
        results = asyncio.run(_run(form, _names(arguments.variants), _command(argv)))
    except (CannotRunError, LocalError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return CANNOT_RUN
    except KeyboardInterrupt:
        return INTERRUPTED
    _write(results, arguments)
    if results.disturbed:
        print(f"other programs took {results.foreign_cores:.2f} of the cores meanwhile", file=sys.stderr)
    return COUNTS if results.counts else DOES_NOT_COUNT


async def _run(form: Form, patterns: list[str], command: str) -> Results:
    cores, programs, machine = two_cores(), compiled(), describe()
    chosen = choose(patterns, quick=form.name != FULL.name)
    began = time.monotonic()

    def report(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

    for why, names in by_reason(chosen.left_out).items():
        report(f"not run: {', '.join(names)}: {why}")
    chosen = await _with_litellm(chosen, report)
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="tokenweir-bench-") as folder:
        report(f"starting {len(chosen.run)} variants")
        async with running(chosen.run, programs, cores, Path(folder)) as fleet:
            chosen = chosen.without(fleet.failed)
            meter = Meter(fleet)
            idle = await meter.idle(_IDLE_S)
            new = {variant.stack for variant in chosen.run}
            for number in range(form.rounds):
                for variant in chosen.run:
                    steps = (*form.steps, *form.first) if variant.stack in new else form.steps
                    new.discard(variant.stack)
                    taken = await meter.turn(variant, steps, number)
                    samples += taken
                    report(f"round {number + 1} of {form.rounds}: {variant.name}: {_brief(taken)}")
    return Results(command, form, machine, chosen.run, chosen.left_out, samples, idle)


async def _with_litellm(chosen: Chosen, report: Callable[[str], None]) -> Chosen:
    """Install LiteLLM if it was asked for; leave it out if that fails."""
    if not any(each.kind is Kind.LITELLM for each in chosen.run):
        return chosen
    report("installing LiteLLM's proxy, if it is not there yet")
    try:
        await asyncio.to_thread(installed)
    except CannotRunError as error:
        report(str(error))
        return chosen.without({"litellm": str(error)})
    return chosen


def _brief(samples: list[Sample]) -> str:
    peak = samples[0]
    said = f"{peak.load['ok'] / peak.load['seconds']:,.0f} requests/s"
    problems = [why for sample in samples if not sample.expected for why in sample.problems]
    return f"{said}; does not count: {problems[0]}" if problems else said


def _write(results: Results, arguments: argparse.Namespace) -> None:
    tables, drawn, data = markdown(results), picture(results), json.dumps(as_json(results), indent=1)
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(data, encoding="utf-8")
    (folder / "results.md").write_text(tables, encoding="utf-8")
    (folder / "results.svg").write_text(drawn, encoding="utf-8")
    if arguments.docs:
        documents.write(tables, drawn)
    print(data if arguments.json else tables)
    print(f"results.json, results.md and results.svg are in {folder}", file=sys.stderr)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _command(argv: Sequence[str] | None) -> str:
    given = [each for each in (sys.argv[1:] if argv is None else argv) if each not in {"--docs", "--json"}]
    if "--output" in given:  # says nothing about how it was measured
        del given[given.index("--output") :][:2]
    if not given:
        return "make bench"
    return f'make bench FORM="{shlex.join(given)}"'


def _rounds(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError("1 to 100 rounds")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="all variants and rates, longer, more rounds")
    parser.add_argument("--form", choices=sorted(FORMS), default=QUICK.name, help=argparse.SUPPRESS)
    parser.add_argument("--variants", default="", metavar="NAMES", help="names or patterns, separated by commas")
    parser.add_argument("--rounds", type=_rounds, help="instead of the form's number")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of the tables")
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md and docs/performance.svg")
    parser.add_argument("--output", type=Path, default=CACHE / "results", metavar="FOLDER", help="for the results")
    parser.add_argument("--list", action="store_true", help="list the variants, and do nothing else")
    return parser


if __name__ == "__main__":
    sys.exit(main())
