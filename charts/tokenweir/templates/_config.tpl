{{/* The settings file: `config`, and what follows from other values. */}}
{{- define "tokenweir.config" -}}
{{- $config := deepCopy (.Values.config | default dict) -}}
{{- if eq (include "tokenweir.placement" .) "sidecar" -}}
{{- /* There the caller's own certificate is seen; the gateway's names nobody. */ -}}
{{- $gateway := include "tokenweir.gateway" . | fromYaml -}}
{{- $derived := dict "peer_principals" true "gateway_principals" $gateway.principals -}}
{{- $identity := $config.identity | default dict -}}
{{- range $name, $value := $derived -}}
{{- if not (hasKey $identity $name) -}}{{- $_ := set $identity $name $value -}}{{- end -}}
{{- end -}}
{{- $_ := set $config "identity" $identity -}}
{{- end -}}
{{- if include "tokenweir.spoolSize" . -}}
{{- /* A directory in the volume: the volume itself can be written to by others. */ -}}
{{- $_ := set $config "spool" (merge (dict "directory" "/var/spool/tokenweir/own") ($config.spool | default dict)) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Size of the volume for the spool: beside the process' own, what ones before it left may wait there. Empty where
`config.spool.directory` names another place, or none. */}}
{{- define "tokenweir.spoolSize" -}}
{{- $spool := (.Values.config).spool | default dict -}}
{{- if not (hasKey $spool "directory") -}}
{{- printf "%dMi" (div (add (mul 4 ($spool.max_bytes | default 67108864 | int64)) 1048575) 1048576) -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.maxBodyBytes" -}}
{{- ((.Values.config).server).max_body_bytes | default 33554432 | int64 -}}
{{- end -}}

{{/* The time that the processor has for the answer to one message, as a duration of Envoy. */}}
{{- define "tokenweir.messageTimeout" -}}
{{- printf "%vs" (((.Values.config).server).message_timeout_s | default 2 | float64) -}}
{{- end -}}

{{- define "tokenweir.drainSeconds" -}}
{{- ((.Values.config).server).drain_s | default 20 | float64 | ceil | int64 -}}
{{- end -}}

{{- define "tokenweir.preStopSeconds" -}}
{{- .Values.preStopSeconds | default 5 | int64 -}}
{{- end -}}

{{/* The drain, and ten seconds to write down what is left. */}}
{{- define "tokenweir.gracePeriodSeconds" -}}
{{- $least := add (include "tokenweir.preStopSeconds" . | int64) (include "tokenweir.drainSeconds" . | int64) 10 -}}
{{- $grace := .Values.terminationGracePeriodSeconds | default $least | int64 -}}
{{- if lt $grace $least -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short: preStopSeconds, config.server.drain_s and 10 are %d; a pod killed before loses what it had not recorded" $grace $least) -}}
{{- end -}}
{{- $grace -}}
{{- end -}}

{{/* The variable of a store's URL: of the file that holds it, where it is a secret. A file follows its Secret. */}}
{{- define "tokenweir.storeEnv" -}}
{{- $store := index .root.Values .store | default dict -}}
{{- if ($store.existingSecret).name }}
- {name: {{ printf "TOKENWEIR_%s__URL_FILE" (upper .store) | quote }}, value: {{ printf "/etc/tokenweir/secrets/%s/url" .store | quote }}}
{{- else }}
- {name: {{ printf "TOKENWEIR_%s__URL" (upper .store) | quote }}, value: {{ include "tokenweir.storeURL" . | quote }}}
{{- end }}
{{- end -}}

{{/* The volume of one secret; empty where there is none. A mount with a subPath would not follow the Secret. */}}
{{- define "tokenweir.secretVolume" -}}
{{- $secret := (index .root.Values .of | default dict).existingSecret | default dict -}}
{{- if $secret.name -}}
{{- $items := list (dict "key" ($secret.key | default .key) "path" .path) -}}
{{- dict "name" (printf "%s-secret" .of) "secret" (dict "secretName" $secret.name "items" $items) | toYaml -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.secrets" -}}
- {of: redis, key: redis-url, path: url}
- {of: mongo, key: mongo-url, path: url}
- {of: webhook, key: webhook-secret, path: secret}
{{- end -}}

{{/* The URL that is no secret, with its CA. */}}
{{- define "tokenweir.storeURL" -}}
{{- $store := index .root.Values .store | default dict -}}
{{- $url := $store.url -}}
{{- if (.root.Values.trial).enabled -}}
{{- $url = include (printf "tokenweir.trial.%s.url" .store) .root -}}
{{- end -}}
{{- $option := ternary "ssl_ca_certs" "tlsCAFile" (eq .store "redis") -}}
{{- if and (include "tokenweir.caVolume" .) (not (contains $option $url)) -}}
{{- printf "%s%s%s=/etc/tokenweir/%s/ca.crt" $url (ternary "&" "?" (contains "?" $url)) $option .store -}}
{{- else -}}
{{- $url -}}
{{- end -}}
{{- end -}}

{{/* The volume of a store's CA; empty where it needs none. */}}
{{- define "tokenweir.caVolume" -}}
{{- $ca := (index .root.Values .store | default dict).ca | default dict -}}
{{- $items := list (dict "key" ($ca.key | default "ca.crt") "path" "ca.crt") -}}
{{- if $ca.secret -}}
{{- dict "name" (printf "%s-ca" .store) "secret" (dict "secretName" $ca.secret "items" $items) | toYaml -}}
{{- else if $ca.configMap -}}
{{- dict "name" (printf "%s-ca" .store) "configMap" (dict "name" $ca.configMap "items" $items) | toYaml -}}
{{- end -}}
{{- end -}}
