{{- define "tokenweir.fullname" -}}
{{- $name := default (ternary .Release.Name (printf "%s-tokenweir" .Release.Name) (contains "tokenweir" .Release.Name)) .Values.fullnameOverride -}}
{{- if gt (len $name) 40 -}}
{{- fail (printf "the name %q is longer than 40 characters: shorten the release's, or set fullnameOverride" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "tokenweir.selectorLabels" -}}
app.kubernetes.io/name: tokenweir
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "tokenweir.labels" -}}
{{ include "tokenweir.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tokenweir
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{/* Labels of the processor's pods alone: the trial's pods have others. */}}
{{- define "tokenweir.processorLabels" -}}
{{ include "tokenweir.selectorLabels" . }}
app.kubernetes.io/component: processor
{{- end -}}

{{- define "tokenweir.serviceAccountName" -}}
{{- $account := .Values.serviceAccount | default dict -}}
{{- if $account.create -}}
{{- $account.name | default (include "tokenweir.fullname" .) -}}
{{- else -}}
{{- $account.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.image" -}}
{{- $image := .Values.image | default dict -}}
{{- $repository := $image.repository | default "tokenweir" -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.clusterDomain" -}}
{{- .Values.clusterDomain | default "cluster.local" -}}
{{- end -}}

{{- define "tokenweir.host" -}}
{{- printf "%s.%s.svc.%s" (include "tokenweir.fullname" .) .Release.Namespace (include "tokenweir.clusterDomain" .) -}}
{{- end -}}

{{/* Istio's name for the Service in every Envoy of the mesh. */}}
{{- define "tokenweir.cluster" -}}
{{- printf "outbound|50051||%s" (include "tokenweir.host" .) -}}
{{- end -}}

{{- define "tokenweir.placement" -}}
{{- .Values.placement | default "gateway" -}}
{{- end -}}

{{- define "tokenweir.gateway" -}}
{{- $gateway := .Values.gateway | default dict -}}
namespace: {{ $gateway.namespace | default "istio-system" | quote }}
selector: {{ $gateway.selector | default (dict "istio" "ingressgateway") | toJson }}
principals: {{ $gateway.principals | default list | toJson }}
{{- end -}}

{{- define "tokenweir.rootNamespace" -}}
{{- (.Values.sidecar).rootNamespace | default "istio-system" -}}
{{- end -}}

{{/* "true", but for filter.enabled: false. Without filters nothing is metered, so that must be said. */}}
{{- define "tokenweir.filtering" -}}
{{- if ne (toString (.Values.filter).enabled) "false" -}}true{{- end -}}
{{- end -}}

{{/* "true", but for networkPolicy.enabled: false. */}}
{{- define "tokenweir.confined" -}}
{{- if ne (toString (.Values.networkPolicy).enabled) "false" -}}true{{- end -}}
{{- end -}}

{{/* "true", but for mesh.sidecar: false. Nothing said is the safe way. */}}
{{- define "tokenweir.inMesh" -}}
{{- if ne (toString (.Values.mesh).sidecar) "false" -}}true{{- end -}}
{{- end -}}
