{{/*
Who gets in. Everything stands at the model's own pods, so that it also binds callers that do not come through the
gateway; one more policy at the gateway keeps strangers away from the meter.

Istio asks in this order: CUSTOM (ext-authz, which sees the token before it is verified), the token's verification,
DENY, ALLOW. One ALLOW policy always exists, so that what no rule names is refused.
*/}}

{{/* The audiences of exposeModel.jwtVerify, as YAML: {audiences}. One may be given as text. */}}
{{- define "kserve-lib.audiences" -}}
{{- $given := ((.Values.exposeModel).jwtVerify).Audiences | default list -}}
{{- if kindIs "string" $given }}{{ $given = list $given }}{{ end -}}
{{- toYaml (dict "audiences" ($given | uniq)) -}}
{{- end }}

{{/* The issuers with the audiences that a token for this release must have one of, as YAML: {issuers}. */}}
{{- define "kserve-lib.issuers" -}}
{{- $audiences := (include "kserve-lib.audiences" . | fromYaml).audiences -}}
{{- $issuers := list -}}
{{- range (((.Values.platform).jwt).issuers | default list) -}}
{{- $issuers = append $issuers (merge (dict "audiences" ($audiences | default .audiences | default list)) (omit . "audiences")) -}}
{{- end -}}
{{- toYaml (dict "issuers" $issuers) -}}
{{- end }}

{{- define "kserve-lib.security" -}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" .Release.Name) | nindent 2 }}
spec:
  {{- include "kserve-lib.podSelector" . | nindent 2 }}
  mtls:
    mode: {{ (.Values.security).mtls | default "STRICT" }}
{{- with (include "kserve-lib.issuers" . | fromYaml).issuers }}
---
{{ include "kserve-lib.requestAuthentication" (dict "root" $ "issuers" .) }}
{{- end }}
---
{{ include "kserve-lib.callersPolicy" . }}
---
{{ include "kserve-lib.closedPolicy" . }}
{{- if and (include "kserve-lib.transforms" .) (include "kserve-lib.limitedAtPods" .) }}
---
{{ include "kserve-lib.behindPolicy" . }}
{{- end }}
{{- if ((.Values.security).extAuthz).enabled }}
---
{{ include "kserve-lib.extAuthzPolicy" . }}
{{- end }}
{{- if and (.Values.exposeModel).enabled (include "kserve-lib.limited" .) (not (include "kserve-lib.limitedAtPods" .)) }}
---
{{ include "kserve-lib.gatewayPolicy" . }}
{{- end }}
{{- end }}

{{/* All pods of the release: both variants', a transformer's and an explainer's. */}}
{{- define "kserve-lib.podSelector" -}}
selector:
  matchLabels:
    {{- include "kserve-lib.selectorLabels" . | nindent 4 }}
{{- end }}

{{/*
Refuses a token that doesn't verify (401), whoever brings it. Having none is for the policies to judge. Only the
Authorization header counts: a token in the query (Istio's other default) ends up in logs. It goes no further than
here: the model has no use for a caller's credential. The header with the account is written from the verified
token, and removed where a caller sends one.
*/}}
{{- define "kserve-lib.requestAuthentication" -}}
{{- $header := include "kserve-lib.accountHeader" .root -}}
{{- $claim := (include "kserve-lib.tokenweir" .root | fromYaml).serviceAccountClaim -}}
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata:
  {{- include "kserve-lib.meta" (dict "root" .root "name" .root.Release.Name) | nindent 2 }}
spec:
  {{- include "kserve-lib.podSelector" .root | nindent 2 }}
  jwtRules:
    {{- range .issuers }}
    - issuer: {{ .issuer | quote }}
      {{- /* Istio takes one of the two. With neither it asks the issuer (OpenID discovery). */}}
      {{- if .jwks }}
      jwks: {{ .jwks | quote }}
      {{- else if .jwksUri }}
      jwksUri: {{ .jwksUri | quote }}
      {{- end }}
      {{- with .audiences }}
      audiences:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      fromHeaders:
        - name: Authorization
          prefix: "Bearer "
      forwardOriginalToken: false
      {{- if $header }}
      outputClaimToHeaders:
        - header: {{ $header | quote }}
          claim: {{ $claim | quote }}
      {{- end }}
    {{- end }}
{{- end }}

{{/* Path matches as AuthorizationPolicy writes them. */}}
{{- define "kserve-lib.policyPaths" -}}
{{- range .exact }}
- {{ . | quote }}
{{- end }}
{{- range .prefix }}
- {{ printf "%s*" . | quote }}
{{- end }}
{{- end }}

{{/* Who may call what. A gateway's principal stands for whoever called it, so it never counts as a caller. */}}
{{- define "kserve-lib.callersPolicy" -}}
{{- $security := .Values.security | default dict -}}
{{- $published := include "kserve-lib.paths" . | fromYaml -}}
{{- $inside := include "kserve-lib.insidePaths" . | fromYaml -}}
{{- $paths := dict "exact" (concat $published.exact $inside.exact | uniq) "prefix" (concat $published.prefix $inside.prefix | uniq) -}}
{{- $gateways := (include "kserve-lib.gatewayPrincipals" . | fromYaml).principals -}}
{{- $sources := list -}}
{{- if ne (toString $security.sameNamespaceWithoutToken) "false" -}}
{{- $source := dict "namespaces" (list .Release.Namespace) -}}
{{- if $gateways }}{{ $_ := set $source "notPrincipals" $gateways }}{{ end -}}
{{- $sources = append $sources (dict "source" $source) -}}
{{- end -}}
{{- with $security.allowedPrincipals -}}
{{- $source := dict "principals" . -}}
{{- if $gateways }}{{ $_ := set $source "notPrincipals" $gateways }}{{ end -}}
{{- $sources = append $sources (dict "source" $source) -}}
{{- end -}}
{{- $service := .Values.inferenceservice | default dict -}}
{{- if or ($service.transformer).containers ($service.explainer).type ($service.explainer).containers -}}
{{- /* The release's own parts call one another. */ -}}
{{- $sources = append $sources (dict "source" (dict "principals" (list (include "kserve-lib.ownPrincipal" .)))) -}}
{{- end -}}
{{- $rules := list -}}
{{- if $sources -}}
{{- $operation := dict "paths" (include "kserve-lib.policyPaths" $paths | fromYamlArray) -}}
{{- $rules = append $rules (dict "from" $sources "to" (list (dict "operation" $operation))) -}}
{{- end -}}
{{- $operation := dict "paths" (include "kserve-lib.policyPaths" $published | fromYamlArray) -}}
{{- range (include "kserve-lib.issuers" . | fromYaml).issuers -}}
{{- $source := dict "requestPrincipals" (list (printf "%s/*" .issuer)) -}}
{{- $rule := dict "from" (list (dict "source" $source)) "to" (list (dict "operation" $operation)) -}}
{{- /* Older Istios take the principal for a prefix: https://issuer/* would be https://issuer/another/* too. */ -}}
{{- $when := list (dict "key" "request.auth.claims[iss]" "values" (list .issuer)) -}}
{{- if .audiences }}{{ $when = append $when (dict "key" "request.auth.audiences" "values" .audiences) }}{{ end -}}
{{- $rules = append $rules (merge (dict "when" $when) $rule) -}}
{{- end -}}
{{- $prometheus := (.Values.platform).prometheusPrincipals | default list -}}
{{- if and $prometheus (include "kserve-lib.metricsEnabled" .) -}}
{{- $metrics := include "kserve-lib.policyPaths" (include "kserve-lib.metricsPaths" . | fromYaml) | fromYamlArray -}}
{{- $operation := dict "ports" (list (include "kserve-lib.metricsPort" .)) "methods" (list "GET") "paths" $metrics -}}
{{- $rules = append $rules (dict "from" (list (dict "source" (dict "principals" $prometheus))) "to" (list (dict "operation" $operation))) -}}
{{- end -}}
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" (print .Release.Name "-callers")) | nindent 2 }}
spec:
  {{- include "kserve-lib.podSelector" . | nindent 2 }}
  action: ALLOW
  {{- with $rules }}
  rules:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* What nobody gets at, whoever is let in: metrics (but for Prometheus), administration, unmetered generation. */}}
{{- define "kserve-lib.closedPolicy" -}}
{{- $closed := include "kserve-lib.policyPaths" (include "kserve-lib.closedPaths" . | fromYaml) | fromYamlArray -}}
{{- if eq (include "kserve-lib.protocol" .) "v2" }}{{ $closed = append $closed "/v2/models/{*}/trace/setting" }}{{ end -}}
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" (print .Release.Name "-closed")) | nindent 2 }}
spec:
  {{- include "kserve-lib.podSelector" . | nindent 2 }}
  action: DENY
  rules:
    - to:
        - operation:
            paths:
              {{- include "kserve-lib.policyPaths" (include "kserve-lib.metricsPaths" . | fromYaml) | nindent 14 }}
      {{- with (.Values.platform).prometheusPrincipals }}
      from:
        - source:
            notPrincipals:
              {{- toYaml . | nindent 14 }}
      {{- end }}
    - to:
        - operation:
            paths:
              {{- toYaml $closed | nindent 14 }}
{{- end }}

{{/*
A predictor behind a transformer that is metered at its own pods: nobody but the release's own parts may ask it, or the
meter would be passed by. The label is KServe's. Metrics are for the other policies.
*/}}
{{- define "kserve-lib.behindPolicy" -}}
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" (print .Release.Name "-behind")) | nindent 2 }}
spec:
  {{- include "kserve-lib.podSelector" . | nindent 2 }}
      component: predictor
  action: DENY
  rules:
    - from:
        - source:
            notPrincipals:
              - {{ include "kserve-lib.ownPrincipal" . | quote }}
      to:
        - operation:
            notPaths:
              {{- include "kserve-lib.policyPaths" (include "kserve-lib.metricsPaths" . | fromYaml) | nindent 14 }}
{{- end }}

{{/* Who the release's own parts are. The trust domain is left open: it is the mesh's. */}}
{{- define "kserve-lib.ownPrincipal" -}}
{{- printf "*/ns/%s/sa/%s" .Release.Namespace (include "kserve-lib.serviceAccountName" .) -}}
{{- end }}

{{/*
CUSTOM: the mesh's provider sees each request. It stands at the pods and has no condition on hosts, so that neither
another Host header nor a call past the gateway avoids it. It is asked before the token is verified, so it must not
believe what the token says.
*/}}
{{- define "kserve-lib.extAuthzPolicy" -}}
{{- $provider := .Values.security.extAuthz.provider | default (.Values.platform).extAuthzProvider -}}
{{- if not $provider -}}
{{- fail "security.extAuthz.enabled is true, but no provider is named: set security.extAuthz.provider or platform.extAuthzProvider to one of MeshConfig.extensionProviders" -}}
{{- end -}}
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" (print .Release.Name "-ext-authz")) | nindent 2 }}
spec:
  {{- include "kserve-lib.podSelector" . | nindent 2 }}
  action: CUSTOM
  provider:
    name: {{ $provider | quote }}
  rules:
    # A scrape has nothing to show; whoever else asks for metrics is refused anyhow.
    - to:
        - operation:
            notPaths:
              {{- include "kserve-lib.policyPaths" (include "kserve-lib.metricsPaths" . | fromYaml) | nindent 14 }}
{{- end }}

{{/*
At the gateway, where Tokenweir asks there: without a verified token for this release a request is refused before it
is held in memory and counted. The route is chosen by the host, so no other Host gets at it; the pods judge again.
*/}}
{{- define "kserve-lib.gatewayPolicy" -}}
{{- $publishing := include "kserve-lib.publishing" . | fromYaml -}}
{{- $hosts := list -}}
{{- range (include "kserve-lib.routes" . | fromYaml).routes -}}
{{- range .hosts }}{{ $hosts = concat $hosts (list . (printf "%s:*" .)) }}{{ end -}}
{{- end -}}
{{- $to := list (dict "operation" (dict "hosts" $hosts)) -}}
{{- $rules := list (dict "from" (list (dict "source" (dict "notRequestPrincipals" (list "*")))) "to" $to) -}}
{{- range (include "kserve-lib.issuers" . | fromYaml).issuers -}}
{{- if .audiences -}}
{{- $from := list (dict "source" (dict "requestPrincipals" (list (printf "%s/*" .issuer)))) -}}
{{- $when := list (dict "key" "request.auth.claims[iss]" "values" (list .issuer)) (dict "key" "request.auth.audiences" "notValues" .audiences) -}}
{{- $rules = append $rules (dict "from" $from "to" $to "when" $when) -}}
{{- end -}}
{{- end -}}
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  {{- include "kserve-lib.meta" (dict "root" . "name" (printf "%s.%s" .Release.Namespace .Release.Name) "namespace" $publishing.gateway.namespace) | nindent 2 }}
spec:
  {{- with $publishing.gateway.selector }}
  selector:
    matchLabels:
      {{- toYaml . | nindent 6 }}
  {{- end }}
  action: DENY
  rules:
    {{- toYaml $rules | nindent 4 }}
{{- end }}
