{{/* Envoy's own refusals as OpenAI's clients know them. The first mapper that matches decides; one without a format
leaves the body as it is: the processor's answers, which are local replies too, come first. */}}
{{- define "tokenweir.localReplies" -}}
- filter:
    extension_filter:
      name: envoy.access_loggers.extension_filters.cel
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter
        expression: "response.code_details == '' || response.code_details.startsWith('tokenweir')"
- filter:
    response_flag_filter: {flags: [RL]}
{{ include "tokenweir.localReply" (list "EQ" 401 "%LOCAL_REPLY_BODY%" "invalid_request_error" "invalid_api_key") }}
{{ include "tokenweir.localReply" (list "EQ" 403 "%LOCAL_REPLY_BODY%" "invalid_request_error" "permission_denied") }}
{{ include "tokenweir.localReply" (list "EQ" 404 "There is nothing at this address." "invalid_request_error" "not_found") }}
{{ include "tokenweir.localReply" (list "EQ" 413 (printf "The request body is larger than %s bytes." (include "tokenweir.maxBodyBytes" .)) "invalid_request_error" "request_too_large") }}
{{ include "tokenweir.localReply" (list "EQ" 504 "The server did not answer in time. Try again." "server_error" "timeout") }}
{{ include "tokenweir.localReply" (list "GE" 500 "The service is not available for the moment. Try again." "server_error" "service_unavailable") }}
{{ include "tokenweir.localReply" (list "GE" 400 "The request can not be served as it was sent." "invalid_request_error" "invalid_request") }}
{{- end -}}

{{/* Operator, status, message, type, code. */}}
{{- define "tokenweir.localReply" -}}
- filter:
    status_code_filter:
      comparison: {op: {{ index . 0 }}, value: {default_value: {{ index . 1 }}, runtime_key: tokenweir.unused}}
  body_format_override:
    json_format:
      error: {message: {{ index . 2 | quote }}, type: {{ index . 3 }}, param: null, code: {{ index . 4 }}}
{{- end -}}
