{{/* KServe's objects: an InferenceService per variant, a ServingRuntime and an InferenceGraph where asked for. */}}

{{- define "kserve-lib.inferenceservices" -}}
{{- range (include "kserve-lib.variants" . | fromYaml).variants }}
---
{{ include "kserve-lib.inferenceservice" (dict "root" $ "variant" .) }}
{{- end }}
{{- with include "kserve-lib.servingRuntime" . }}
---
{{ . }}
{{- end }}
{{- with include "kserve-lib.graph" . }}
---
{{ . }}
{{- end }}
{{- end }}

{{/*
(dict "root" $ "variant" <one of kserve-lib.variants>) Variants differ in name, storage, image and pods alone.

KServe copies labels and annotations of the InferenceService to its pods. minReplicas stands there only where nothing
scales: KServe keeps it with autoscalerClass none, and with external some versions hold it against the autoscaler.
*/}}
{{- define "kserve-lib.inferenceservice" -}}
{{- $root := .root -}}
{{- $service := $root.Values.inferenceservice | default dict -}}
{{- $own := merge (dict "serving.kserve.io/deploymentMode" "Standard") (include "kserve-lib.autoscalingAnnotations" $root | fromYaml) -}}
{{- $fixed := merge (include "kserve-lib.metricsAnnotations" $root | fromYaml) (include "kserve-lib.sidecarAnnotations" $root | fromYaml) -}}
{{- $spec := dict "predictor" (include "kserve-lib.predictor" . | fromYaml) -}}
{{- with include "kserve-lib.transformer" $root | fromYaml }}{{ $_ := set $spec "transformer" . }}{{ end -}}
{{- with include "kserve-lib.explainer" $root | fromYaml }}{{ $_ := set $spec "explainer" . }}{{ end -}}
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {{ .variant.isvc | toYaml }}
  namespace: {{ $root.Release.Namespace | toYaml }}
  labels: {{- merge (include "kserve-lib.clusterLocal" $root | fromYaml) (include "kserve-lib.podLabels" $root | fromYaml) ($service.labels | default dict) | toYaml | nindent 4 }}
  annotations: {{- merge $own ($service.annotations | default dict) $fixed | toYaml | nindent 4 }}
spec: {{- toYaml $spec | nindent 2 }}
{{- end }}

{{/*
With this label KServe makes no Ingress and no HTTPRoute of its own: they would lead past the routes of this chart, and
so past the meter. OpenShift's KServe publishes nothing unless the label says `exposed`.
*/}}
{{- define "kserve-lib.clusterLocal" -}}
networking.kserve.io/visibility: cluster-local
{{- end }}

{{- define "kserve-lib.predictor" -}}
{{- $root := .root -}}
{{- $variant := .variant -}}
{{- $given := ($root.Values.inferenceservice).predictor | default dict -}}
{{- $all := include "kserve-lib.podSpec" $root | fromYaml -}}
{{- $wishes := pick $given "tolerations" "affinity" "nodeSelector" -}}
{{- $_ := merge $all (include "kserve-lib.scheduling" (dict "root" $root "gpu" (include "kserve-lib.hasGPU" $root) "wishes" $wishes) | fromYaml) -}}
{{- if not (include "kserve-lib.scales" $root) }}{{ $_ := set $all "minReplicas" $variant.replicas }}{{ end -}}
{{- range $field := list "volumes" "priorityClassName" -}}
{{- with get $given $field }}{{ $_ := set $all $field . }}{{ end -}}
{{- end -}}
{{- with $given.timeout }}{{ $_ := set $all "timeout" (int64 .) }}{{ end -}}
{{- with include "kserve-lib.deploymentStrategy" $root | fromYaml }}{{ $_ := set $all "deploymentStrategy" . }}{{ end -}}
{{- $_ := merge $all (include "kserve-lib.logger" $root | fromYaml) -}}
{{- $labels := include "kserve-lib.entranceLabels" (dict "root" $root "component" "predictor") | fromYaml -}}
{{- with $labels }}{{ $_ := set $all "labels" . }}{{ end -}}
{{- if $given.containers -}}
{{- $call := dict "root" $root "containers" $given.containers "canary" (eq $variant.name "canary") "shared" true "mounts" $given.volumeMounts -}}
{{- $_ := merge $all (include "kserve-lib.containers" $call | fromYaml) -}}
{{- else -}}
{{- $_ := set $all "model" (include "kserve-lib.model" . | fromYaml) -}}
{{- end -}}
{{- toYaml $all -}}
{{- end }}

{{- define "kserve-lib.model" -}}
{{- $root := .root -}}
{{- $source := include "kserve-lib.source" $root | fromYaml -}}
{{- $predictor := ($root.Values.inferenceservice).predictor | default dict -}}
{{- $given := $predictor.model | default dict -}}
{{- $format := dict "name" (ternary (include "kserve-lib.server" $root) $source.format (eq $source.kind "multiModel")) -}}
{{- with ($given.modelFormat).version }}{{ $_ := set $format "version" . }}{{ end -}}
{{- $model := dict "modelFormat" $format -}}
{{- with .variant.storageUri }}{{ $_ := set $model "storageUri" . }}{{ end -}}
{{- with .variant.image -}}
{{- $_ := set $model "image" . -}}
{{- with and (not (include "kserve-lib.ownRuntime" $root)) (include "kserve-lib.runtimeVersion" .) }}{{ $_ := set $model "runtimeVersion" . }}{{ end -}}
{{- end -}}
{{- with include "kserve-lib.runtimeName" $root }}{{ $_ := set $model "runtime" . }}{{ end -}}
{{- with include "kserve-lib.protocolVersion" $root }}{{ $_ := set $model "protocolVersion" . }}{{ end -}}
{{- with $given.storageKey }}{{ $_ := set $model "storage" (dict "key" .) }}{{ end -}}
{{- with (include "kserve-lib.modelArgs" $root | fromYaml).args }}{{ $_ := set $model "args" . }}{{ end -}}
{{- with (include "kserve-lib.modelEnv" $root | fromYaml).env }}{{ $_ := set $model "env" . }}{{ end -}}
{{- with (include "kserve-lib.modelPorts" $root | fromYaml).ports }}{{ $_ := set $model "ports" . }}{{ end -}}
{{- with include "kserve-lib.lifecycle" (dict "root" $root "given" $given.lifecycle) | fromYaml }}{{ $_ := set $model "lifecycle" . }}{{ end -}}
{{- range $field := list "envFrom" "readinessProbe" "livenessProbe" -}}
{{- with get $given $field }}{{ $_ := set $model $field . }}{{ end -}}
{{- end -}}
{{- with include "kserve-lib.resources" (dict "root" $root "own" $given.resources "shared" true) | fromYaml }}{{ $_ := set $model "resources" . }}{{ end -}}
{{- with $predictor.volumeMounts }}{{ $_ := set $model "volumeMounts" . }}{{ end -}}
{{- toYaml $model -}}
{{- end }}

{{/* What pods of every component have. */}}
{{- define "kserve-lib.podSpec" -}}
serviceAccountName: {{ include "kserve-lib.serviceAccountName" . | quote }}
terminationGracePeriodSeconds: {{ include "kserve-lib.graceSeconds" . }}
securityContext:
  seccompProfile:
    type: RuntimeDefault
{{- with ((.Values.inferenceservice).predictor).imagePullSecrets }}
imagePullSecrets:
{{- range uniq . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Requests are metered at the component that they reach first. KServe's explainers ask the predictor, also past a
transformer: then a request that an explainer gets is metered there. (dict "root" $ "component" "predictor")
*/}}
{{- define "kserve-lib.entranceLabels" -}}
{{- $entrance := include "kserve-lib.transforms" .root | empty | ternary "predictor" "transformer" -}}
{{- $limited := or (include "kserve-lib.metered" .root) (include "kserve-lib.limitedAtPods" .root) -}}
{{- $beside := and (eq .component "explainer") (eq $entrance "transformer") (include "kserve-lib.limitedAtPods" .root) -}}
{{- if or $beside (and (eq .component $entrance) $limited) -}}
tokenweir.io/metered: "true"
{{- end -}}
{{- end }}

{{- define "kserve-lib.transformer" -}}
{{- $given := (.Values.inferenceservice).transformer | default dict -}}
{{- if $given.containers -}}
{{- $all := include "kserve-lib.component" (dict "root" . "given" $given) | fromYaml -}}
{{- with include "kserve-lib.entranceLabels" (dict "root" . "component" "transformer") | fromYaml }}{{ $_ := set $all "labels" . }}{{ end -}}
{{- $_ := merge $all (include "kserve-lib.containers" (dict "root" . "containers" $given.containers "named" true) | fromYaml) -}}
{{- toYaml $all -}}
{{- end -}}
{{- end }}

{{- define "kserve-lib.explainer" -}}
{{- $given := (.Values.inferenceservice).explainer | default dict -}}
{{- if or $given.containers $given.type -}}
{{- $all := include "kserve-lib.component" (dict "root" . "given" $given) | fromYaml -}}
{{- with include "kserve-lib.entranceLabels" (dict "root" . "component" "explainer") | fromYaml }}{{ $_ := set $all "labels" . }}{{ end -}}
{{- if $given.containers -}}
{{- $_ := merge $all (include "kserve-lib.containers" (dict "root" . "containers" $given.containers "named" true) | fromYaml) -}}
{{- else -}}
{{- $config := $given.config | default dict -}}
{{- $art := dict "type" ($config.type | default "SquareAttack") -}}
{{- /* KServe's own --model_name stands before it and is the InferenceService's, which the predictor does not know */ -}}
{{- $_ := set $art "args" (list (printf "--model_name=%s" (include "kserve-lib.servedModelName" .))) -}}
{{- with omit $config "type" }}{{ $_ := set $art "config" . }}{{ end -}}
{{- with $given.storageUri }}{{ $_ := set $art "storageUri" . }}{{ end -}}
{{- $_ := set $all "art" $art -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}
{{- end }}

{{/* What a transformer and an explainer have in common. They run a fixed number of pods, whatever scales the predictor. */}}
{{- define "kserve-lib.component" -}}
{{- $gpu := include "kserve-lib.containersHaveGPU" (dict "root" .root "containers" (.given.containers | default list) "shared" false) -}}
{{- $all := include "kserve-lib.podSpec" .root | fromYaml -}}
{{- $_ := merge $all (include "kserve-lib.scheduling" (dict "root" .root "gpu" $gpu "wishes" dict) | fromYaml) -}}
{{- $_ := set $all "minReplicas" (.given.replicas | default 1 | int64) -}}
{{- $_ := set $all "annotations" (dict "serving.kserve.io/autoscalerClass" "none" "prometheus.io/scrape" "false") -}}
{{- toYaml $all -}}
{{- end }}

{{/*
The InferenceGraph, with no HPA of KServe's. A step that names no target calls this release: by its name, or, where it
may have a canary, by the address that splits.
*/}}
{{- define "kserve-lib.graph" -}}
{{- $graph := (.Values.inferenceservice).graph -}}
{{- if $graph -}}
{{- $nodes := deepCopy $graph -}}
{{- $target := include "kserve-lib.graphTarget" . | fromYaml -}}
{{- range $nodes -}}
{{- range .steps -}}
{{- if not (or .serviceName .serviceUrl .nodeName) }}{{ $_ := unset . "serviceName" }}{{ $_ := merge . $target }}{{ end -}}
{{- end -}}
{{- end -}}
apiVersion: serving.kserve.io/v1alpha1
kind: InferenceGraph
metadata:
  name: {{ .Release.Name }}-graph
  namespace: {{ .Release.Namespace | toYaml }}
  labels:
    {{- include "kserve-lib.clusterLocal" . | nindent 4 }}
    {{- include "kserve-lib.podLabels" . | nindent 4 }}
  annotations:
    serving.kserve.io/deploymentMode: Standard
    serving.kserve.io/autoscalerClass: none
spec:
  minReplicas: 1
  nodes: {{- toYaml $nodes | nindent 4 }}
{{- end -}}
{{- end }}

{{- define "kserve-lib.graphTarget" -}}
{{- if ne .Chart.Name "kserve-general" -}}
serviceName: {{ .Release.Name | quote }}
{{- else -}}
{{- $name := include "kserve-lib.servedModelName" . -}}
{{- $path := ternary (printf "v2/models/%s/infer" $name) (printf "v1/models/%s:predict" $name) (eq (include "kserve-lib.protocol" .) "v2") -}}
serviceUrl: http://{{ .Release.Name }}-predictor.{{ .Release.Namespace }}.svc.cluster.local/{{ $path }}
{{- end -}}
{{- end }}

{{- define "kserve-lib.serviceaccount" -}}
{{- $given := (.Values.inferenceservice).predictor | default dict -}}
{{- if not $given.serviceAccountName -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" (include "kserve-lib.serviceAccountName" .)) | nindent 2 }}
  {{- with merge (dict) ($given.serviceAccountAnnotations | default dict) (include "kserve-lib.annotations" . | fromYaml) }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- with $given.serviceAccountSecrets }}
secrets:
{{- range uniq . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- with $given.imagePullSecrets }}
imagePullSecrets:
{{- range uniq . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}
{{- end }}
