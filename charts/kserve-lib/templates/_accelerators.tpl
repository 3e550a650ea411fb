{{/* What a model's server is told of its GPUs, and which image serves without one. */}}

{{/* The limits of the serving container of a `model`, as YAML: {limits}. */}}
{{- define "kserve-lib.modelLimits" -}}
{{- $own := (((.Values.inferenceservice).predictor).model).resources -}}
{{- $all := include "kserve-lib.resources" (dict "root" . "own" $own "shared" true) | fromYaml -}}
{{- toYaml (dict "limits" ($all.limits | default dict)) -}}
{{- end }}

{{/* The whole GPUs of a `model`'s pod: platform.gpu.resourceName's. A slice (nvidia.com/mig-...) is not a whole GPU. */}}
{{- define "kserve-lib.gpuCount" -}}
{{- $limits := (include "kserve-lib.modelLimits" . | fromYaml).limits -}}
{{- get $limits (include "kserve-lib.gpuResource" .) | default "0" | int -}}
{{- end }}

{{/* "true" where a `model`'s pod has any device: a resource with a domain, such as amd.com/gpu. */}}
{{- define "kserve-lib.accelerated" -}}
{{- $found := "" -}}
{{- range $name, $_ := (include "kserve-lib.modelLimits" . | fromYaml).limits -}}
{{- if contains "/" $name }}{{ $found = "true" }}{{ end -}}
{{- end -}}
{{- $found -}}
{{- end }}

{{/*
vLLM, alone and in KServe's Hugging Face server, uses one GPU unless told otherwise: the argument that splits the model
over all GPUs of the pod, "" where there is one GPU, or the user's arguments split it.
*/}}
{{- define "kserve-lib.parallelArg" -}}
{{- $model := ((.Values.inferenceservice).predictor).model | default dict -}}
{{- $line := join " " ($model.args | default list) -}}
{{- $given := regexMatch "(^| )(--(tensor|pipeline|data)[-_]parallel[-_]size|-tp|-pp|-dp|--backend[= ]huggingface)([= ]|$)" $line -}}
{{- $multinode := hasSuffix "-multinode" ($model.runtime | default "") -}}
{{- $count := include "kserve-lib.gpuCount" . | int -}}
{{- if and (gt $count 1) (has (include "kserve-lib.server" .) (list "vllm" "huggingface")) (not $given) (not $multinode) -}}
--tensor-parallel-size={{ $count }}
{{- end -}}
{{- end }}

{{/*
vLLM's image for a pod without a GPU: as KServe's own runtime for vLLM has it, the repository of this name with -cpu
behind it. An image that is named by its digest stays.
*/}}
{{- define "kserve-lib.cpuImage" -}}
{{- $tag := regexFind ":[^/:]*$" . -}}
{{- $repository := trimSuffix $tag . -}}
{{- if or (contains "@" .) (hasSuffix "-cpu" $repository) -}}
{{- . -}}
{{- else -}}
{{- printf "%s-cpu%s" $repository $tag -}}
{{- end -}}
{{- end }}

{{/*
The tag of an image as `runtimeVersion`, "" where it has none. Without a runtimeVersion KServe changes the image that was
given: it appends -gpu to the tag of huggingfaceserver, TensorFlow and TorchServe on a GPU, and -cpu to the name of
vLLM's without one.
*/}}
{{- define "kserve-lib.runtimeVersion" -}}
{{- if not (contains "@" .) -}}
{{- regexFind ":[^/:]+$" . | trimPrefix ":" -}}
{{- end -}}
{{- end }}
