{{/*
How a pod of a model ends without cutting a stream. All times follow from one value, the pod's grace period: a pause in
which new requests still come, then the time that the server has for open streams, then 5 seconds to end.
*/}}

{{- define "kserve-lib.graceSeconds" -}}
{{- ((.Values.inferenceservice).predictor).terminationGracePeriodSeconds | default 300 | int64 -}}
{{- end }}

{{/*
Seconds between the decision to end a pod and SIGTERM: until then every Envoy should know that the pod is gone. A quarter
of the grace period, at most 15.
*/}}
{{- define "kserve-lib.pauseSeconds" -}}
{{- min 15 (div (include "kserve-lib.graceSeconds" . | int64) 4) -}}
{{- end }}

{{/*
The `lifecycle` of a serving container, as YAML: the user's, with a pause before SIGTERM where the user's has none.
(dict "root" $ "given" <the user's lifecycle>)
*/}}
{{- define "kserve-lib.lifecycle" -}}
{{- $all := deepCopy (.given | default dict) -}}
{{- $pause := include "kserve-lib.pauseSeconds" .root | int64 -}}
{{- if and (not (hasKey $all "preStop")) (gt $pause 0) -}}
{{- $_ := set $all "preStop" (dict "sleep" (dict "seconds" $pause)) -}}
{{- end -}}
{{- toYaml $all -}}
{{- end }}

{{/*
Seconds that a server has for open streams after SIGTERM. A preStop that runs a command may take any time: then as if it
were the chart's.
*/}}
{{- define "kserve-lib.drainSeconds" -}}
{{- $own := (((((.Values.inferenceservice).predictor).model).lifecycle).preStop).sleep | default dict -}}
{{- $pause := $own.seconds | default (include "kserve-lib.pauseSeconds" .) | int64 -}}
{{- max 0 (sub (sub (include "kserve-lib.graceSeconds" . | int64) $pause) 5) -}}
{{- end }}

{{/*
vLLM ends all open requests at SIGTERM unless it is told how long they may go on: the argument that says so, "" where the
user's arguments say it, or where the image may be older than vLLM 0.18, which does not know it.
*/}}
{{- define "kserve-lib.shutdownArg" -}}
{{- if and (eq (include "kserve-lib.server" .) "vllm") (ne (include "kserve-lib.kind" .) "multiModel") -}}
{{- $model := ((.Values.inferenceservice).predictor).model | default dict -}}
{{- $given := regexMatch "(^| )--shutdown[-_]timeout([= ]|$)" (join " " ($model.args | default list)) -}}
{{- $images := list -}}
{{- range (include "kserve-lib.variants" . | fromYaml).variants -}}
{{- with .image }}{{ $images = append $images . }}{{ end -}}
{{- end -}}
{{- $known := or (include "kserve-lib.ownRuntime" .) (hasPrefix "kserve-vllm" ($model.runtime | default "")) -}}
{{- if and (not $images) (include "kserve-lib.ownRuntime" .) }}{{ $images = list (include "kserve-lib.runtimeImage" .) }}{{ end -}}
{{- if and (not $images) (not $known) }}{{ $images = list "unknown" }}{{ end -}}
{{- $old := "" -}}
{{- range $images }}{{ if not (include "kserve-lib.drains" .) }}{{ $old = "true" }}{{ end }}{{ end -}}
{{- if and (not $given) (not $old) -}}
--shutdown-timeout={{ include "kserve-lib.drainSeconds" . }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* "true" where the tag of vLLM's image says 0.18 or later. */}}
{{- define "kserve-lib.drains" -}}
{{- $tag := regexFind ":[^/:@]+(@|$)" . -}}
{{- if regexMatch "^:(latest|nightly|v?([1-9][0-9]*[.][0-9]|0[.](1[89]|[2-9][0-9]|[1-9][0-9][0-9])([^0-9]|$)))" $tag }}true{{ end -}}
{{- end }}

{{/*
Annotations of the pods: Istio's sidecar ends when its last connection has ended, not 5 seconds after SIGTERM. The pod's
grace period bounds it.
*/}}
{{- define "kserve-lib.sidecarAnnotations" -}}
{{- $minimum := printf "%ds" (include "kserve-lib.pauseSeconds" . | int64 | max 1) -}}
{{- $metadata := dict "EXIT_ON_ZERO_ACTIVE_CONNECTIONS" "true" "MINIMUM_DRAIN_DURATION" $minimum -}}
proxy.istio.io/config: {{ dict "proxyMetadata" $metadata | toJson | quote }}
{{- end }}

{{/*
The predictor's `deploymentStrategy`, as YAML; empty: KServe's, which starts a new pod before it ends an old one. Where
GPUs are scarce (platform.gpu.surge: false) no new pod could start: the old one goes first.
*/}}
{{- define "kserve-lib.deploymentStrategy" -}}
{{- $given := ((.Values.inferenceservice).predictor).deploymentStrategy -}}
{{- $surge := dig "gpu" "surge" true (.Values.platform | default dict) -}}
{{- if $given -}}
{{- toYaml $given -}}
{{- else if and (eq (toString $surge) "false") (include "kserve-lib.hasGPU" .) -}}
type: RollingUpdate
rollingUpdate:
  maxSurge: 0
  maxUnavailable: 1
{{- end -}}
{{- end }}

{{/* A budget for each variant: a drain of nodes ends its pods one after the other. */}}
{{- define "kserve-lib.availability" -}}
{{- $budget := ((.Values.inferenceservice).predictor).podDisruptionBudget | default dict -}}
{{- if ne (toString (dig "enabled" true $budget)) "false" -}}
{{- $root := . -}}
{{- range (include "kserve-lib.variants" . | fromYaml).variants }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "kserve-lib.meta" (dict "root" $root "name" (print .isvc "-predictor")) | nindent 2 }}
spec:
  maxUnavailable: {{ $budget.maxUnavailable | default 1 }}
  # A pod that is not ready serves nobody: it never keeps a node from being drained.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      app: isvc.{{ .isvc }}-predictor
{{- end }}
{{- end -}}
{{- end }}

{{- define "kserve-lib.validateRollout" -}}
{{- $predictor := (.Values.inferenceservice).predictor | default dict -}}
{{- $grace := include "kserve-lib.graceSeconds" . | int64 -}}
{{- $serving := dict "inferenceservice.predictor.model" ($predictor.model | default dict) -}}
{{- range $index, $each := $predictor.containers }}{{ $_ := set $serving (printf "inferenceservice.predictor.containers[%d]" $index) $each }}{{ end -}}
{{- range $where, $each := $serving -}}
{{- $sleep := (((($each.lifecycle).preStop).sleep).seconds) | default 0 | int64 -}}
{{- if ge $sleep $grace -}}
{{- fail (printf "%s.lifecycle.preStop.sleep.seconds is %d, and inferenceservice.predictor.terminationGracePeriodSeconds %d: the pod would be killed before it may finish a request. Raise terminationGracePeriodSeconds, or lower the sleep" $where $sleep $grace) -}}
{{- end -}}
{{- end -}}
{{- with $predictor.deploymentStrategy -}}
{{- $where := "inferenceservice.predictor.deploymentStrategy" -}}
{{- if and (eq (.type | default "RollingUpdate") "Recreate") .rollingUpdate -}}
{{- fail (printf "%s.rollingUpdate has no meaning with type Recreate, and Kubernetes refuses both: remove one" $where) -}}
{{- end -}}
{{- $update := .rollingUpdate | default dict -}}
{{- if and (hasKey $update "maxSurge") (hasKey $update "maxUnavailable") (regexMatch "^0%?$" (toString $update.maxSurge)) (regexMatch "^0%?$" (toString $update.maxUnavailable)) -}}
{{- fail (printf "%s.rollingUpdate: maxSurge and maxUnavailable are both 0, and no pod could be replaced: raise one" $where) -}}
{{- end -}}
{{- end -}}
{{- end }}
