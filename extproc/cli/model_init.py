"""Define `tokenweir model init`: write a new values file, by flags or by questions."""

import shlex
import sys
from typing import Annotated, Any

import typer

from extproc.cli import model_files, model_wizard, output
from extproc.cli.root import Json
from extproc.onboarding import charts, checking, drafting, files, writing
from extproc.onboarding.drafting import Answers, Kind
from extproc.onboarding.errors import OnboardingError, PartMissing
from extproc.onboarding.problem import Problem
from extproc.onboarding.questions import QUESTIONS
from extproc.terminal.tables import visible

EXAMPLES = """
Examples:

    tokenweir model init

    tokenweir model init qwen --storage hf://Qwen/Qwen2.5-7B-Instruct --publish --audience llm --max-replicas 4
    --requests-per-sa 100 --tokens service_account:200000/day --canary-storage hf://Qwen/Qwen3-8B

    tokenweir model init iris --kind sklearn --storage s3://models/iris --helmrelease -o apps/iris.yaml
"""


def init(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The release's name. Without it, the command asks.")
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="The server's kind. By default derived from the storage or the image.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URI", help="The model's address: hf://, s3://, gs://, pvc://.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="An image of your own.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, max=64, help="GPUs per pod; LLMs: 1.")] = None,
    cpu: Annotated[str | None, typer.Option(help="CPU per pod; LLMs: 4, otherwise 1.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory per pod; LLMs: 24Gi, otherwise 2Gi.")] = None,
    replicas: Annotated[int, typer.Option(min=1, max=1000, help="Minimum number of pods.")] = 1,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Maximum number of pods; without a target, scales on the queue (LLMs) or CPU."
        ),
    ] = None,
    target_cpu: Annotated[int | None, typer.Option(min=1, help="Scale on CPU, percent of the request.")] = None,
    target_memory: Annotated[int | None, typer.Option(min=1, help="Scale on memory, percent.")] = None,
    target_gpu: Annotated[
        int | None, typer.Option(min=1, max=100, help="Scale on GPU utilisation, percent.")
    ] = None,
    target_rate: Annotated[float | None, typer.Option(help="Scale on requests per second and pod.")] = None,
    target_queue: Annotated[float | None, typer.Option(help="Scale on vLLM's queue, per pod.")] = None,
    publish: Annotated[bool, typer.Option("--publish/--inside", help="For callers outside the mesh.")] = False,
    audience: Annotated[
        list[str] | None, typer.Option(help="Audience that tokens must have; may be repeated.")
    ] = None,
    requests_per_sa: Annotated[
        int | None, typer.Option(min=0, help="Requests per minute and service account.")
    ] = None,
    requests_per_ip: Annotated[int | None, typer.Option(min=0, help="Requests per minute and client IP.")] = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE:AMOUNT/WINDOW", help="Token limit of this model; may be repeated."),
    ] = None,
    canary_storage: Annotated[
        str | None, typer.Option(metavar="URI", help="A canary's model, to begin with.")
    ] = None,
    canary_image: Annotated[str | None, typer.Option(help="A canary's image, to begin with.")] = None,
    primary_load: Annotated[
        int, typer.Option(min=0, max=100, help="Percentage of requests for the primary.")
    ] = 90,
    chart: model_files.Chart = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="The release's namespace.")] = "default",
    helmrelease: Annotated[
        bool, typer.Option("--helmrelease", help="Write a Flux HelmRelease with the values.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="By default values.yaml, a HelmRelease NAME.yaml; `-`: stdout."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Json = False,
) -> None:
    """Write a model's values file. Without a name, asks questions in a terminal.

    The file has only the values that you gave, without defaults. The command checks it and prints the next steps.
    """
    given: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "chart": model_files.checked(chart),
        "kind": kind,
        "storage": storage,
        "image": image,
        "gpus": gpus,
        "cpu": cpu,
        "memory": memory,
        "replicas": replicas,
        "max_replicas": max_replicas,
        "target_cpu": target_cpu,
        "target_memory": target_memory,
        "target_gpu": target_gpu,
        "target_rate": target_rate,
        "target_queue": target_queue,
        "publish": publish,
        "audiences": audience,
        "requests_per_ip": requests_per_ip,
        "requests_per_sa": requests_per_sa,
        "token_limits": tokens,
        "canary_storage": canary_storage,
        "canary_image": canary_image,
        "primary_load": primary_load,
    }
    if name is None:
        if not sys.stdin.isatty():
            raise OnboardingError("the model needs a name: tokenweir model init NAME --storage hf://org/model")
        if out or not helmrelease:
            writing.free(out or "values.yaml", force=force)  # before twenty questions, not after them
        answers = drafting.answers_from(model_wizard.asked(given))
    else:
        answers = drafting.answers_from(_with_defaults(given))
    text = drafting.draft_helmrelease(answers) if helmrelease else drafting.draft(answers)
    file = out or (f"{answers.name}.yaml" if helmrelease else "values.yaml")
    found = _problems(text, answers, file)
    if file == files.STDIN:
        typer.echo(text, nl=False)
    else:
        writing.create(file, text, force=force)
    if json and file != files.STDIN:
        output.as_json({"file": file, "chart": answers.chart, "problems": found})
        return
    _next(file, answers, found, helmrelease=helmrelease)


def _with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Suggest CPU and memory by kind: KServe's own default of 1 CPU and 2Gi is too small for an LLM."""
    answers = drafting.answers_from(given)
    suggested = {
        question.name: question.suggestion({"kind": answers.kind})
        for question in QUESTIONS
        if question.name in {"gpus", "cpu", "memory"}
    }
    return given | {name: value for name, value in suggested.items() if given.get(name) is None}


def _problems(text: str, answers: Answers, file: str) -> list[Problem]:
    model = files.one(text, file)
    try:
        # The platform's values are in another place, so don't report values that only they can set.
        return checking.problems(model.chart, model.values, answers.name, answers.namespace, elsewhere=True)
    except PartMissing as missing:
        output.note(f"Not checked: {missing}")
        return []


def _next(file: str, answers: Answers, found: list[Problem], *, helmrelease: bool) -> None:
    for each in found:
        output.note(f"{each.level.value}: {each.path}{': ' if each.path else ''}{each.message} ({each.fix})")
    if file == files.STDIN:
        return
    typer.echo(visible(f"Wrote {file}: {answers.kind} by the chart {answers.chart}."))
    output.note("Next:")
    named = shlex.quote(file if not file.startswith("-") else f"./{file}")
    output.note(f"  tokenweir model validate {named}")
    output.note(f"  tokenweir model explain {named}")
    if helmrelease:
        output.note("  commit it: Flux brings it to the cluster")
    else:
        chart = shlex.quote(str(charts.chart_path(answers.chart)))
        output.note(f"  helm upgrade --install {answers.name} {chart} -n {answers.namespace} -f {named}")
