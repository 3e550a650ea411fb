{{- define "tokenweir.podLabels" -}}
{{- $own := include "tokenweir.labels" . | fromYaml -}}
{{- $fixed := dict "app.kubernetes.io/component" "processor" "sidecar.istio.io/inject" (ternary "true" "false" (eq (include "tokenweir.inMesh" .) "true")) -}}
{{- merge $fixed $own (.Values.podLabels | default dict) | toYaml -}}
{{- end -}}

{{- define "tokenweir.podAnnotations" -}}
{{- $all := dict "checksum/config" (include "tokenweir.config" . | sha256sum) -}}
{{- if eq (.Values.metrics).scrape "annotations" -}}
{{- $_ := merge $all (dict "prometheus.io/scrape" "true" "prometheus.io/port" "9464" "prometheus.io/path" "/metrics") -}}
{{- end -}}
{{- if include "tokenweir.inMesh" . -}}
{{- /* The sidecar starts first (the stores are behind it) and ends last (so do the streams). */ -}}
{{- $drain := add (include "tokenweir.drainSeconds" .) (include "tokenweir.preStopSeconds" .) 10 -}}
{{- $proxy := dict "holdApplicationUntilProxyStarts" true "terminationDrainDuration" (printf "%ds" $drain) -}}
{{- /* Envoy ends a stream that it is done with by a reset. To nghttp2 many of them are an attack: it closes the connection. */ -}}
{{- $_ := set $proxy "runtimeValues" (dict "envoy.reloadable_features.http2_use_oghttp2" "true") -}}
{{- $_ := set $all "proxy.istio.io/config" (toYaml $proxy) -}}
{{- with (.Values.mesh).excludeOutboundPorts -}}
{{- $ports := list -}}
{{- range . -}}{{- $ports = append $ports (int64 . | toString) -}}{{- end -}}
{{- $_ := set $all "traffic.sidecar.istio.io/excludeOutboundPorts" (join "," $ports) -}}
{{- end -}}
{{- end -}}
{{- merge $all (.Values.podAnnotations | default dict) | toYaml -}}
{{- end -}}

{{/* `.`: the user. */}}
{{- define "tokenweir.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "tokenweir.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "tokenweir.env" -}}
{{- $webhook := .Values.webhook | default dict -}}
{{- $secret := $webhook.existingSecret | default dict -}}
{{- $address := .Values.listenAddress | default "0.0.0.0" -}}
# By variable, so that every command in the pod has it: kubectl exec ... -- tokenweir tenant list
- {name: TOKENWEIR_CONFIG, value: /etc/tokenweir/tokenweir.yaml}
- {name: TOKENWEIR_SERVER__ADDRESS, value: {{ printf "%s:50051" $address | quote }}}
# The sidecar ends the mesh's mTLS in front; without one (mesh.sidecar: false) the NetworkPolicy is what is left.
- {name: TOKENWEIR_SERVER__ALLOW_PLAINTEXT, value: "true"}
- {name: TOKENWEIR_METRICS__ADDRESS, value: {{ printf "%s:9464" $address | quote }}}
{{ include "tokenweir.storeEnv" (dict "root" . "store" "redis") }}
{{ include "tokenweir.storeEnv" (dict "root" . "store" "mongo") }}
{{- if $secret.name }}
- {name: TOKENWEIR_ALERTS__WEBHOOK_SECRET_FILE, value: /etc/tokenweir/secrets/webhook/secret}
- name: TOKENWEIR_ALERTS__WEBHOOK_URL
  {{- if $webhook.url }}
  value: {{ $webhook.url | quote }}
  {{- else }}
  valueFrom:
    secretKeyRef: {name: {{ $secret.name | quote }}, key: {{ $secret.urlKey | quote }}}
  {{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Until both stores answer, nothing is served: a start may take as long as they do. Later on they may be away, and
the pod lives. A probe of gRPC has no named port. */}}
{{- define "tokenweir.probes" -}}
startupProbe:
  grpc: {port: 50051}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 300
readinessProbe:
  grpc: {port: 50051, service: envoy.service.ext_proc.v3.ExternalProcessor}
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  grpc: {port: 50051}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{- define "tokenweir.mounts" -}}
- {name: config, mountPath: /etc/tokenweir/tokenweir.yaml, subPath: tokenweir.yaml, readOnly: true}
{{- if include "tokenweir.spoolSize" . }}
- {name: spool, mountPath: /var/spool/tokenweir}
{{- end }}
{{- range $store := list "redis" "mongo" }}
{{- if include "tokenweir.caVolume" (dict "root" $ "store" $store) }}
- {name: {{ $store }}-ca, mountPath: /etc/tokenweir/{{ $store }}, readOnly: true}
{{- end }}
{{- end }}
{{- range include "tokenweir.secrets" . | fromYamlArray }}
{{- if include "tokenweir.secretVolume" (merge (dict "root" $) .) }}
- {name: {{ .of }}-secret, mountPath: /etc/tokenweir/secrets/{{ .of }}, readOnly: true}
{{- end }}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tokenweir.volumes" -}}
- name: config
  configMap: {name: {{ include "tokenweir.fullname" . | quote }}}
{{- with include "tokenweir.spoolSize" . }}
- name: spool
  emptyDir: {sizeLimit: {{ . }}}
{{- end }}
{{- range $store := list "redis" "mongo" }}
{{- with include "tokenweir.caVolume" (dict "root" $ "store" $store) }}
- {{ . | nindent 2 | trim }}
{{- end }}
{{- end }}
{{- range include "tokenweir.secrets" . | fromYamlArray }}
{{- with include "tokenweir.secretVolume" (merge (dict "root" $) .) }}
- {{ . | nindent 2 | trim }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tokenweir.spread" -}}
{{- if kindIs "slice" .Values.topologySpreadConstraints -}}
{{- toYaml .Values.topologySpreadConstraints -}}
{{- else -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ . | quote }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "tokenweir.processorLabels" $ | nindent 6 }}
  # Else the pods of the version that goes would count.
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end -}}
{{- end -}}
