{{/* The ports of a model's server, and those of its Service. */}}

{{/* The port of the server's gRPC, "" where the chart knows none. */}}
{{- define "kserve-lib.grpcPort" -}}
{{- get (dict "triton" "9000" "mlserver" "9000" "torchserve" "7070") (include "kserve-lib.server" .) -}}
{{- end }}

{{/*
The ports of a `model`'s container as YAML, {ports: [...]}: the user's, else, with gRPC, the server's own. Without a port
KServe leads callers to 8080, which speaks HTTP/1.1. The name h2c tells KServe and Istio that the port speaks HTTP/2.
*/}}
{{- define "kserve-lib.modelPorts" -}}
{{- $ports := (((.Values.inferenceservice).predictor).model).ports | default list -}}
{{- if and (not $ports) (hasPrefix "grpc-" (include "kserve-lib.protocolVersion" .)) -}}
{{- with include "kserve-lib.grpcPort" . -}}
{{- $ports = list (dict "name" "h2c" "containerPort" (int .) "protocol" "TCP") -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "ports" $ports) -}}
{{- end }}

{{/* The port that KServe's Service leads to: the logger's agent, else the first port of the container, else 8080. */}}
{{- define "kserve-lib.servingPort" -}}
{{- if and (.Values.logger).enabled (not ((.Values.inferenceservice).transformer).containers) -}}
9081
{{- else -}}
{{- (include "kserve-lib.firstServingPort" . | fromYaml).containerPort | default 8080 | int -}}
{{- end -}}
{{- end }}

{{/* The first port of the container that callers reach, as YAML; empty where it names none. */}}
{{- define "kserve-lib.firstServingPort" -}}
{{- $service := .Values.inferenceservice | default dict -}}
{{- $containers := ($service.transformer).containers | default ($service.predictor).containers -}}
{{- $ports := list -}}
{{- if $containers -}}
{{- $ports = (first $containers).ports | default list -}}
{{- else -}}
{{- $ports = (include "kserve-lib.modelPorts" . | fromYaml).ports -}}
{{- end -}}
{{- toYaml (first ($ports | default (list dict)) | default dict) -}}
{{- end }}

{{/* "true" where that port speaks gRPC: KServe knows it by its name. */}}
{{- define "kserve-lib.servesGRPC" -}}
{{- if regexMatch "grpc|h2c" ((include "kserve-lib.firstServingPort" . | fromYaml).name | default "") }}true{{ end -}}
{{- end }}
