{{/*
Scaling: a KEDA ScaledObject or a HorizontalPodAutoscaler for each variant that has something to scale on. Their names
end in -scale, never in -predictor: those are KServe's, which would delete or overwrite them.
*/}}
{{- define "kserve-lib.autoscaling" -}}
{{- if include "kserve-lib.scales" . -}}
{{- $root := . -}}
{{- $max := include "kserve-lib.maxReplicas" . | int -}}
{{- $engine := (.Values.autoscaling).engine | default "keda" -}}
{{- include "kserve-lib.checkQueueTarget" . -}}
{{- range (include "kserve-lib.variants" . | fromYaml).variants }}
{{- if lt $max (int .replicas) }}
{{- fail (printf "autoscaling.maxReplicaCount (%d) is less than the %d pods that %s starts with: raise it, or lower %s" $max (int .replicas) .isvc (ternary "canary.replicaCount or replicaCount" "replicaCount" (eq .name "canary"))) }}
{{- end }}
---
{{ include (printf "kserve-lib.%s" (ternary "horizontalPodAutoscaler" "scaledObject" (eq $engine "hpa"))) (dict "root" $root "variant" . "max" $max) }}
{{- end }}
{{- end -}}
{{- end -}}

{{/*
The targets that count, as YAML: {cpu, memory, requestRate, gpu, queue}. A GPU target counts only where there is a GPU.
*/}}
{{- define "kserve-lib.scaleTargets" -}}
{{- $given := .Values.autoscaling | default dict -}}
{{- $targets := dict -}}
{{- range $name, $key := dict "cpu" "targetCPUUtilizationPercentage" "memory" "targetMemoryUtilizationPercentage" "requestRate" "targetRequestRate" "gpu" "targetGPUUtilizationPercentage" "queue" "targetQueueDepth" -}}
{{- with get $given $key }}{{ $_ := set $targets $name . }}{{ end -}}
{{- end -}}
{{- if not (include "kserve-lib.hasGPU" .) }}{{ $_ := unset $targets "gpu" }}{{ end -}}
{{- toYaml $targets -}}
{{- end -}}

{{/* "true" where a GPU target is left out because no pod has a GPU: the notes say so. */}}
{{- define "kserve-lib.gpuTargetLeftOut" -}}
{{- if and (.Values.autoscaling).targetGPUUtilizationPercentage (not (include "kserve-lib.hasGPU" .)) -}}true{{- end -}}
{{- end -}}

{{/* "true" where there is anything to scale on. */}}
{{- define "kserve-lib.scales" -}}
{{- if include "kserve-lib.scaleTargets" . | fromYaml -}}true{{- end -}}
{{- end -}}

{{/*
Annotation of the InferenceService: who owns the number of pods. `external`: whoever scales; KServe leaves it alone.
`none`: KServe, which sets it to the component's minReplicas and nothing else does. (With `external` and nobody to
scale, the Deployment would have 1 pod, whatever minReplicas says.)
*/}}
{{- define "kserve-lib.autoscalingAnnotations" -}}
serving.kserve.io/autoscalerClass: {{ ternary "external" "none" (eq (include "kserve-lib.scales" .) "true") }}
{{- end -}}

{{/* Fails where a queue is to be scaled on that there is no metric of. */}}
{{- define "kserve-lib.checkQueueTarget" -}}
{{- if (.Values.autoscaling).targetQueueDepth -}}
{{- if eq ((.Values.autoscaling).engine | default "keda") "hpa" -}}
{{- fail "autoscaling.targetQueueDepth needs autoscaling.engine: keda; prometheus-adapter has no rule for it" -}}
{{- end -}}
{{- if not (include "kserve-lib.isVLLM" .) -}}
{{- fail "autoscaling.targetQueueDepth is vLLM's queue, and this model isn't served by vLLM (format huggingface or vllm, or a container with a vLLM image; for an image of another name say inferenceservice.protocol: openai): scale on targetRequestRate instead" -}}
{{- end -}}
{{- if not (include "kserve-lib.metricsEnabled" .) -}}
{{- fail "autoscaling.targetQueueDepth reads the model's own metrics: metrics.enabled must not be false" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" where vLLM serves, as far as one can tell. KServe's huggingface server is vLLM unless told otherwise. */}}
{{- define "kserve-lib.isVLLM" -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- $predictor := (.Values.inferenceservice).predictor | default dict -}}
{{- $image := $source.image | default "" | lower -}}
{{- with $predictor.containers }}{{ $image = (first .).image | default "" | lower }}{{ end -}}
{{- $arguments := ($predictor.model).args | default list | join " " -}}
{{- if contains "vllm" $image -}}true
{{- else if eq $source.kind "containers" -}}
{{- $others := "(sglang|text-generation-inference|lmdeploy|llama[.-]?cpp|ollama|tensorrt)" -}}
{{- if and (eq (include "kserve-lib.protocol" .) "openai") (not (regexMatch $others $image)) -}}true{{- end -}}
{{- else if has (include "kserve-lib.server" .) (list "huggingface" "vllm") -}}
{{- if not (regexMatch "--backend[= ]huggingface" $arguments) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds that a lower need must last. 0 is a value, not an absent one. */}}
{{- define "kserve-lib.stabilization" -}}
{{- $seconds := dig "scaleDownStabilizationSeconds" 300 (.Values.autoscaling | default dict) -}}
{{- ternary 300 $seconds (kindIs "invalid" $seconds) | int -}}
{{- end -}}

{{/* A number without an exponent: 1000000 rather than 1e+06. */}}
{{- define "kserve-lib.threshold" -}}
{{- if eq (float64 .) (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* (dict "root" "variant" "max") */}}
{{- define "kserve-lib.scaledObject" -}}
{{- $targets := include "kserve-lib.scaleTargets" .root | fromYaml -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "kserve-lib.meta" (dict "root" .root "name" (print .variant.isvc "-scale")) | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .variant.isvc }}-predictor
  pollingInterval: {{ (.root.Values.autoscaling).pollingInterval | default 15 | int }}
  minReplicaCount: {{ int .variant.replicas }}
  maxReplicaCount: {{ .max }}
  advanced:
    horizontalPodAutoscalerConfig:
      name: {{ .variant.isvc }}-keda
      behavior:
        scaleDown:
          stabilizationWindowSeconds: {{ include "kserve-lib.stabilization" .root }}
  triggers:
    {{- range $resource := list "cpu" "memory" }}
    {{- with get $targets $resource }}
    - type: {{ $resource }}
      metricType: Utilization
      metadata:
        containerName: kserve-container
        value: {{ int . | quote }}
    {{- end }}
    {{- end }}
    {{- range $metric := list "requestRate" "gpu" "queue" }}
    {{- with get $targets $metric }}
    - type: prometheus
      name: {{ $metric | kebabcase }}
      {{- /* Each query gives the sum over the pods; what one pod should have is the threshold. */}}
      metricType: AverageValue
      useCachedMetrics: true
      metadata:
        serverAddress: {{ ($.root.Values.platform).prometheusUrl | default "http://prometheus-server.infra.svc.cluster.local" | quote }}
        query: >-
          {{- include (printf "kserve-lib.%sQuery" $metric) $ | trim | nindent 10 }}
        threshold: {{ include "kserve-lib.threshold" . | quote }}
        {{- /* No answer is not 0: while Prometheus sees nothing, the number of pods stays. */}}
        ignoreNullValues: "false"
    {{- end }}
    {{- end }}
{{- end -}}

{{/* (dict "root" "variant" "max") */}}
{{- define "kserve-lib.horizontalPodAutoscaler" -}}
{{- $targets := include "kserve-lib.scaleTargets" .root | fromYaml -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "kserve-lib.meta" (dict "root" .root "name" (print .variant.isvc "-scale")) | nindent 2 }}
  annotations:
    {{- /* Else KEDA's webhook refuses its own ScaledObject while Helm changes from this engine to that. */}}
    validations.keda.sh/hpa-ownership: "false"
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .variant.isvc }}-predictor
  minReplicas: {{ int .variant.replicas }}
  maxReplicas: {{ .max }}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {{ include "kserve-lib.stabilization" .root }}
  metrics:
    {{- range $resource := list "cpu" "memory" }}
    {{- with get $targets $resource }}
    - type: ContainerResource
      containerResource:
        name: {{ $resource }}
        container: kserve-container
        target:
          type: Utilization
          averageUtilization: {{ int . }}
    {{- end }}
    {{- end }}
    {{- range $target, $metric := dict "requestRate" "requests_per_second" "gpu" "gpu_utilization" }}
    {{- with get $targets $target }}
    - type: Pods
      pods:
        metric:
          name: {{ $metric }}
        target:
          type: AverageValue
          averageValue: {{ include "kserve-lib.averageValue" . | quote }}
    {{- end }}
    {{- end }}
{{- end -}}

{{/* A number as Kubernetes writes quantities. */}}
{{- define "kserve-lib.averageValue" -}}
{{- if eq (float64 .) (floor .) }}{{ int64 . }}{{ else }}{{ max 1 (int64 (round (mulf . 1000) 0)) }}m{{ end -}}
{{- end -}}

{{/*
A regular expression for the names of one variant's pods: Deployment, hash of the ReplicaSet (up to ten letters), five
letters. The letters are those that Kubernetes draws from, so that no other workload's name fits. It cuts what comes
before the five after 58 characters: of a long name's hash a part is left, and maybe no hyphen.
*/}}
{{- define "kserve-lib.podPattern" -}}
{{- $letter := "[bcdfghjklmnpqrstvwxz2456789]" -}}
{{- $start := printf "%s-predictor-" .isvc -}}
{{- if le (len $start) 47 -}}
{{- printf "%s%s{1,10}-%s{5}" $start $letter $letter -}}
{{- else -}}
{{- printf "%s%s{0,10}-?%s{5}" (trunc 58 $start) $letter $letter -}}
{{- end -}}
{{- end -}}

{{/*
Requests per second that reach the model, as its own sidecar counts them (reporter="destination"; the callers' sidecars
count them too). What the sidecar refuses costs the model nothing and must not scale it. Before the first request
there is no series: that is 0, but only where Prometheus does see pods.
(dict "root" "variant")
*/}}
{{- define "kserve-lib.requestRateQuery" -}}
{{- $namespace := .root.Release.Namespace -}}
sum(rate(istio_requests_total{reporter="destination",
destination_workload="{{ .variant.isvc }}-predictor",
destination_workload_namespace="{{ $namespace }}",
response_code!~"401|403|429"}[2m]))
or 0 * count(up{namespace="{{ $namespace }}", pod=~"{{ include "kserve-lib.podPattern" .variant }}"} == 1)
{{- end -}}

{{/*
The sum of the pods' GPU utilisation, each pod's the mean of its GPUs. The pod is in `pod` where Prometheus honours the
exporter's labels, else in `exported_pod`, and `pod` is the exporter's own.
(dict "root" "variant")
*/}}
{{- define "kserve-lib.gpuQuery" -}}
{{- $namespace := .root.Release.Namespace -}}
{{- $pods := include "kserve-lib.podPattern" .variant -}}
sum(avg by (exported_pod) (avg_over_time(DCGM_FI_DEV_GPU_UTIL{exported_namespace="{{ $namespace }}",
exported_pod=~"{{ $pods }}"}[1m])))
or sum(avg by (pod) (avg_over_time(DCGM_FI_DEV_GPU_UTIL{namespace="{{ $namespace }}",
pod=~"{{ $pods }}", exported_pod=""}[1m])))
{{- end -}}

{{/* Requests that wait in vLLM, of all engines of all pods. (dict "root" "variant") */}}
{{- define "kserve-lib.queueQuery" -}}
sum(vllm:num_requests_waiting{namespace="{{ .root.Release.Namespace }}",
pod=~"{{ include "kserve-lib.podPattern" .variant }}"})
{{- end -}}
