{{/* One route's patch. `.`: root, route. */}}
{{- define "tokenweir.routePatch" -}}
{{- $tokens := eq (.route.meter | default "tokens") "tokens" -}}
applyTo: HTTP_ROUTE
match:
  context: {{ include "tokenweir.context" .root | quote }}
  routeConfiguration:
    vhost:
      # A redirect or an answer of its own has nothing to meter, and a merge would make it a route to nowhere.
      route: {name: {{ .route.name | quote }}, action: ROUTE}
patch:
  operation: MERGE
  value:
    {{- if $tokens }}
    {{- include "tokenweir.meteredTokens" . | nindent 4 }}
    {{- else }}
    {{- include "tokenweir.meteredRequests" . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "tokenweir.routeKey" -}}
{{- .route.key | default .route.name -}}
{{- end -}}

{{/* scope:amount/window counts requests, scope:amount/window:unit counts the unit. */}}
{{- define "tokenweir.routeLimit" -}}
{{- $unit := .unit | default "tokens" -}}
{{- printf "%s:%d/%s" .scope (int64 .amount) .window -}}
{{- if ne $unit "requests" -}}{{- printf ":%s" $unit -}}{{- end -}}
{{- end -}}

{{- define "tokenweir.meteredTokens" -}}
{{- $limits := list -}}
{{- range .route.limits -}}{{- $limits = append $limits (include "tokenweir.routeLimit" .) -}}{{- end -}}
typed_per_filter_config:
  tokenweir.buffer:
    "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute
    buffer: {max_request_bytes: {{ include "tokenweir.maxBodyBytes" .root }}}
  tokenweir:
    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute
    overrides:
      grpc_initial_metadata:
        - {key: tokenweir-route, value: {{ include "tokenweir.routeKey" . | quote }}}
        {{- with $limits }}
        - {key: tokenweir-limits, value: {{ join "," . | quote }}}
        {{- end }}
response_headers_to_add:
  # In every answer, so that a caller can name it.
  - header: {key: x-request-id, value: "%REQ(X-REQUEST-ID)%"}
    append_action: OVERWRITE_IF_EXISTS_OR_ADD
route:
  # What a WebSocket sends has no end that the buffer could wait for: refused at once, instead of never answered.
  upgrade_configs: [{upgrade_type: websocket, enabled: false}]
{{- end -}}

{{- define "tokenweir.meteredRequests" -}}
{{- $identity := (.root.Values.config).identity | default dict -}}
typed_per_filter_config:
  tokenweir.ratelimit:
    "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute
# An upstream's own headers of these names would stand beside Tokenweir's.
response_headers_to_remove: [x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests]
route:
  rate_limits:
    - actions:
        - remote_address: {}
        {{- include "tokenweir.claimAction" (list "service_account" ($identity.service_account_claim | default "sub") $identity) | nindent 8 }}
        {{- with hasKey $identity "tenant_claim" | ternary $identity.tenant_claim "tenant" }}
        {{- include "tokenweir.claimAction" (list "tenant" . $identity) | nindent 8 }}
        {{- end }}
        - generic_key: {descriptor_key: route, descriptor_value: {{ include "tokenweir.routeKey" . | quote }}}
        {{- range .route.limits }}
        - generic_key: {descriptor_key: limit, descriptor_value: {{ include "tokenweir.routeLimit" (merge (dict "unit" "requests") .) | quote }}}
        {{- end }}
{{- end -}}

{{/* Name of the entry, claim, settings of identity. Without a token the entry is left out. */}}
{{- define "tokenweir.claimAction" -}}
{{- $identity := index . 2 -}}
- metadata:
    descriptor_key: {{ index . 0 | quote }}
    metadata_key:
      key: {{ $identity.jwt_namespace | default "envoy.filters.http.jwt_authn" | quote }}
      path: [{key: {{ $identity.jwt_payload_key | default "payload" | quote }}}, {key: {{ index . 1 | quote }}}]
    source: DYNAMIC
    skip_if_absent: true
{{- end -}}
