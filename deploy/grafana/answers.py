"""Ask Prometheus and the admin API what a dashboard asks, as Grafana would, and keep the answers."""

import json
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

Json = dict[str, Any]
_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class Shown:
    """Say what is shown: `seconds` until `at` (since the epoch), of namespaces and tenants (both as patterns)."""

    at: float
    seconds: float
    rate_s: float = 60.0
    namespace: str = ".*"
    tenant: str = ".*"
    points: int = 120

    @property
    def step_s(self) -> float:
        """Return the seconds between two points."""
        return max(1.0, self.seconds / self.points)

    def filled(self, text: str) -> str:
        """Return a text with Grafana's variables filled in."""
        text = text.replace("$__rate_interval", f"{self.rate_s:g}s").replace("$__range", f"{self.seconds:.0f}s")
        text = text.replace("${__from:date:YYYY-MM-DD}", _date(self.at - self.seconds))
        text = text.replace("${__to:date:YYYY-MM-DD}", _date(self.at))
        values = {"namespace": self.namespace, "tenant": self.tenant, "model": ".*"}
        return re.sub(r"\$(namespace|tenant|model)\b", lambda found: values[found[1]], text)


def key_of(target: Json) -> str:
    """Return the name of a query's answer: the query as the dashboard has it."""
    if "expr" in target:
        return ("now " if target.get("instant") else "") + str(target["expr"])
    parameters = "&".join(f"{each['key']}={each['value']}" for each in target["url_options"]["params"])
    return f"{target['url']}?{parameters}"


@dataclass(slots=True)
class Answers:
    """Hold the answers by `key_of`: Prometheus' result, or the rows of the admin API."""

    at: float
    seconds: float
    found: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> "Answers":
        """Read what `text` has written."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """Return the answers as JSON."""
        return json.dumps({"at": self.at, "seconds": self.seconds, "found": self.found}, indent=1) + "\n"

    def of(self, target: Json) -> list[Any]:
        """Return the answer to a query; nothing if it was not asked."""
        return self.found.get(key_of(target), [])


def ask(dashboard: Json, shown: Shown, prometheus: str, admin_api: str | None, token: str) -> Answers:
    """Ask all queries of a dashboard. Without an `admin_api`, its panels have no answers."""
    answers = Answers(shown.at, shown.seconds)
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            if "expr" in target:
                answers.found[key_of(target)] = _of_prometheus(target, shown, prometheus)
            elif admin_api is not None:
                answers.found[key_of(target)] = _of_the_admin_api(target, shown, admin_api, token)
    return answers


def _of_prometheus(target: Json, shown: Shown, url: str) -> list[Any]:
    asked = {"query": shown.filled(target["expr"])}
    if target.get("instant"):
        path, times = "query", {"time": f"{shown.at}"}
    else:
        start = f"{shown.at - shown.seconds}"
        path, times = "query_range", {"start": start, "end": f"{shown.at}", "step": f"{shown.step_s}"}
    result: list[Any] = _get(f"{url}/api/v1/{path}?{urllib.parse.urlencode(asked | times)}")["data"]["result"]
    return result


def _of_the_admin_api(target: Json, shown: Shown, url: str, token: str) -> list[Any]:
    asked = {each["key"]: shown.filled(each["value"]) for each in target["url_options"]["params"]}
    answer = _get(f"{url}{target['url']}?{urllib.parse.urlencode(asked)}", token)
    rows: list[Any] = answer[target["root_selector"]]
    return rows


def _get(url: str, token: str = "") -> Json:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_TIMEOUT_S) as answer:
        found: Json = json.loads(answer.read())
    return found


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"
