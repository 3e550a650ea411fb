{{/* Which server serves the model, what it speaks, how it is told the model's name; ServingRuntimes of the chart's own. */}}

{{/*
huggingface, vllm, kserve (its Python servers), mlserver, tensorflow, torchserve, triton, or other. By the runtime's
name, else as KServe's own runtimes choose by format. vllm without a runtime is served by one that the chart makes.
*/}}
{{- define "kserve-lib.server" -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- $runtime := $source.runtime | lower -}}
{{- $format := $source.format | lower -}}
{{- $protocol := (((.Values.inferenceservice).predictor).model).protocolVersion | default "" -}}
{{- $servers := list "huggingface" "vllm" "mlserver" "triton" "torchserve" "tensorflow" -}}
{{- $found := "" -}}
{{- if eq $source.kind "multiModel" -}}
{{- $found = ((.Values.inferenceservice).multiModel).server | default "triton" -}}
{{- else if $runtime -}}
{{- /* first: kserve-pmmlserver is no MLServer */ -}}
{{- if regexMatch "^kserve-(sklearn|xgb|lgb|pmml|paddle|predictive|catboost|autogluon)" $runtime }}{{ $found = "kserve" }}{{ end -}}
{{- range $servers }}{{ if and (not $found) (contains . $runtime) }}{{ $found = . }}{{ end }}{{ end -}}
{{- else if and (eq $protocol "v2") (has $format (list "sklearn" "xgboost" "lightgbm")) -}}
{{- $found = "mlserver" -}}
{{- else -}}
{{- $found = get (include "kserve-lib.servers" . | fromYaml) $format -}}
{{- end -}}
{{- $found | default "other" -}}
{{- end }}

{{- define "kserve-lib.servers" -}}
huggingface: huggingface
vllm: vllm
sklearn: kserve
xgboost: kserve
lightgbm: kserve
pmml: kserve
paddle: kserve
catboost: kserve
autogluon: kserve
mlflow: mlserver
tensorflow: tensorflow
pytorch: torchserve
onnx: triton
tensorrt: triton
triton: triton
{{- end }}

{{/*
The `runtime` of the InferenceService, "" where KServe chooses. Named where the chart makes it, and where more than one
of KServe's would do: they take the model's name in different ways.
*/}}
{{- define "kserve-lib.runtimeName" -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- $server := include "kserve-lib.server" . -}}
{{- if $source.runtime -}}
{{- $source.runtime -}}
{{- else if include "kserve-lib.ownRuntime" . -}}
{{- .Release.Name }}-{{ $server -}}
{{- else if and (eq $server "mlserver") (ne $source.format "mlflow") -}}
kserve-mlserver
{{- end -}}
{{- end }}

{{/* "true" where the chart makes the ServingRuntime: KServe has none for vLLM alone, nor for many models in a pod. */}}
{{- define "kserve-lib.ownRuntime" -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- if or (eq $source.kind "multiModel") (and (eq $source.kind "model") (eq $source.format "vllm") (not $source.runtime)) -}}
true
{{- end -}}
{{- end }}

{{/*
KServe's protocol version, "" where its default holds. Without one KServe takes v1 and finds no runtime for formats
whose servers know v2 only.
*/}}
{{- define "kserve-lib.protocolVersion" -}}
{{- $given := (((.Values.inferenceservice).predictor).model).protocolVersion -}}
{{- if $given -}}
{{- $given -}}
{{- else if and (has (include "kserve-lib.server" .) (list "triton" "mlserver")) (ne (include "kserve-lib.kind" .) "containers") -}}
v2
{{- end -}}
{{- end }}

{{- define "kserve-lib.kind" -}}
{{- (include "kserve-lib.source" . | fromYaml).kind -}}
{{- end }}

{{/* openai, v1, v2 or other: what the model speaks. */}}
{{- define "kserve-lib.protocol" -}}
{{- $kind := include "kserve-lib.kind" . -}}
{{- $server := include "kserve-lib.server" . -}}
{{- $llm := "(vllm|sglang|text-generation-inference|lmdeploy|llama[.-]?cpp|ollama|tensorrt-?llm)" -}}
{{- if (.Values.inferenceservice).protocol -}}
{{- .Values.inferenceservice.protocol -}}
{{- else if eq $kind "containers" -}}
{{- $image := (first .Values.inferenceservice.predictor.containers).image | default "" -}}
{{- ternary "openai" "other" (regexMatch $llm ($image | lower)) -}}
{{- else if has $server (list "huggingface" "vllm") -}}
openai
{{- else if hasSuffix "v2" (include "kserve-lib.protocolVersion" .) -}}
v2
{{- else -}}
{{- ternary "other" "v1" (eq $server "other") -}}
{{- end -}}
{{- end }}

{{/*
The name that callers use, the same for both variants: `servedModelName`; else what the container's own arguments
say; else the release's. Triton and TorchServe take names from their files: there the value only says which it is.
*/}}
{{- define "kserve-lib.servedModelName" -}}
{{- $predictor := (.Values.inferenceservice).predictor | default dict -}}
{{- $words := ($predictor.model).args | default list -}}
{{- if $predictor.containers -}}
{{- $serving := first $predictor.containers -}}
{{- $words = concat ($serving.command | default list) ($serving.args | default list) -}}
{{- end -}}
{{- $line := join " " $words -}}
{{- $found := "" -}}
{{- if (.Values.inferenceservice).servedModelName -}}
{{- $found = .Values.inferenceservice.servedModelName -}}
{{- else -}}
{{- $flags := list "--(?:served[-_])?model[-_]name[= ]+" -}}
{{- if $predictor.containers }}{{ $flags = append (append $flags "--model[= ]+") "vllm serve +" }}{{ end -}}
{{- range $flags -}}
{{- with and (not $found) (regexFind (print . "[^ -][^ ]*") $line) -}}
{{- $found = regexReplaceAll "^.*[= ]" . "" | trimAll "\"'" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if or (not $found) (contains "$" $found) -}}
{{- .Release.Name -}}
{{- else -}}
{{- $found -}}
{{- end -}}
{{- end }}

{{/*
The arguments of a `model` as YAML, {args: [...]}: the name by the flag that its server knows, then the user's, then
its GPUs and its end. Later flags win with all of these servers, so the runtime's own --model_name={{.Name}} does not count.
*/}}
{{- define "kserve-lib.modelArgs" -}}
{{- $args := (((.Values.inferenceservice).predictor).model).args | default list -}}
{{- $flag := dict "huggingface" "--model_name" "kserve" "--model_name" "tensorflow" "--model_name" "vllm" "--served-model-name" -}}
{{- with get $flag (include "kserve-lib.server" .) -}}
{{- $given := regexMatch "(^| )--(served[-_])?model[-_]name([= ]|$)" (join " " $args) -}}
{{- if not $given -}}
{{- $args = prepend $args (printf "%s=%s" . (include "kserve-lib.servedModelName" $)) -}}
{{- end -}}
{{- end -}}
{{- with include "kserve-lib.parallelArg" . }}{{ $args = append $args . }}{{ end -}}
{{- with include "kserve-lib.shutdownArg" . }}{{ $args = append $args . }}{{ end -}}
{{- toYaml (dict "args" $args) -}}
{{- end }}

{{/* What a `model`'s server is told by environment, as YAML: {env: [...]}; the user's entries of the same name win. */}}
{{- define "kserve-lib.modelEnv" -}}
{{- $given := (((.Values.inferenceservice).predictor).model).env | default list -}}
{{- $own := dict -}}
{{- $server := include "kserve-lib.server" . -}}
{{- if and (eq $server "mlserver") (ne (include "kserve-lib.kind" .) "multiModel") -}}
{{- $own = dict "MLSERVER_MODEL_NAME" (include "kserve-lib.servedModelName" .) -}}
{{- else if eq $server "huggingface" -}}
{{- /* /v1/chat/completions, as everywhere, instead of /openai/v1/chat/completions */ -}}
{{- $own = dict "KSERVE_OPENAI_ROUTE_PREFIX" "" -}}
{{- end -}}
{{- range $given }}{{ $_ := unset $own .name }}{{ end -}}
{{- $all := list -}}
{{- range $name, $value := $own }}{{ $all = append $all (dict "name" $name "value" $value) }}{{ end -}}
{{- toYaml (dict "env" (concat $all $given)) -}}
{{- end }}

{{- define "kserve-lib.servingRuntime" -}}
{{- if include "kserve-lib.ownRuntime" . -}}
{{- $server := include "kserve-lib.server" . -}}
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" (include "kserve-lib.runtimeName" .)) | nindent 2 }}
spec:
  annotations:
    prometheus.kserve.io/port: {{ include "kserve-lib.metricsPort" . | quote }}
    prometheus.kserve.io/path: /metrics
  supportedModelFormats:
    - name: {{ $server }}
      autoSelect: false
  protocolVersions: [{{ ternary "v1, v2" "v2, grpc-v2" (eq $server "vllm") }}]
  containers:
    - name: kserve-container
      image: {{ include "kserve-lib.runtimeImage" . | quote }}
      {{- include (printf "kserve-lib.runtime.%s" $server) . | nindent 6 }}
      securityContext:
        allowPrivilegeEscalation: false
        capabilities:
          drop: [ALL]
  {{- if ne $server "mlserver" }}
  volumes:
    - name: devshm
      emptyDir:
        medium: Memory
  {{- end }}
{{- end -}}
{{- end }}

{{/* The image of the ServingRuntime that the chart makes. */}}
{{- define "kserve-lib.runtimeImage" -}}
{{- $server := include "kserve-lib.server" . -}}
{{- $image := get ((.Values.platform).runtimeImages | default dict) $server -}}
{{- $image = $image | default (get (include "kserve-lib.runtimeImages" . | fromYaml) $server) -}}
{{- if and (eq $server "vllm") (not (include "kserve-lib.accelerated" .)) -}}
{{- $image = ((.Values.platform).runtimeImages).vllmCPU | default (include "kserve-lib.cpuImage" $image) -}}
{{- end -}}
{{- if eq (include "kserve-lib.kind" .) "multiModel" }}{{ $image = .Values.inferenceservice.multiModel.image | default $image }}{{ end -}}
{{- $image -}}
{{- end }}

{{/* Where platform.runtimeImages is null. */}}
{{- define "kserve-lib.runtimeImages" -}}
vllm: docker.io/vllm/vllm-openai:v0.32.0
triton: nvcr.io/nvidia/tritonserver:23.05-py3
mlserver: docker.io/seldonio/mlserver:1.7.1
{{- end }}

{{- define "kserve-lib.runtime.vllm" -}}
command: [vllm, serve]
args: [/mnt/models, --port=8080]
ports:
  - containerPort: 8080
    protocol: TCP
{{- /* A large model takes long to load: only the startup probe waits for that. */}}
startupProbe:
  httpGet: {path: /health, port: 8080}
  periodSeconds: 10
  failureThreshold: 180
readinessProbe:
  httpGet: {path: /health, port: 8080}
  periodSeconds: 5
livenessProbe:
  httpGet: {path: /health, port: 8080}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
volumeMounts:
  - name: devshm
    mountPath: /dev/shm
{{- end }}

{{- define "kserve-lib.runtime.triton" -}}
command: [tritonserver]
args:
  - --model-repository=/mnt/models
  - --http-port=8080
  - --grpc-port=9000
  - --metrics-port=8002
  - --exit-on-error=false
ports:
  - containerPort: 8080
    protocol: TCP
readinessProbe:
  httpGet: {path: /v2/health/ready, port: 8080}
  periodSeconds: 5
volumeMounts:
  - name: devshm
    mountPath: /dev/shm
{{- end }}

{{- define "kserve-lib.runtime.mlserver" -}}
env:
  - name: MLSERVER_MODELS_DIR
    value: /mnt/models
  - name: MLSERVER_HTTP_PORT
    value: "8080"
  - name: MLSERVER_GRPC_PORT
    value: "9000"
ports:
  - containerPort: 8080
    protocol: TCP
readinessProbe:
  httpGet: {path: /v2/health/ready, port: 8080}
  periodSeconds: 5
{{- end }}
