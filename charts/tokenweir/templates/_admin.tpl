{{/* The admin API: a Deployment of its own, which no request of a model passes. */}}
{{- define "tokenweir.admin.enabled" -}}
{{- if (.Values.admin).enabled -}}true{{- end -}}
{{- end -}}

{{- define "tokenweir.admin.name" -}}
{{- printf "%s-admin" (include "tokenweir.fullname" .) -}}
{{- end -}}

{{- define "tokenweir.admin.labels" -}}
{{ include "tokenweir.selectorLabels" . }}
app.kubernetes.io/component: admin
{{- end -}}

{{- define "tokenweir.admin.podLabels" -}}
{{- $own := include "tokenweir.labels" . | fromYaml -}}
{{- $fixed := dict "app.kubernetes.io/component" "admin" "sidecar.istio.io/inject" "true" -}}
{{- merge $fixed $own (.Values.podLabels | default dict) | toYaml -}}
{{- end -}}

{{- define "tokenweir.admin.podAnnotations" -}}
{{- $proxy := dict "holdApplicationUntilProxyStarts" true -}}
{{- $all := dict "checksum/config" (include "tokenweir.config" . | sha256sum) "proxy.istio.io/config" (toYaml $proxy) -}}
{{- with (.Values.mesh).excludeOutboundPorts -}}
{{- $ports := list -}}
{{- range . -}}{{- $ports = append $ports (int64 . | toString) -}}{{- end -}}
{{- $_ := set $all "traffic.sidecar.istio.io/excludeOutboundPorts" (join "," $ports) -}}
{{- end -}}
{{- merge $all (.Values.podAnnotations | default dict) | toYaml -}}
{{- end -}}

{{- define "tokenweir.admin.serviceAccountName" -}}
{{- $account := .Values.admin.serviceAccount | default dict -}}
{{- if ne (toString $account.create) "false" -}}
{{- $account.name | default (include "tokenweir.admin.name" .) -}}
{{- else -}}
{{- $account.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.admin.drainSeconds" -}}
{{- ((.Values.config).admin).drain_s | default 10 | float64 | ceil | int64 -}}
{{- end -}}

{{- define "tokenweir.admin.env" -}}
- {name: TOKENWEIR_CONFIG, value: /etc/tokenweir/tokenweir.yaml}
- {name: TOKENWEIR_ADMIN__ADDRESS, value: {{ printf "%s:8460" (.Values.listenAddress | default "0.0.0.0") | quote }}}
# The sidecar ends the mesh's mTLS in front.
- {name: TOKENWEIR_ADMIN__ALLOW_PLAINTEXT, value: "true"}
{{- if and .Values.admin.host (not (hasKey ((.Values.config).admin | default dict) "forwarded_hops")) }}
# The gateway adds the client's address.
- {name: TOKENWEIR_ADMIN__FORWARDED_HOPS, value: "1"}
{{- end }}
{{ include "tokenweir.storeEnv" (dict "root" . "store" "redis") }}
{{ include "tokenweir.storeEnv" (dict "root" . "store" "mongo") }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The settings, and what the stores need; no spool, and no secret of the webhook. */}}
{{- define "tokenweir.admin.mounts" -}}
- {name: config, mountPath: /etc/tokenweir/tokenweir.yaml, subPath: tokenweir.yaml, readOnly: true}
{{- range $store := list "redis" "mongo" }}
{{- if include "tokenweir.caVolume" (dict "root" $ "store" $store) }}
- {name: {{ $store }}-ca, mountPath: /etc/tokenweir/{{ $store }}, readOnly: true}
{{- end }}
{{- if include "tokenweir.secretVolume" (dict "root" $ "of" $store "key" "url" "path" "url") }}
- {name: {{ $store }}-secret, mountPath: /etc/tokenweir/secrets/{{ $store }}, readOnly: true}
{{- end }}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tokenweir.admin.volumes" -}}
- name: config
  configMap: {name: {{ include "tokenweir.fullname" . | quote }}}
{{- range $store := list "redis" "mongo" }}
{{- with include "tokenweir.caVolume" (dict "root" $ "store" $store) }}
- {{ . | nindent 2 | trim }}
{{- end }}
{{- with include "tokenweir.secretVolume" (dict "root" $ "of" $store "key" (printf "%s-url" $store) "path" "url") }}
- {{ . | nindent 2 | trim }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tokenweir.check.admin" -}}
{{- $config := (.Values.config).admin | default dict -}}
{{- range $name := list "address" "allow_plaintext" "tls" -}}
{{- if hasKey $config $name -}}
{{- fail (printf "config.admin.%s: leave it out: the sidecar ends the mesh's mTLS in front of port 8460" $name) -}}
{{- end -}}
{{- end -}}
{{- if include "tokenweir.admin.enabled" . -}}
{{- if not (include "tokenweir.inMesh" .) -}}
{{- fail "admin.enabled: needs mesh.sidecar: true: without it tokens would pass in the clear" -}}
{{- end -}}
{{- if and .Values.admin.host (not .Values.admin.gateways) -}}
{{- fail "admin.host: set admin.gateways too: the Istio Gateways that publish it, such as istio-system/public" -}}
{{- end -}}
{{- range $store := list "redis" "mongo" -}}
{{- if hasPrefix "memory://" ((index $.Values $store | default dict).url | default "") -}}
{{- fail (printf "admin.enabled: %s.url is memory://, which is inside the processor: give a URL that both share" $store) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
