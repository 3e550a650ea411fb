{{/* What an installation says: what was made, how to try it, and what the values leave open. */}}

{{- define "kserve-lib.notes" -}}
{{- $variants := (include "kserve-lib.variants" . | fromYaml).variants -}}
{{- $exposed := (.Values.exposeModel).enabled -}}
{{ include "kserve-lib.notesModel" . }}

Made in namespace {{ .Release.Namespace }}:
{{- range $variants }}
  InferenceService {{ .isvc }}{{ with .name }} ({{ . }}){{ end }}
{{- end }}
  PeerAuthentication, AuthorizationPolicies{{ if (include "kserve-lib.issuers" . | fromYaml).issuers }}, RequestAuthentication{{ end }}: who gets in
{{- if $exposed }}
  {{ eq ((.Values.exposeModel).api | default "istio") "gateway-api" | ternary "HTTPRoute" "VirtualService" }}: its hosts
{{- end }}
  VirtualService {{ .Release.Name }}-mesh: callers inside the mesh
{{- if include "kserve-lib.scales" . }}
  {{ eq ((.Values.autoscaling).engine | default "keda") "hpa" | ternary "HorizontalPodAutoscaler" "ScaledObject" }}: {{ .Values.replicaCount | default 1 }} to {{ include "kserve-lib.maxReplicas" . }} pods
{{- end }}
{{ include "kserve-lib.notesLimits" . }}
{{- include "kserve-lib.notesCanary" (dict "root" . "variants" $variants) }}
{{- if $exposed }}

Hosts:
{{- range (include "kserve-lib.routes" . | fromYaml).routes }}
{{- range .hosts }}
  https://{{ . }}
{{- end }}
{{- end }}
{{- end }}

See that it is up:
  kubectl -n {{ .Release.Namespace }} get inferenceservice{{ range $variants }} {{ .isvc }}{{ end }}

Try it:
{{ include "kserve-lib.notesTry" . | indent 2 }}
{{- with include "kserve-lib.warnings" . }}

Look at these:
{{- range splitList "\n" . }}
{{- with trim . }}
  * {{ . }}
{{- end }}
{{- end }}
{{- end }}
{{ end }}

{{- define "kserve-lib.notesModel" -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- $protocol := include "kserve-lib.protocol" . -}}
{{- $says := dict "openai" "OpenAI's API" "v1" "KServe's v1 protocol" "v2" "the Open Inference Protocol (v2)" "other" "a protocol of its own" -}}
{{ .Release.Name }} serves {{ $source.storageUri | default $source.image | default $source.runtime | default "a model" }} as {{ include "kserve-lib.servedModelName" . }}. It speaks {{ get $says $protocol }}.
{{- end }}

{{- define "kserve-lib.notesLimits" -}}
{{- $placement := (include "kserve-lib.tokenweir" . | fromYaml).placement -}}
{{- $where := eq $placement "sidecar" | ternary "at its pods" "at the gateway" -}}
{{- $limits := include "kserve-lib.limitList" . | replace "," ", " -}}
{{- if include "kserve-lib.metered" . }}
Tokens are counted {{ $where }}; the tenant's limits bind{{ with $limits }}, and this model's own: {{ . }}{{ end }}.
{{- else if $limits }}
Requests are limited {{ $where }}: {{ $limits }}.
{{- end }}
{{- end }}

{{- define "kserve-lib.notesCanary" -}}
{{- if eq .root.Chart.Name "kserve-general" }}
{{- if eq (len .variants) 2 }}
The canary is on: {{ (index .variants 0).weight }} % of the requests go to the primary, {{ (index .variants 1).weight }} % to the canary ({{ (index .variants 1).image | default (index .variants 1).storageUri }}).
primaryLoad moves the share. To promote it, put the canary's value into storageUri or image and remove the new... one.
{{- else }}
There is no canary. newStorageUri, newImage or newImageTag starts one.
{{- end }}
{{- end }}
{{- end }}

{{- define "kserve-lib.notesTry" -}}
{{- $route := index (include "kserve-lib.routes" . | fromYaml).routes 0 -}}
{{- $name := include "kserve-lib.servedModelName" . -}}
{{- $protocol := include "kserve-lib.protocol" . -}}
{{- $service := eq .Chart.Name "kserve-general" | ternary (printf "%s-predictor" .Release.Name) (index $route.backends 0).service -}}
{{- $base := printf "http://%s.%s" $service .Release.Namespace -}}
{{- $token := "" -}}
{{- if (.Values.exposeModel).enabled -}}
{{- $base = printf "https://%s" (index $route.hosts 0) -}}
{{- $token = " \\\n  -H \"Authorization: Bearer $TOKEN\"" -}}
{{- else -}}
# from a pod of the mesh in namespace {{ .Release.Namespace }}{{ "\n" }}
{{- end -}}
{{- if eq $protocol "openai" -}}
curl {{ $base }}{{ include "kserve-lib.openaiPrefix" . }}/v1/chat/completions{{ $token }} \
  -H "Content-Type: application/json" \
  -d '{"model": "{{ $name }}", "messages": [{"role": "user", "content": "1 + 1 = ?"}]}'
{{- else if eq $protocol "v1" -}}
curl {{ $base }}/v1/models/{{ $name }}:predict{{ $token }} \
  -H "Content-Type: application/json" \
  -d '{"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}'
{{- else if eq $protocol "v2" -}}
curl {{ $base }}/v2/models/{{ $name }}/infer{{ $token }} \
  -H "Content-Type: application/json" \
  -d '{"inputs": [{"name": "input-0", "shape": [1, 4], "datatype": "FP32", "data": [6.8, 2.8, 4.8, 1.4]}]}'
{{- else -}}
curl {{ $base }}{{ index (include "kserve-lib.paths" . | fromYaml).prefix 0 }}{{ $token }}
{{- end -}}
{{- end }}

{{/* What KServe's Hugging Face server has before OpenAI's paths: nothing, unless the model's environment says so. */}}
{{- define "kserve-lib.openaiPrefix" -}}
{{- $prefix := "" -}}
{{- if eq (include "kserve-lib.server" .) "huggingface" -}}
{{- range (include "kserve-lib.modelEnv" . | fromYaml).env -}}
{{- if and (eq .name "KSERVE_OPENAI_ROUTE_PREFIX") .value }}{{ $prefix = print "/" (trimPrefix "/" .value) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $prefix -}}
{{- end }}

{{/* What the values leave open, one a line. */}}
{{- define "kserve-lib.warnings" -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- $exposed := (.Values.exposeModel).enabled -}}
{{- $issuers := (include "kserve-lib.issuers" . | fromYaml).issuers -}}
{{- $atGateway := and (include "kserve-lib.limited" .) (not (include "kserve-lib.limitedAtPods" .)) -}}
{{- if eq $source.kind "example" }}
THE EXAMPLE IS SERVED, because no model was given: KServe's iris for sklearn. Set inferenceservice.predictor.model or .containers.
{{- end }}
{{- if include "kserve-lib.gpuTargetLeftOut" . }}
autoscaling.targetGPUUtilizationPercentage was left out: the model asks for no GPU. Set resources.limitGPU.
{{- end }}
{{- if not $exposed }}
exposeModel.enabled is false: nobody outside the mesh gets at the model.
{{- end }}
{{- if and $exposed (not $issuers) }}
platform.jwt.issuers is empty: nobody outside gets in, whatever token is shown.
{{- end }}
{{- if and $exposed (eq (toString ((.Values.exposeModel).jwtVerify).enabled) "false") }}
exposeModel.jwtVerify.enabled is false, and tokens are verified all the same: without one nobody outside gets in.
{{- end }}
{{- range $issuers }}
{{- if not .audiences }}
Any token of {{ .issuer }} gets in: neither exposeModel.jwtVerify.Audiences nor the issuer has audiences.
{{- end }}
{{- end }}
{{- if and $atGateway $exposed }}
Requests are counted at the gateway alone: callers inside the mesh are not. platform.tokenweir.placement: sidecar counts them too.
The gateway must verify tokens (a RequestAuthentication there; the chart platform makes it), or every request gets 403.
{{- end }}
{{- if and $atGateway (not $exposed) }}
{{ eq (include "kserve-lib.metered" .) "true" | ternary "Tokens are" "Requests are" }} counted nowhere: that happens at the gateway (platform.tokenweir.placement), and the model is not published there.
{{- end }}
{{- if and (eq (include "kserve-lib.protocol" .) "openai") (not (include "kserve-lib.metered" .)) }}
The tokens of this LLM are not counted: {{ (include "kserve-lib.tokenweir" . | fromYaml).enabled | ternary "tokenLimit.enabled" "platform.tokenweir.enabled" }} is false.
{{- end }}
{{- if and (ne ((.Values.autoscaling).engine | default "keda") "hpa") (or (.Values.autoscaling).targetCPUUtilizationPercentage (.Values.autoscaling).targetMemoryUtilizationPercentage) }}
KEDA's webhook, where it is on, refuses scaling by CPU or memory until KServe has made the Deployment: if the first install fails so, run it again.
{{- end }}
{{- if eq ((.Values.security).mtls | default "STRICT") "PERMISSIVE" }}
security.mtls is PERMISSIVE: plain text is taken. Nobody gets in by it without a token.
{{- end }}
{{- if and $exposed (.Values.exposeModel).paths (eq (include "kserve-lib.protocol" .) "openai") }}
exposeModel.paths replaces the paths that are known to be metered. What else they let in is not counted.
{{- end }}
{{- end }}
