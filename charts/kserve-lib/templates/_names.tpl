{{/* Names, labels, and which variants a release has. Sections may be null: every read is nil-safe. */}}

{{/*
Name, namespace and labels of an object. As YAML: a namespace may be called 123, and a release `on`.
(dict "root" $ "name" <its name> "namespace" <where it is not the release's> "labels" <more of them, which win>)
*/}}
{{- define "kserve-lib.meta" -}}
name: {{ .name | toYaml }}
namespace: {{ .namespace | default .root.Release.Namespace | toYaml }}
labels:
  {{- merge (dict) (.labels | default dict) (include "kserve-lib.labels" .root | fromYaml) | toYaml | nindent 2 }}
{{- end }}

{{/* The labels of an object. Its pods get podLabels instead: a new chart version must not restart a model. */}}
{{- define "kserve-lib.labels" -}}
helm.sh/chart: {{ include "kserve-lib.labelValue" (printf "%s-%s" .Chart.Name .Chart.Version) | quote }}
{{ include "kserve-lib.podLabels" . }}
{{- end }}

{{- define "kserve-lib.podLabels" -}}
{{ include "kserve-lib.selectorLabels" . }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- range $label, $key := dict "env" "env" "cluster" "clusterName" "region" "region" "region-code" "regionCode" "geo-code" "geoCode" }}
{{- with include "kserve-lib.labelValue" (get $.Values $key | default "") }}
tokenweir.io/{{ $label }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* What every pod of the release has, of both variants and of a transformer and an explainer too. */}}
{{- define "kserve-lib.selectorLabels" -}}
tokenweir.io/release: {{ .Release.Name | quote }}
{{- end }}

{{/* The most pods. */}}
{{- define "kserve-lib.maxReplicas" -}}
{{- $most := (.Values.autoscaling).maxReplicaCount -}}
{{- if not $most -}}
{{- $most = 3 -}}
{{- range (include "kserve-lib.variants" . | fromYaml).variants }}{{ $most = max $most (int .replicas) }}{{ end -}}
{{- end -}}
{{- int $most -}}
{{- end }}

{{/* Any text as a label's value. */}}
{{- define "kserve-lib.labelValue" -}}
{{- regexReplaceAll "[^A-Za-z0-9._-]+" (toString .) "-" | trimAll "-_." | trunc 63 | trimSuffix "-" | trimSuffix "." | trimSuffix "_" -}}
{{- end }}

{{/* Annotations of the release. Not of its pods: to look at a release more often must not restart a model. */}}
{{- define "kserve-lib.annotations" -}}
{{- with .Values.reconcileInterval }}
tokenweir.io/reconcile-interval: {{ . | quote }}
{{- end }}
{{- end }}

{{/* The Service that callers of a variant reach: the transformer's where there is one. (dict "root" $ "variant" .) */}}
{{- define "kserve-lib.entrance" -}}
{{- .variant.isvc }}-{{ include "kserve-lib.transforms" .root | empty | ternary "predictor" "transformer" -}}
{{- end }}

{{/* "true" where a transformer stands before the predictor, else empty. */}}
{{- define "kserve-lib.transforms" -}}
{{- if ((.Values.inferenceservice).transformer).containers }}true{{ end -}}
{{- end }}

{{/*
The variants of the release, as YAML: {variants: [{name, isvc, storageUri, image, replicas, weight}]}.
`name` is "" in kserve-model; primary and, while a canary runs, canary in kserve-general. `image` is empty where the
runtime's own is used; `weight` is the share of requests in percent.
*/}}
{{- define "kserve-lib.variants" -}}
{{- $replicas := .Values.replicaCount | default 1 | int -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- if ne .Chart.Name "kserve-general" -}}
{{- $only := dict "name" "" "isvc" .Release.Name "storageUri" $source.storageUri "image" $source.image -}}
{{- toYaml (dict "variants" (list (merge $only (dict "replicas" $replicas "weight" 100)))) -}}
{{- else -}}
{{- $active := eq (include "kserve-lib.canaryActive" .) "true" -}}
{{- $load := 100 -}}
{{- if and $active (not (kindIs "invalid" .Values.primaryLoad)) }}{{ $load = int .Values.primaryLoad }}{{ end -}}
{{- $primary := dict "name" "primary" "isvc" (printf "%s-primary" .Release.Name) "weight" $load -}}
{{- $_ := merge $primary (dict "storageUri" $source.storageUri "image" $source.image "replicas" $replicas) -}}
{{- $all := list $primary -}}
{{- if $active -}}
{{- $canary := dict "name" "canary" "isvc" (printf "%s-canary" .Release.Name) "weight" (sub 100 $load) -}}
{{- $_ := set $canary "storageUri" ($source.newStorageUri | default $source.storageUri) -}}
{{- $_ := set $canary "image" (include "kserve-lib.canaryImage" $source) -}}
{{- $_ := set $canary "replicas" ((.Values.canary).replicaCount | default $replicas | int) -}}
{{- $all = append $all $canary -}}
{{- end -}}
{{- toYaml (dict "variants" $all) -}}
{{- end -}}
{{- end }}

{{/* "true" while a canary runs. */}}
{{- define "kserve-lib.canaryActive" -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- if and (eq .Chart.Name "kserve-general") (or $source.newStorageUri $source.newImage $source.newImageTag) -}}
true
{{- end -}}
{{- end }}

{{/*
What is served, as YAML. `kind` is model, containers, multiModel or example (nothing was given: KServe's iris).
`image` and the `new...` fields are the model's, or those of `container`, the index of the first container that has
a canary's image (0 where none has).
*/}}
{{- define "kserve-lib.source" -}}
{{- $service := .Values.inferenceservice | default dict -}}
{{- $model := ($service.predictor).model | default dict -}}
{{- $containers := ($service.predictor).containers | default list -}}
{{- $format := include "kserve-lib.format" $model -}}
{{- $source := dict "kind" "example" "container" 0 "runtime" ($model.runtime | default "") -}}
{{- $_ := set $source "newStorageUri" ($model.newStorageUri | default "") -}}
{{- $holder := $model -}}
{{- if $containers -}}
{{- $_ := set $source "kind" "containers" -}}
{{- range $index, $each := reverse $containers -}}
{{- if or $each.newImage $each.newImageTag }}{{ $_ := set $source "container" (sub (sub (len $containers) $index) 1) }}{{ end -}}
{{- end -}}
{{- $holder = index $containers (int $source.container) -}}
{{- else if ($service.multiModel).enabled -}}
{{- $_ := set $source "kind" "multiModel" -}}
{{- else if or $format $model.storageUri $model.image $model.runtime -}}
{{- $_ := set $source "kind" "model" -}}
{{- end -}}
{{- $_ := set $source "format" $format -}}
{{- $_ := set $source "storageUri" ($model.storageUri | default "") -}}
{{- if eq $source.kind "example" -}}
{{- $_ := set $source "format" "sklearn" -}}
{{- $_ := set $source "storageUri" "gs://kfserving-examples/models/sklearn/1.0/model" -}}
{{- end -}}
{{- range list "image" "newImage" "newImageTag" }}{{ $_ := set $source . (get $holder . | default "") }}{{ end -}}
{{- if and (eq $source.kind "multiModel") (not $source.image) -}}
{{- $_ := set $source "image" (($service.multiModel).image | default "") -}}
{{- end -}}
{{- /* The image of KServe's own Hugging Face runtime computes on the CPU alone. */ -}}
{{- if and (eq $source.kind "model") (eq $format "huggingface") (not $source.image) (not $source.runtime) (include "kserve-lib.hasGPU" .) -}}
{{- $images := (.Values.platform).runtimeImages | default dict -}}
{{- $_ := set $source "image" (hasKey $images "huggingfaceGPU" | ternary $images.huggingfaceGPU "docker.io/kserve/huggingfaceserver:v0.20.0-gpu") -}}
{{- end -}}
{{- toYaml $source -}}
{{- end }}

{{/*
A model's format as KServe's runtimes spell it: in lower case, except vLLM of kserve-vllmserver. KServe compares letter
by letter. A runtime of another's making may have spelled it in its own way.
*/}}
{{- define "kserve-lib.format" -}}
{{- $name := (.modelFormat).name | default "" -}}
{{- $theirs := and .runtime (not (hasPrefix "kserve-" .runtime)) -}}
{{- $known := hasKey (include "kserve-lib.servers" . | fromYaml) (lower $name) -}}
{{- if and (eq (lower $name) "vllm") (hasPrefix "kserve-vllm" (.runtime | default "")) -}}
vLLM
{{- else -}}
{{- ternary (lower $name) $name (and $known (not $theirs)) -}}
{{- end -}}
{{- end }}

{{/* The canary's image, of what `source` says; empty where neither has one. */}}
{{- define "kserve-lib.canaryImage" -}}
{{- $image := .newImage | default .image -}}
{{- if .newImageTag -}}
{{- include "kserve-lib.retag" (dict "image" $image "tag" .newImageTag) -}}
{{- else -}}
{{- $image -}}
{{- end -}}
{{- end }}

{{/* An image with another tag (or digest, sha256:...) in place of its tag and digest. A registry's port stays. */}}
{{- define "kserve-lib.retag" -}}
{{- $name := regexReplaceAll ":[^/]*$" (regexReplaceAll "@.*$" .image "") "" -}}
{{- printf "%s%s%s" $name (ternary "@" ":" (hasPrefix "sha256:" .tag)) .tag -}}
{{- end }}

{{/* The ServiceAccount of the pods. */}}
{{- define "kserve-lib.serviceAccountName" -}}
{{- ((.Values.inferenceservice).predictor).serviceAccountName | default .Release.Name -}}
{{- end }}
