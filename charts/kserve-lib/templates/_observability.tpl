{{/*
Logs and metrics of a release. Templates here read values nil-safely: any section may be null.
*/}}

{{/*
KServe's logger for the predictor's spec, as YAML; empty where it is off.
Argument: the root.
*/}}
{{- define "kserve-lib.logger" -}}
{{- $logger := .Values.logger | default dict -}}
{{- if $logger.enabled -}}
{{- $url := $logger.url | default (.Values.platform).messageDumper -}}
{{- if not $url -}}
{{- fail "logger.enabled is true, but neither logger.url nor platform.messageDumper says where bodies go: set one of them, or logger.enabled: false" -}}
{{- end -}}
logger:
  mode: {{ $logger.mode | default "all" }}
  url: {{ $url | quote }}
{{- end -}}
{{- end -}}

{{/*
"true" where the model's own metrics are scraped, else empty. On unless it is said to be off: `metrics: null` is not.
*/}}
{{- define "kserve-lib.metricsEnabled" -}}
{{- $metrics := .Values.metrics | default dict -}}
{{- if ne (toString (dig "enabled" true $metrics)) "false" -}}true{{- end -}}
{{- end -}}

{{/*
The port that serves /metrics, unless metrics.port says another. Those of KServe's runtimes stand in their annotation
prometheus.kserve.io/port; a container of one's own has its first port.
*/}}
{{- define "kserve-lib.metricsPort" -}}
{{- $containers := ((.Values.inferenceservice).predictor).containers -}}
{{- if (.Values.metrics).port -}}
{{- (.Values.metrics).port | int -}}
{{- else if $containers -}}
{{- include "kserve-lib.firstPort" (first $containers) -}}
{{- else -}}
{{- get (dict "triton" "8002" "torchserve" "8082" "mlserver" "8082") (include "kserve-lib.server" .) | default "8080" -}}
{{- end -}}
{{- end -}}

{{/*
The first port of a container. Without one, KServe sends requests to 8080, so that is where it listens.
*/}}
{{- define "kserve-lib.firstPort" -}}
{{- $port := first (.ports | default (list dict)) | default dict -}}
{{- $port.containerPort | default 8080 | int -}}
{{- end -}}

{{/*
Annotations of the InferenceService, which KServe hands on to the pods: where metrics are.

Istio's sidecar reads prometheus.io/*, merges the model's metrics with its own, and puts port 15020 and
/stats/prometheus in their place: plain HTTP that mTLS and the policies for requests don't touch.
enable-prometheus-scraping is off on purpose: it makes KServe overwrite the port with that of Knative's queue-proxy,
which Standard mode has not.
*/}}
{{- define "kserve-lib.metricsAnnotations" -}}
serving.kserve.io/enable-prometheus-scraping: "false"
{{- if include "kserve-lib.metricsEnabled" . }}
{{- $port := include "kserve-lib.metricsPort" . }}
{{- $path := (.Values.metrics).path | default "/metrics" }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ $port | quote }}
prometheus.io/path: {{ $path | quote }}
prometheus.kserve.io/port: {{ $port | quote }}
prometheus.kserve.io/path: {{ $path | quote }}
{{- end }}
{{- end -}}

{{/* A PodMonitor and a Telemetry of the release. */}}
{{- define "kserve-lib.observability" -}}
{{- if or (.Values.platform).monitorLabels (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/PodMonitor") -}}
---
{{ include "kserve-lib.podMonitor" . }}
{{- end }}
---
{{ include "kserve-lib.telemetry" . }}
{{- end -}}

{{/*
Scrapes what Istio's sidecar merges of its own metrics and the model's. Made where Prometheus' operator is: where the
cluster has its API, or platform.monitorLabels is set. Without the operator, Prometheus finds the pods by their
annotations. The port isn't among the container's, so the address is written here; one target for each pod.
*/}}
{{- define "kserve-lib.podMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" .Release.Name "labels" (.Values.platform).monitorLabels) | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "kserve-lib.selectorLabels" . | nindent 6 }}
  podTargetLabels: [tokenweir.io/release]
  podMetricsEndpoints:
    - path: /stats/prometheus
      interval: 15s
      relabelings:
        - action: keep
          sourceLabels: [__meta_kubernetes_pod_container_name]
          regex: istio-proxy
        - action: replace
          sourceLabels: [__meta_kubernetes_pod_ip]
          regex: ([^:]+)
          targetLabel: __address__
          replacement: $1:15020
        - action: replace
          sourceLabels: [__meta_kubernetes_pod_ip]
          regex: (.*:.*)
          targetLabel: __address__
          replacement: "[$1]:15020"
{{- end -}}

{{/*
Istio's access log of what reaches the pods. Its line (host, method, path, code, duration, no bodies and no tokens) is
the provider's format; Telemetry can turn it on and off, not change it.
*/}}
{{- define "kserve-lib.telemetry" -}}
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" .Release.Name) | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "kserve-lib.selectorLabels" . | nindent 6 }}
  accessLogging:
    {{- if ne (toString (dig "enabled" true (.Values.accessLog | default dict))) "false" }}
    - match:
        mode: SERVER
      providers:
        - name: {{ (.Values.platform).accessLogProvider | default "envoy" | quote }}
    {{- else }}
    - disabled: true
    {{- end }}
{{- end -}}
