{{/* Names and labels. Sections may be null: every read is nil-safe. */}}

{{/* A chart's version may hold a plus (Flux adds the commit behind one), which no label may. */}}
{{- define "platform.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/name: {{ .Chart.Name | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}

{{/* The same with labels from values, which win: a label may stand there once only. (list $ labels) */}}
{{- define "platform.labelsWith" -}}
{{- merge (deepCopy (index . 1 | default dict)) (include "platform.labels" (index . 0) | fromYaml) | toYaml -}}
{{- end }}

{{/* The namespaces that hold models: {names: [...]}. */}}
{{- define "platform.namespaces" -}}
{{- $names := (.Values.namespaces).names | default list | uniq -}}
{{- if not $names -}}
{{- fail "namespaces.names: name at least one namespace that holds models, such as [models]" -}}
{{- end -}}
{{- if has .Release.Namespace $names -}}
{{- fail (printf "namespaces.names: %s is the namespace of this release itself, and what it holds would be cut off by the models' policies; install the chart into another, such as infra" .Release.Namespace) -}}
{{- end -}}
{{- dict "names" $names | toYaml -}}
{{- end }}

{{/*
The gateways that models are published by: {gateways: [{name, namespace, selector}]}. The platform's own has an empty
name, those of `exposures` have theirs; one that is named twice counts once.
*/}}
{{- define "platform.gateways" -}}
{{- $own := (.Values.platform).gateway | default dict -}}
{{- $selector := $own.selector | default (dict "istio" "ingressgateway") -}}
{{- $all := list (dict "name" "" "namespace" ($own.namespace | default "istio-system") "selector" $selector) -}}
{{- range $name, $exposure := (.Values.platform).exposures -}}
{{- with ($exposure).gateway -}}
{{- $all = append $all (dict "name" $name "namespace" (.namespace | default $own.namespace | default "istio-system") "selector" (.selector | default $selector)) -}}
{{- end -}}
{{- end -}}
{{- $seen := list -}}
{{- $gateways := list -}}
{{- range $all -}}
{{- $key := toJson (list .namespace .selector) -}}
{{- if not (has $key $seen) -}}
{{- $seen = append $seen $key -}}
{{- $gateways = append $gateways . -}}
{{- end -}}
{{- end -}}
{{- dict "gateways" $gateways | toYaml -}}
{{- end }}

{{/* The name of a gateway's object: <release>-<suffix>, with the exposure's name. (list $ gateway suffix) */}}
{{- define "platform.gatewayObject" -}}
{{- $name := (index . 1).name | lower | replace "_" "-" -}}
{{- printf "%s-%s%s" (index . 0).Release.Name (index . 2) (empty $name | ternary "" (printf "-%s" $name)) | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "platform.dumperLabels" -}}
app.kubernetes.io/name: message-dumper
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}
