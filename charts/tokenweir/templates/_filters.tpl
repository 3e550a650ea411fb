{{/* The three filters, in the order in which requests pass them. The reason for each setting stands in
extproc/local/envoy.yaml. */}}
{{- define "tokenweir.filter.buffer" -}}
name: tokenweir.buffer
disabled: true
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
  max_request_bytes: {{ include "tokenweir.maxBodyBytes" . }}
{{- end -}}

{{- define "tokenweir.filter.processor" -}}
{{- $filter := .Values.filter | default dict -}}
name: tokenweir
disabled: true
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
  grpc_service:
    envoy_grpc: {cluster_name: {{ include "tokenweir.cluster" . | quote }}, authority: {{ include "tokenweir.host" . | quote }}}
    # A processor that is gone before it has answered anything is replaced by another one.
    retry_policy:
      retry_on: connect-failure,reset,unavailable,cancelled
      num_retries: 2
      retry_host_predicate:
        - name: envoy.retry_host_predicates.previous_hosts
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
      host_selection_retry_max_attempts: 5
      retry_back_off: {base_interval: 0.025s, max_interval: 0.25s}
  failure_mode_allow: {{ $filter.failureModeAllow | default false }}
  status_on_error: {code: ServiceUnavailable}
  message_timeout: {{ $filter.messageTimeout | default (include "tokenweir.messageTimeout" .) | quote }}
  send_body_without_waiting_for_header_response: true
  processing_mode:
    request_header_mode: SEND
    request_body_mode: STREAMED
    request_trailer_mode: SEND
    response_header_mode: SEND
    response_body_mode: STREAMED
    # Behind Istio, an upstream may speak HTTP/2: then the end of an answer can be its trailers.
    response_trailer_mode: SEND
  request_attributes: [source.address, request.id, connection.uri_san_peer_certificate]
  response_attributes: [response.code_details, upstream.request_attempt_count]
  metadata_options:
    forwarding_namespaces:
      untyped: [{{ ((.Values.config).identity).jwt_namespace | default "envoy.filters.http.jwt_authn" | quote }}]
{{- end -}}

{{- define "tokenweir.filter.rateLimit" -}}
{{- $filter := .Values.filter | default dict -}}
name: tokenweir.ratelimit
disabled: true
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
  domain: tokenweir
  timeout: {{ $filter.rateLimitTimeout | default "0.5s" | quote }}
  failure_mode_deny: {{ not ($filter.failureModeAllow | default false) }}
  status_on_error: {code: ServiceUnavailable}
  enable_x_ratelimit_headers: "OFF"
  rate_limit_service:
    transport_api_version: V3
    grpc_service:
      envoy_grpc: {cluster_name: {{ include "tokenweir.cluster" . | quote }}, authority: {{ include "tokenweir.host" . | quote }}}
{{- end -}}

{{/* Headers that a client may not send: as mutations that come before everything else. */}}
{{- define "tokenweir.stripped" -}}
{{- $identity := (.Values.config).identity | default dict -}}
{{- $filter := .Values.filter | default dict -}}
{{- $names := concat (list ($identity.service_account_header | default "") ($identity.tenant_header | default "")) ($filter.stripHeaders | default list) -}}
{{- $mutations := list -}}
{{- range without $names "" -}}
{{- /* oc_sa and oc-sa are one variable to a server of CGI's or WSGI's kind. */ -}}
{{- range list (lower .) (lower . | replace "-" "_") (lower . | replace "_" "-") -}}
{{- $mutations = append $mutations (dict "remove" .) -}}
{{- end -}}
{{- end -}}
{{- $mutations = uniq $mutations -}}
{{- range $filter.stripHeaderPrefixes -}}
{{- $mutations = append $mutations (dict "remove_on_match" (dict "key_matcher" (dict "prefix" (lower .)))) -}}
{{- end -}}
{{- if $mutations -}}{{- toYaml $mutations -}}{{- end -}}
{{- end -}}

{{/* What every patch of a connection manager is matched by. `.`: the context. */}}
{{- define "tokenweir.listenerMatch" -}}
context: {{ .context | quote }}
listener:
  filterChain:
    filter:
      name: envoy.filters.network.http_connection_manager
      {{- if .router }}
      subFilter: {name: envoy.filters.http.router}
      {{- end }}
{{- end -}}

{{- define "tokenweir.context" -}}
{{- ternary "SIDECAR_INBOUND" "GATEWAY" (eq (include "tokenweir.placement" .) "sidecar") -}}
{{- end -}}
