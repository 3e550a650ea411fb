{{/* Publishing: hosts, paths, and the objects that route requests from the gateway and inside the mesh. */}}

{{/*
Where and how the release is published, as YAML: {domain, gateways, gateway: {namespace, selector, principals}}.
exposeModel.type picks one of platform.exposures; what that leaves out is the platform's.
*/}}
{{- define "kserve-lib.publishing" -}}
{{- $platform := .Values.platform | default dict -}}
{{- $exposures := $platform.exposures | default dict -}}
{{- $type := (.Values.exposeModel).type | default "" -}}
{{- $chosen := dict -}}
{{- if and $type $exposures -}}
{{- if not (hasKey $exposures $type) -}}
{{- fail (printf "exposeModel.type is %q, but platform.exposures has %s: choose one of them, or leave type empty for platform.domain" $type (keys $exposures | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $chosen = get $exposures $type | default dict -}}
{{- end -}}
{{- $gateway := $platform.gateway | default dict -}}
{{- $own := $chosen.gateway | default dict -}}
{{- $result := dict "domain" (tpl ($chosen.domain | default $platform.domain | default "models.example.com") . | lower) -}}
{{- $_ := set $result "gateways" ($chosen.gateways | default $platform.gateways | default (list "istio-system/istio-ingressgateway")) -}}
{{- $_ := set $result "gateway" (dict
      "namespace" ($own.namespace | default $gateway.namespace | default "istio-system")
      "selector" ($own.selector | default $gateway.selector | default (dict "istio" "ingressgateway"))) -}}
{{- toYaml $result -}}
{{- end }}

{{/* The mTLS principals of all gateways, as YAML: {principals}. They hand on requests of others. */}}
{{- define "kserve-lib.gatewayPrincipals" -}}
{{- $all := ((.Values.platform).gateway).principals | default list -}}
{{- range ((.Values.platform).exposures | default dict) -}}
{{- $all = concat $all (((. | default dict).gateway).principals | default list) -}}
{{- end -}}
{{- toYaml (dict "principals" ($all | uniq | sortAlpha)) -}}
{{- end }}

{{/*
The published routes, as YAML: {routes: [{name, positionalName, object, hosts, backends: [{service, weight}]}]}.
The first one is the release's own; kserve-general has one more for each variant, for trying it alone. `name` is unique
on a gateway, and what EnvoyFilters find the route by. `positionalName` is what an Istio that doesn't know the
name of an HTTPRoute's rule calls it.
*/}}
{{- define "kserve-lib.routes" -}}
{{- $root := . -}}
{{- $publishing := include "kserve-lib.publishing" . | fromYaml -}}
{{- $variants := (include "kserve-lib.variants" . | fromYaml).variants -}}
{{- $backends := list -}}
{{- range $variants -}}
{{- $backends = append $backends (dict "service" (include "kserve-lib.entrance" (dict "root" $root "variant" .)) "weight" .weight) -}}
{{- end -}}
{{- $hosts := concat (list (printf "%s-predictor-%s.%s" .Release.Name .Release.Namespace $publishing.domain)) ((.Values.exposeModel).hosts | default list) -}}
{{- $routes := list (dict "object" .Release.Name "hosts" ($hosts | uniq) "backends" $backends) -}}
{{- if eq .Chart.Name "kserve-general" -}}
{{- range $index, $variant := $variants -}}
{{- $host := printf "%s-predictor-%s.%s" $variant.isvc $root.Release.Namespace $publishing.domain -}}
{{- $backend := dict "service" (index $backends $index).service "weight" 100 -}}
{{- $routes = append $routes (dict "object" $variant.isvc "hosts" (list $host) "backends" (list $backend)) -}}
{{- end -}}
{{- end -}}
{{- range $routes -}}
{{- $_ := set . "name" (printf "%s.%s-predictor" $root.Release.Namespace .object) -}}
{{- $_ := set . "positionalName" (printf "%s.%s-public.%s" $root.Release.Namespace .object (include "kserve-lib.closedFirst" $root | empty | ternary "0" "1")) -}}
{{- end -}}
{{- toYaml (dict "routes" $routes) -}}
{{- end }}

{{/*
Paths that are published, as YAML: {exact, prefix}. What is not in here gets 404. For an LLM these are the endpoints that
Tokenweir meters and the ones that are free, one by one: below /v1/ servers have administration and endpoints
that generate without being metered.
*/}}
{{- define "kserve-lib.paths" -}}
{{- $given := (.Values.exposeModel).paths | default list -}}
{{- $protocol := include "kserve-lib.protocol" . -}}
{{- $exact := list -}}
{{- $prefix := list -}}
{{- if $given -}}
{{- $prefix = $given -}}
{{- else if eq $protocol "openai" -}}
{{- range list "/v1" "/openai/v1" -}}
{{- $base := . -}}
{{- range list "messages" "messages/count_tokens" "quota" }}{{ $exact = append $exact (printf "%s/%s" $base .) }}{{ end -}}
{{- range list "chat/completions" "completions" "responses" "embeddings" "rerank" "score" "models" "audio/" "images/" -}}
{{- $prefix = append $prefix (printf "%s/%s" $base .) -}}
{{- end -}}
{{- end -}}
{{- else if eq $protocol "v1" -}}
{{- $prefix = list "/v1/models" -}}
{{- else if eq $protocol "v2" -}}
{{- $exact = list "/v2" "/v2/" -}}
{{- $prefix = list "/v2/models" "/v2/health" -}}
{{- range list "ServerLive" "ServerReady" "ServerMetadata" "ModelReady" "ModelMetadata" "ModelInfer" "ModelStreamInfer" -}}
{{- $exact = append $exact (printf "/inference.GRPCInferenceService/%s" .) -}}
{{- end -}}
{{- else -}}
{{- $prefix = list "/" -}}
{{- end -}}
{{- toYaml (dict "exact" $exact "prefix" $prefix) -}}
{{- end }}

{{/*
What a caller inside gets at beside the published paths: whether the model is up, and what it is. TGI generates at `/`,
so that an LLM's is not among them.
*/}}
{{- define "kserve-lib.insidePaths" -}}
{{- $exact := list "/ping" "/version" "/tokenize" "/detokenize" -}}
{{- if ne (include "kserve-lib.protocol" .) "openai" }}{{ $exact = list "/" "/ping" }}{{ end -}}
{{- toYaml (dict "exact" $exact "prefix" (list "/health")) -}}
{{- end }}

{{/* Paths of the model's metrics, as YAML: {exact, prefix}. A prefix, for what a lenient server takes for the same. */}}
{{- define "kserve-lib.metricsPaths" -}}
{{- $path := (.Values.metrics).path | default "/metrics" -}}
{{- toYaml (dict "exact" (eq $path "/metrics" | ternary list (list $path)) "prefix" (list "/metrics")) -}}
{{- end }}

{{/*
Paths that nobody gets at, as YAML: {exact, prefix}: administration of the server, and what generates unmetered (see
docs/limits.md). A doubled slash at the front is for getting past such lists; Envoy resolves the other disguises.
*/}}
{{- define "kserve-lib.closedPaths" -}}
{{- $protocol := include "kserve-lib.protocol" . -}}
{{- $exact := list -}}
{{- $prefix := list "//" "/%2f" "/%2F" -}}
{{- if eq $protocol "openai" -}}
{{- /* vLLM */ -}}
{{- range list "/v1" "/openai/v1" "" -}}
{{- $exact = concat $exact (list (printf "%s/load_lora_adapter" .) (printf "%s/unload_lora_adapter" .)) -}}
{{- end -}}
{{- $exact = concat $exact (list "/sleep" "/wake_up" "/is_sleeping" "/reset_prefix_cache" "/reset_mm_cache" "/reset_encoder_cache") -}}
{{- $exact = concat $exact (list "/collective_rpc" "/server_info" "/pause" "/resume" "/is_paused" "/abort_requests") -}}
{{- $exact = concat $exact (list "/start_profile" "/stop_profile" "/scale_elastic_ep" "/is_scaling_elastic_ep") -}}
{{- $exact = concat $exact (list "/init_weight_transfer_engine" "/start_weight_update" "/update_weights" "/finish_weight_update" "/get_world_size") -}}
{{- $prefix = concat $prefix (list "/inference/" "/v1/realtime" "/openai/v1/realtime") -}}
{{- /* SGLang, TGI, Ollama, llama.cpp */ -}}
{{- $exact = concat $exact (list "/flush_cache" "/open_session" "/close_session" "/abort_request" "/configure_logging" "/set_internal_state") -}}
{{- range list "update_weights_from_disk" "update_weights_from_tensor" "update_weights_from_distributed" "update_weights_from_ipc" "update_weight_version" "init_weights_update_group" "destroy_weights_update_group" -}}
{{- $exact = append $exact (printf "/%s" .) -}}
{{- end -}}
{{- $exact = concat $exact (list "/release_memory_occupation" "/resume_memory_occupation" "/generate" "/generate_stream" "/v2/chat") -}}
{{- $prefix = concat $prefix (list "/api/" "/slots" "/props" "/lora-adapters") -}}
{{- /* Work that is done, and its usage told, when nobody listens. */ -}}
{{- $prefix = concat $prefix (list "/v1/batches" "/openai/v1/batches" "/v1/messages/batches" "/openai/v1/messages/batches") -}}
{{- else if eq $protocol "v2" -}}
{{- $exact = list "/v2/logging" -}}
{{- $prefix = concat $prefix (list "/v2/repository" "/v2/trace" "/v2/systemsharedmemory" "/v2/cudasharedmemory") -}}
{{- range list "RepositoryIndex" "RepositoryModelLoad" "RepositoryModelUnload" "TraceSetting" "LogSettings" "SystemSharedMemoryRegister" "SystemSharedMemoryUnregister" "CudaSharedMemoryRegister" "CudaSharedMemoryUnregister" -}}
{{- $exact = append $exact (printf "/inference.GRPCInferenceService/%s" .) -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "exact" $exact "prefix" $prefix) -}}
{{- end }}

{{/* "true" where the published paths are so wide that the closed ones must be taken out of them first. */}}
{{- define "kserve-lib.closedFirst" -}}
{{- if or (.Values.exposeModel).paths (eq (include "kserve-lib.protocol" .) "other") -}}true{{- end -}}
{{- end }}

{{/* All that the gateway closes before it publishes, as YAML: {exact, prefix}. */}}
{{- define "kserve-lib.closedAtGateway" -}}
{{- $metrics := include "kserve-lib.metricsPaths" . | fromYaml -}}
{{- $closed := include "kserve-lib.closedPaths" . | fromYaml -}}
{{- toYaml (dict "exact" (concat $metrics.exact $closed.exact | uniq) "prefix" (concat $metrics.prefix $closed.prefix | uniq)) -}}
{{- end }}

{{/* The time that a request may take, such as 0s (any). */}}
{{- define "kserve-lib.routeTimeout" -}}
{{- ((.Values.inferenceservice).predictor).timeout | default 0 | int }}s
{{- end }}

{{/* The header that names the verified service account to the model; a caller's own copy is removed. May be empty. */}}
{{- define "kserve-lib.accountHeader" -}}
{{- dig "serviceAccountHeader" "oc_sa" (.Values.security | default dict) -}}
{{- end }}

{{- define "kserve-lib.expose" -}}
{{- include "kserve-lib.inMesh" . }}
{{- if (.Values.exposeModel).enabled }}
{{- $template := eq ((.Values.exposeModel).api | default "istio") "gateway-api" | ternary "kserve-lib.httpRoute" "kserve-lib.virtualService" }}
{{- range (include "kserve-lib.routes" . | fromYaml).routes }}
{{- range .hosts }}
{{- if not (regexMatch "^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" .) }}
{{- fail (printf "%q is no host name: see %s. It has lower case letters, digits and -, parted by dots, and no scheme, port or path" . (has . ($.Values.exposeModel.hosts | default list) | ternary "exposeModel.hosts" "platform.domain (a value that it uses may be empty)")) }}
{{- end }}
{{- end }}
---
{{ include $template (dict "root" $ "route" .) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Arguments: root, route. */}}
{{- define "kserve-lib.virtualService" -}}
{{- $root := .root -}}
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  {{- include "kserve-lib.meta" (dict "root" $root "name" (print .route.object "-predictor")) | nindent 2 }}
spec:
  hosts:
    {{- toYaml .route.hosts | nindent 4 }}
  gateways:
    {{- toYaml (include "kserve-lib.publishing" $root | fromYaml).gateways | nindent 4 }}
  http:
    {{- if include "kserve-lib.closedFirst" $root }}
    - name: {{ .route.name }}-closed
      match:
        {{- include "kserve-lib.uriMatches" (include "kserve-lib.closedAtGateway" $root | fromYaml) | nindent 8 }}
      directResponse:
        status: 404
    {{- end }}
    - name: {{ .route.name }}
      match:
        {{- include "kserve-lib.uriMatches" (include "kserve-lib.paths" $root | fromYaml) | nindent 8 }}
      {{- include "kserve-lib.virtualServiceRoute" . | nindent 6 }}
{{- end }}

{{/* What the CRD of an HTTPRoute refuses and Istio's VirtualService takes. */}}
{{- define "kserve-lib.httpRouteLimits" -}}
{{- $paths := include "kserve-lib.paths" .root | fromYaml -}}
{{- $all := concat ($paths.exact | default list) ($paths.prefix | default list) -}}
{{- if gt (len $all) 64 -}}
{{- fail (printf "exposeModel.paths: with exposeModel.api gateway-api there may be 64 paths, and these are %d. Publish a common prefix" (len $all)) -}}
{{- end -}}
{{- range $all -}}
{{- if regexMatch "//|/[.][.]?(/|$)|(?i)%2f" . -}}
{{- fail (printf "exposeModel.paths: %q has //, /./, /../ or %%2f, which exposeModel.api gateway-api does not take: write the path that is meant" .) -}}
{{- end -}}
{{- end -}}
{{- if gt (len .route.hosts) 16 -}}
{{- fail (printf "exposeModel.hosts: with exposeModel.api gateway-api a model may have 16 hosts, and these are %d with its own. Publish the others by a release of their own, or by a wildcard" (len .route.hosts)) -}}
{{- end -}}
{{- end }}

{{- define "kserve-lib.uriMatches" -}}
{{- range .exact }}
- uri:
    exact: {{ . | quote }}
{{- end }}
{{- range .prefix }}
- uri:
    prefix: {{ . | quote }}
{{- end }}
{{- end }}

{{/*
What a VirtualService does with a request: as long as it takes, and once. A model that has begun with an answer
would do all of it again, and its caller would pay twice. Istio takes no timeout of 0s: it has none by default.
*/}}
{{- define "kserve-lib.virtualServiceRoute" -}}
{{- $timeout := include "kserve-lib.routeTimeout" .root }}
{{- if ne $timeout "0s" }}
timeout: {{ $timeout }}
{{- end }}
retries:
  attempts: 0
{{- with include "kserve-lib.accountHeader" .root }}
headers:
  request:
    remove:
      - {{ . | quote }}
{{- end }}
route:
  {{- range .route.backends }}
  - destination:
      host: {{ .service }}
      port:
        number: 80
    weight: {{ .weight }}
  {{- end }}
{{- end }}

{{/*
The same by Gateway API. Arguments: root, route. Not named `<isvc>-predictor`: KServe has such an HTTPRoute where
its own ingress is on.
*/}}
{{- define "kserve-lib.httpRoute" -}}
{{- $root := .root -}}
{{- include "kserve-lib.httpRouteLimits" . -}}
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  {{- include "kserve-lib.meta" (dict "root" $root "name" (print .route.object "-public")) | nindent 2 }}
spec:
  parentRefs:
    {{- range (include "kserve-lib.publishing" $root | fromYaml).gateways }}
    {{- $parts := splitList "/" . }}
    {{- if ne (len $parts) 2 }}
    {{- fail (printf "exposeModel.api gateway-api needs gateways as namespace/name, not %q: see platform.gateways and platform.exposures" .) }}
    {{- end }}
    - group: gateway.networking.k8s.io
      kind: Gateway
      namespace: {{ index $parts 0 | quote }}
      name: {{ index $parts 1 | quote }}
    {{- end }}
  hostnames:
    {{- toYaml .route.hosts | nindent 4 }}
  rules:
    {{- if include "kserve-lib.closedFirst" $root }}
    # Without a backend the answer is 500: an HTTPRoute knows no 404 of its own.
    - name: {{ .route.name }}-closed
      matches:
        {{- include "kserve-lib.pathMatches" (include "kserve-lib.closedAtGateway" $root | fromYaml) | nindent 8 }}
    {{- end }}
    - name: {{ .route.name }}
      matches:
        {{- include "kserve-lib.pathMatches" (include "kserve-lib.paths" $root | fromYaml) | nindent 8 }}
      timeouts:
        request: {{ include "kserve-lib.routeTimeout" $root }}
        backendRequest: {{ include "kserve-lib.routeTimeout" $root }}
      {{- with include "kserve-lib.accountHeader" $root }}
      filters:
        - type: RequestHeaderModifier
          requestHeaderModifier:
            remove:
              - {{ . | quote }}
      {{- end }}
      backendRefs:
        {{- range .route.backends }}
        - group: ""
          kind: Service
          name: {{ .service }}
          port: 80
          weight: {{ .weight }}
        {{- end }}
{{- end }}

{{/* PathPrefix goes by whole segments. Gateway API takes no path with a doubled or escaped slash: there the pods refuse it. */}}
{{- define "kserve-lib.pathMatches" -}}
{{- range .exact }}
- path:
    type: Exact
    value: {{ . | quote }}
{{- end }}
{{- range .prefix }}
{{- if not (regexMatch "//|%" .) }}
- path:
    type: PathPrefix
    value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Inside the mesh: `<release>-predictor` is the release, whichever chart it is of. KServe makes that Service for
kserve-model. For kserve-general it is made here and split as at the gateway, by the caller's sidecar; its own
endpoints, the primary's, only count for a caller without one (security.mtls PERMISSIVE).
*/}}
{{- define "kserve-lib.inMesh" -}}
{{- $own := index (include "kserve-lib.routes" . | fromYaml).routes 0 -}}
{{- $host := printf "%s-predictor" .Release.Name -}}
{{- if eq .Chart.Name "kserve-general" }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" $host) | nindent 2 }}
spec:
  selector:
    app: isvc.{{ (index $own.backends 0).service }}
  ports:
    - name: {{ include "kserve-lib.servesGRPC" . | empty | ternary "http" "h2c" }}
      {{- if include "kserve-lib.servesGRPC" . }}
      appProtocol: kubernetes.io/h2c
      {{- end }}
      port: 80
      targetPort: {{ include "kserve-lib.servingPort" . }}
{{- else }}
{{- $host = (index $own.backends 0).service }}
{{- end }}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" (print .Release.Name "-mesh")) | nindent 2 }}
spec:
  hosts:
    - {{ $host }}
  gateways:
    - mesh
  http:
    - name: {{ $own.name }}
      {{- include "kserve-lib.virtualServiceRoute" (dict "root" . "route" $own) | nindent 6 }}
{{- $root := . }}
{{- with dig "predictor" "idleTimeout" "4s" (.Values.inferenceservice | default dict) }}
{{- $idle := . }}
{{- range (include "kserve-lib.variants" $root | fromYaml).variants }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  {{- include "kserve-lib.meta" (dict "root" $root "name" (print .isvc "-predictor")) | nindent 2 }}
spec:
  host: {{ include "kserve-lib.entrance" (dict "root" $root "variant" .) }}
  trafficPolicy:
    connectionPool:
      http:
        # Of the gateway's connections and those of the pod's sidecar to the model, which closes its own a little later.
        idleTimeout: {{ $idle }}
{{- end }}
{{- end }}
{{- end }}
