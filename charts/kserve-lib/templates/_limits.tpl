{{/* Where Tokenweir meets the requests of a release, and the limits that the release brings along. */}}

{{/* platform.tokenweir with its defaults, as YAML: any of it may be null. */}}
{{- define "kserve-lib.tokenweir" -}}
{{- $given := (.Values.platform).tokenweir | default dict -}}
enabled: {{ ne (toString $given.enabled) "false" }}
placement: {{ $given.placement | default "gateway" }}
maxBodyBytes: {{ $given.maxBodyBytes | default 33554432 | int64 }}
serviceAccountClaim: {{ $given.serviceAccountClaim | default "sub" | quote }}
tenantClaim: {{ dig "tenantClaim" "tenant" $given | toString | quote }}
{{- end }}

{{/* "true" where Tokenweir counts the tokens of the model, else empty. */}}
{{- define "kserve-lib.metered" -}}
{{- $wanted := eq (include "kserve-lib.protocol" .) "openai" -}}
{{- if kindIs "bool" (.Values.tokenLimit).enabled }}{{ $wanted = .Values.tokenLimit.enabled }}{{ end -}}
{{- if and $wanted (include "kserve-lib.tokenweir" . | fromYaml).enabled -}}true{{- end -}}
{{- end }}

{{/* "true" where requests pass Tokenweir, be it for tokens or for requests alone; else empty. */}}
{{- define "kserve-lib.limited" -}}
{{- if or (include "kserve-lib.metered" .) (include "kserve-lib.limitList" .) -}}true{{- end -}}
{{- end }}

{{/* The same, where that happens at the model's own pods. */}}
{{- define "kserve-lib.limitedAtPods" -}}
{{- if eq (include "kserve-lib.tokenweir" . | fromYaml).placement "sidecar" }}{{ include "kserve-lib.limited" . }}{{ end -}}
{{- end }}

{{/*
The release's limits as Tokenweir reads them, joined by commas: scope:amount/window counts requests,
scope:amount/window:unit counts the unit.
*/}}
{{- define "kserve-lib.limitList" -}}
{{- $limits := list -}}
{{- if not (kindIs "invalid" .Values.ratelimitIPPerMinute) -}}
{{- $limits = append $limits (printf "client_ip:%d/minute" (int64 .Values.ratelimitIPPerMinute)) -}}
{{- end -}}
{{- if not (kindIs "invalid" .Values.ratelimitEachSAPerMinute) -}}
{{- $limits = append $limits (printf "service_account:%d/minute" (int64 .Values.ratelimitEachSAPerMinute)) -}}
{{- end -}}
{{- range ((.Values.tokenLimit).limits | default list) -}}
{{- $unit := .unit | default "tokens" -}}
{{- $scope := eq .scope "client_ip+service_account" | ternary "service_account+client_ip" .scope -}}
{{- $limit := printf "%s:%d/%s" $scope (int64 .amount) .window -}}
{{- $limits = append $limits (eq $unit "requests" | ternary $limit (printf "%s:%s" $limit $unit)) -}}
{{- end -}}
{{- $limits | uniq | join "," -}}
{{- end }}

{{/* Fails where limits are set that nothing would enforce. */}}
{{- define "kserve-lib.checkLimits" -}}
{{- $limits := include "kserve-lib.limitList" . -}}
{{- $tokenweir := include "kserve-lib.tokenweir" . | fromYaml -}}
{{- if and $limits (not $tokenweir.enabled) -}}
{{- fail (printf "nothing would enforce the limits %s: Tokenweir is off. Set platform.tokenweir.enabled: true, or remove ratelimitIPPerMinute, ratelimitEachSAPerMinute and tokenLimit.limits" $limits) -}}
{{- end -}}
{{- if not (include "kserve-lib.metered" .) -}}
{{- range ((.Values.tokenLimit).limits | default list) -}}
{{- if ne (.unit | default "tokens") "requests" -}}
{{- $why := printf "its protocol is %s" (include "kserve-lib.protocol" $) -}}
{{- if kindIs "bool" ($.Values.tokenLimit).enabled }}{{ $why = "tokenLimit.enabled is false" }}{{ end -}}
{{- fail (printf "tokenLimit.limits counts %s (%s a %s), but the tokens of this model are not metered: %s. Set `unit: requests`; or tokenLimit.enabled: true, if it speaks OpenAI's API" (.unit | default "tokens") .scope .window $why) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
What switches Tokenweir's filters on for one route: the value of a patch. The filters themselves are made by the chart
tokenweir, off by default. The name `<namespace>/<release>` is that of the release's buckets: a canary has the
same, and so gives nobody a second budget.
*/}}
{{- define "kserve-lib.routePatch" -}}
{{- $tokenweir := include "kserve-lib.tokenweir" . | fromYaml -}}
{{- $limits := include "kserve-lib.limitList" . -}}
{{- $name := printf "%s/%s" .Release.Namespace .Release.Name -}}
{{- if include "kserve-lib.metered" . -}}
typed_per_filter_config:
  tokenweir.buffer:
    "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute
    buffer:
      max_request_bytes: {{ $tokenweir.maxBodyBytes | int64 }}
  tokenweir:
    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute
    overrides:
      grpc_initial_metadata:
        - key: tokenweir-route
          value: {{ $name | quote }}
        {{- with $limits }}
        - key: tokenweir-limits
          value: {{ . | quote }}
        {{- end }}
# In every answer, so that a caller can name it.
response_headers_to_add:
  - header:
      key: x-request-id
      value: "%REQ(X-REQUEST-ID)%"
    append_action: OVERWRITE_IF_EXISTS_OR_ADD
# What is counted needs a whole body, and a WebSocket has none: its request would wait for ever.
route:
  upgrade_configs:
    - upgrade_type: websocket
      enabled: false
{{- else if $limits -}}
typed_per_filter_config:
  tokenweir.ratelimit:
    "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute
route:
  rate_limits:
    - actions:
        - remote_address: {}
        {{- include "kserve-lib.claimAction" (dict "key" "service_account" "claim" $tokenweir.serviceAccountClaim) | nindent 8 }}
        {{- with $tokenweir.tenantClaim }}
        {{- include "kserve-lib.claimAction" (dict "key" "tenant" "claim" .) | nindent 8 }}
        {{- end }}
        - generic_key:
            descriptor_key: route
            descriptor_value: {{ $name | quote }}
        {{- range splitList "," $limits }}
        - generic_key:
            descriptor_key: limit
            descriptor_value: {{ . | quote }}
        {{- end }}
{{- end -}}
{{- end }}

{{/* A claim of the verified token as an entry. Without a token it is left out, and the caller is anonymous. */}}
{{- define "kserve-lib.claimAction" -}}
- metadata:
    descriptor_key: {{ .key }}
    metadata_key:
      key: envoy.filters.http.jwt_authn
      path:
        - key: payload
        - key: {{ .claim | quote }}
    source: DYNAMIC
    skip_if_absent: true
{{- end }}

{{- define "kserve-lib.limits" -}}
{{- include "kserve-lib.checkLimits" . -}}
{{- $atPods := include "kserve-lib.limitedAtPods" . -}}
{{- if $atPods }}
{{ include "kserve-lib.podFilter" . }}
{{- end }}
{{- if (.Values.exposeModel).enabled }}
{{- $limited := and (include "kserve-lib.limited" .) (not $atPods) -}}
{{- $api := (.Values.exposeModel).api | default "istio" -}}
{{- if or $limited (eq $api "gateway-api") }}
---
{{ include "kserve-lib.gatewayFilter" (dict "root" . "limited" $limited "api" $api) }}
{{- end }}
{{- end }}
{{- end }}

{{/* At the model's pods: whoever calls, from inside the mesh too. Istio names its one inbound route `default`. */}}
{{- define "kserve-lib.podFilter" -}}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" (print .Release.Name "-limits")) | nindent 2 }}
spec:
  workloadSelector:
    labels:
      {{- include "kserve-lib.selectorLabels" . | nindent 6 }}
      tokenweir.io/metered: "true"
  configPatches:
    - applyTo: HTTP_ROUTE
      match:
        context: SIDECAR_INBOUND
        routeConfiguration:
          vhost:
            route:
              name: default
              action: ROUTE
      patch:
        operation: MERGE
        value:
          {{- include "kserve-lib.routePatch" . | nindent 10 }}
{{- end }}

{{/*
At the gateway: for the routes of this release, by their names. Arguments: root, limited (whether Tokenweir is asked
here), api.

HTTPRoute can't say that a request is not to be repeated, and Istio's default is two repeats. In a merge a number of
0 counts as not given, so the policy gets a condition that no answer meets instead.
*/}}
{{- define "kserve-lib.gatewayFilter" -}}
{{- $root := .root -}}
{{- $publishing := include "kserve-lib.publishing" $root | fromYaml -}}
{{- $patch := dict -}}
{{- if .limited }}{{ $patch = include "kserve-lib.routePatch" $root | fromYaml }}{{ end -}}
{{- if eq .api "gateway-api" -}}
{{- $_ := set $patch "route" (merge (dict "retry_policy" (dict "retry_on" "retriable-headers")) ($patch.route | default dict)) -}}
{{- end -}}
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  {{- include "kserve-lib.meta" (dict "root" $root "name" (printf "%s.%s" $root.Release.Namespace $root.Release.Name) "namespace" $publishing.gateway.namespace) | nindent 2 }}
spec:
  {{- with $publishing.gateway.selector }}
  workloadSelector:
    labels:
      {{- toYaml . | nindent 6 }}
  {{- end }}
  configPatches:
    {{- range (include "kserve-lib.routes" $root | fromYaml).routes }}
    {{- range (eq $.api "gateway-api" | ternary (list .name .positionalName) (list .name)) }}
    - applyTo: HTTP_ROUTE
      match:
        context: GATEWAY
        routeConfiguration:
          vhost:
            route:
              name: {{ . }}
              action: ROUTE
      patch:
        operation: MERGE
        value:
          {{- toYaml $patch | nindent 10 }}
    {{- end }}
    {{- end }}
{{- end }}
