{{/*
A change of the chart of a release, between kserve-model and kserve-general. Both have a Service `<release>-predictor`: it is
KServe's in kserve-model and Helm's in kserve-general. Whoever takes it over while the other one still owns it loses it: KServe
gives its Services the labels and annotations by which Helm tells its own, and Kubernetes deletes them with their
InferenceService.

`lookup` finds nothing in `helm template` and in dry runs of the client: nothing is refused there.
*/}}

{{- define "kserve-lib.validateSwitch" -}}
{{- include "kserve-lib.validateOwners" . -}}
{{- $from := include "kserve-lib.chartBefore" . -}}
{{- if and (eq .Chart.Name "kserve-general") (eq $from "kserve-model") -}}
{{- if ne (include "kserve-lib.isReady" (dict "root" . "isvc" (print .Release.Name "-primary"))) "true" -}}
{{- include "kserve-lib.refuseSwitch" (dict "root" . "from" $from "why" (printf "the InferenceService %s-primary is not there, or not ready" .Release.Name)) -}}
{{- end -}}
{{- else if and (eq .Chart.Name "kserve-model") (eq $from "kserve-general") -}}
{{- if ne (include "kserve-lib.isReady" (dict "root" . "isvc" .Release.Name)) "true" -}}
{{- include "kserve-lib.refuseSwitch" (dict "root" . "from" $from "why" (printf "the InferenceService %s is not there, or not ready" .Release.Name)) -}}
{{- end -}}
{{- $service := lookup "v1" "Service" .Release.Namespace (print .Release.Name "-predictor") -}}
{{- if and $service (ne (dig "metadata" "annotations" "helm.sh/resource-policy" "" $service) "keep") -}}
{{- include "kserve-lib.refuseSwitch" (dict "root" . "from" $from "why" (printf "Helm would delete the Service %s-predictor, which KServe needs now" .Release.Name)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Arguments: root, from (the chart so far), why. */}}
{{- define "kserve-lib.refuseSwitch" -}}
{{- $release := .root.Release.Name -}}
{{- fail (printf "the release %s was installed with the chart %s, and this is %s: callers would lose the model, because %s. docs/onboarding.md, \"From one chart to the other\", has the steps that lose nothing. Where an interruption does no harm, uninstall the release and install it anew" $release .from .root.Chart.Name .why) -}}
{{- end }}

{{/* The chart that the release was last installed with; empty where it is new, or where nothing can be looked up. */}}
{{- define "kserve-lib.chartBefore" -}}
{{- if .Capabilities.APIVersions.Has "networking.istio.io/v1/VirtualService" -}}
{{- $mesh := lookup "networking.istio.io/v1" "VirtualService" .Release.Namespace (print .Release.Name "-mesh") -}}
{{- $labels := dig "metadata" "labels" dict $mesh -}}
{{- if eq (get $labels "tokenweir.io/release") .Release.Name }}{{ get $labels "app.kubernetes.io/name" }}{{ end -}}
{{- end -}}
{{- end }}

{{/* An InferenceService, as YAML: {found: {...}}. (dict "root" "isvc" <its name>) */}}
{{- define "kserve-lib.found" -}}
{{- $found := dict -}}
{{- if .root.Capabilities.APIVersions.Has "serving.kserve.io/v1beta1/InferenceService" -}}
{{- $found = lookup "serving.kserve.io/v1beta1" "InferenceService" .root.Release.Namespace .isvc -}}
{{- end -}}
{{- toYaml (dict "found" $found) -}}
{{- end }}

{{/* "true" where an InferenceService is ready. (dict "root" "isvc" <its name>) */}}
{{- define "kserve-lib.isReady" -}}
{{- $ready := "" -}}
{{- range dig "found" "status" "conditions" list (include "kserve-lib.found" . | fromYaml) -}}
{{- if and (eq .type "Ready") (eq .status "True") }}{{ $ready = "true" }}{{ end -}}
{{- end -}}
{{- $ready -}}
{{- end }}

{{/* What KServe has under a name of this release and for another owner. Flux takes over whatever it finds. */}}
{{- define "kserve-lib.validateOwners" -}}
{{- $release := .Release.Name -}}
{{- range (include "kserve-lib.variants" . | fromYaml).variants -}}
{{- $metadata := dig "found" "metadata" dict (include "kserve-lib.found" (dict "root" $ "isvc" .isvc) | fromYaml) -}}
{{- $owner := dig "annotations" "meta.helm.sh/release-name" $release $metadata -}}
{{- if ne $owner $release -}}
{{- fail (printf "the InferenceService %s belongs to the release %s: choose another name for the release %s" .isvc $owner $release) -}}
{{- end -}}
{{- end -}}
{{- if eq .Chart.Name "kserve-general" -}}
{{- $metadata := dig "found" "metadata" dict (include "kserve-lib.found" (dict "root" . "isvc" $release) | fromYaml) -}}
{{- $ours := eq (dig "labels" "tokenweir.io/release" "" $metadata) $release -}}
{{- if and $metadata $ours -}}
{{- include "kserve-lib.refuseSwitch" (dict "root" . "from" "kserve-model" "why" (printf "KServe would delete the Service %s-predictor together with the InferenceService %s" $release $release)) -}}
{{- else if $metadata -}}
{{- fail (printf "there is an InferenceService %s, and KServe makes the Service %s-predictor for it, which this release makes too: choose another name for the release, or remove the InferenceService" $release $release) -}}
{{- end -}}
{{- range dig "metadata" "ownerReferences" list (lookup "v1" "Service" .Release.Namespace (print $release "-predictor")) -}}
{{- if eq .kind "InferenceService" -}}
{{- fail (printf "the Service %s-predictor still belongs to the InferenceService %s, which was deleted, and goes with it: wait until it is gone, and try again" $release .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
