{{/* What no schema can say; each message names the value and the way out. */}}
{{- define "tokenweir.checks" -}}
{{- range $store := list "redis" "mongo" -}}
{{- include "tokenweir.check.store" (dict "root" $ "store" $store) -}}
{{- end -}}
{{- include "tokenweir.check.config" . -}}
{{- include "tokenweir.check.webhook" . -}}
{{- include "tokenweir.check.callers" . -}}
{{- include "tokenweir.check.scaling" . -}}
{{- include "tokenweir.check.admin" . -}}
{{- include "tokenweir.check.extra" . -}}
{{- include "tokenweir.check.dataSource" . -}}
{{- end -}}

{{- define "tokenweir.check.store" -}}
{{- $store := index .root.Values .store | default dict -}}
{{- $secret := ($store.existingSecret).name -}}
{{- $trial := (.root.Values.trial).enabled -}}
{{- $ca := $store.ca | default dict -}}
{{- if and $store.url $secret -}}
{{- fail (printf "%s.url and %s.existingSecret.name are both set: which one?" .store .store) -}}
{{- end -}}
{{- if and $trial (or $store.url $secret) -}}
{{- fail (printf "trial.enabled makes a store of its own: leave %s.url and %s.existingSecret.name empty, or turn it off" .store .store) -}}
{{- end -}}
{{- if not (or $store.url $secret $trial) -}}
{{- fail (printf "%s: set %s.existingSecret.name (a Secret with the URL) or %s.url (one without a password); for trials: trial.enabled" .store .store .store) -}}
{{- end -}}
{{- /* Clients take one from the query too. */ -}}
{{- if regexMatch "://[^/?]*:[^/?]*@|(?i)[?&][a-z]*password=" ($store.url | default "") -}}
{{- fail (printf "%s.url holds a password: put the URL into a Secret, and name that in %s.existingSecret.name" .store .store) -}}
{{- end -}}
{{- if and $ca.secret $ca.configMap -}}
{{- fail (printf "%s.ca: give secret or configMap, not both" .store) -}}
{{- end -}}
{{- if and $ca (not (or $ca.secret $ca.configMap)) -}}
{{- fail (printf "%s.ca: name the secret or configMap that holds the CA" .store) -}}
{{- end -}}
{{- if and (eq .store "redis") $ca (hasPrefix "redis://" ($store.url | default "")) -}}
{{- fail "redis.ca is for TLS: redis.url must start with rediss://" -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.check.config" -}}
{{- $elsewhere := dict "server.address" "listenAddress" "metrics.address" "listenAddress" "redis.url" "redis.url or redis.existingSecret" "redis.url_file" "redis.existingSecret" "mongo.url_file" "mongo.existingSecret" "alerts.webhook_secret_file" "webhook.existingSecret" "mongo.url" "mongo.url or mongo.existingSecret" "alerts.webhook_url" "webhook.url" "alerts.webhook_secret" "webhook.existingSecret" -}}
{{- range $name := list "tls" "allow_plaintext" -}}
{{- if hasKey (($.Values.config | default dict).server | default dict) $name -}}
{{- fail (printf "config.server.%s: leave it out: the mesh authenticates both sides, and the kubelet's probes speak plaintext" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $instead := $elsewhere -}}
{{- $path := splitList "." $name -}}
{{- if hasKey (index ($.Values.config | default dict) (first $path) | default dict) (last $path) -}}
{{- fail (printf "config.%s: set %s instead" $name $instead) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.check.webhook" -}}
{{- $webhook := .Values.webhook | default dict -}}
{{- $secret := $webhook.existingSecret | default dict -}}
{{- if and $webhook.url (not $secret.name) -}}
{{- fail "webhook.url: set webhook.existingSecret.name too: receivers must be able to tell alerts from forgeries" -}}
{{- end -}}
{{- if regexMatch "://[^/?]*@" ($webhook.url | default "") -}}
{{- fail "webhook.url holds a password: put the URL into a Secret, and name its key in webhook.existingSecret.urlKey" -}}
{{- end -}}
{{- if and $webhook.url $secret.urlKey -}}
{{- fail "webhook.url and webhook.existingSecret.urlKey are both set: which one?" -}}
{{- end -}}
{{- if and $secret.name (not (or $webhook.url $secret.urlKey)) -}}
{{- fail "webhook.existingSecret.name: set webhook.url, or webhook.existingSecret.urlKey, too: where are alerts to go?" -}}
{{- end -}}
{{- end -}}

{{/* Whoever reaches the processor can claim any identity. */}}
{{- define "tokenweir.check.callers" -}}
{{- $sidecars := eq (include "tokenweir.placement" .) "sidecar" -}}
{{- $gateway := include "tokenweir.gateway" . | fromYaml -}}
{{- if and $sidecars (not (.Values.sidecar).namespaces) -}}
{{- fail "sidecar.namespaces: name the namespaces of metered pods; only they may call the processor" -}}
{{- end -}}
{{- if and (not $sidecars) (not $gateway.principals) -}}
{{- fail "gateway.principals: name the gateway's mTLS principals, such as cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account; only they may call the processor" -}}
{{- end -}}
{{- if not (or (include "tokenweir.inMesh" .) (include "tokenweir.confined" .)) -}}
{{- fail "mesh.sidecar and networkPolicy.enabled are both off: whoever reaches the processor can claim any identity; turn one on" -}}
{{- end -}}
{{- $metrics := .Values.metrics | default dict -}}
{{- if and (not (include "tokenweir.confined" .)) (ne $metrics.scrape "none") (not $metrics.principals) -}}
{{- fail "networkPolicy.enabled is off, so anybody in the mesh could read which tenants use which models: name Prometheus in metrics.principals, or set metrics.scrape: none" -}}
{{- end -}}
{{- range .Values.routes -}}
{{- include "tokenweir.check.route" (dict "route" . "sidecars" $sidecars) -}}
{{- end -}}
{{- $seen := list -}}
{{- range .Values.routes -}}
{{- $place := list .name .namespace .selector | toJson -}}
{{- if has $place $seen -}}
{{- fail (printf "routes: %s stands there twice; the second one's limits would replace the first one's: make one of them" .name) -}}
{{- end -}}
{{- $seen = append $seen $place -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.check.route" -}}
{{- $route := .route -}}
{{- if and .sidecars (not (and $route.namespace $route.selector)) -}}
{{- fail (printf "routes: %s: placement sidecar needs the pods' namespace and selector" $route.name) -}}
{{- end -}}
{{- if and .sidecars (not $route.key) -}}
{{- fail (printf "routes: %s: placement sidecar needs a key: every inbound route has the same name" $route.name) -}}
{{- end -}}
{{- if and (not .sidecars) (or $route.namespace $route.selector) -}}
{{- fail (printf "routes: %s: namespace and selector are for placement sidecar" $route.name) -}}
{{- end -}}
{{- if and (eq ($route.meter | default "tokens") "requests") (not $route.limits) -}}
{{- fail (printf "routes: %s: meter requests needs limits" $route.name) -}}
{{- end -}}
{{- range $route.limits -}}
{{- if and (eq ($route.meter | default "tokens") "requests") (ne (.unit | default "requests") "requests") -}}
{{- fail (printf "routes: %s: meter requests counts requests, not %s" $route.name .unit) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.check.scaling" -}}
{{- $autoscaling := .Values.autoscaling | default dict -}}
{{- $several := ternary true (gt (.Values.replicaCount | default 1 | int64) 1) (eq true ($autoscaling.enabled | default false)) -}}
{{- range $store := list "redis" "mongo" -}}
{{- if and $several (hasPrefix "memory://" ((index $.Values $store | default dict).url | default "")) -}}
{{- fail (printf "%s.url is memory://, which each pod has for itself: set replicaCount: 1 and autoscaling.enabled: false, or give a URL that all share" $store) -}}
{{- end -}}
{{- end -}}
{{- if and $autoscaling.enabled (lt ($autoscaling.maxReplicas | default 10 | int64) ($autoscaling.minReplicas | default 2 | int64)) -}}
{{- fail "autoscaling.maxReplicas is less than autoscaling.minReplicas" -}}
{{- end -}}
{{- if and $autoscaling.enabled (not (((.Values.resources).requests).cpu)) -}}
{{- fail "autoscaling.enabled: set resources.requests.cpu: the target is a percentage of it" -}}
{{- end -}}
{{- end -}}

{{- define "tokenweir.check.dataSource" -}}
{{- $source := (.Values.metrics | default dict).dataSource | default dict -}}
{{- if and $source.enabled (not $source.url) -}}
{{- fail "metrics.dataSource.url: name the URL of the admin API, as Grafana reaches it" -}}
{{- end -}}
{{- end -}}
