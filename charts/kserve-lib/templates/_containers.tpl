{{/* Containers of the user's own: the talk's names (var_env, var_resource) and Kubernetes' are the same. */}}

{{/*
A list of containers as YAML, {containers: [...]}. The first one serves and is called kserve-container, as KServe wants.
(dict "root" $ "containers" [...] "canary" <whether newImage and newImageTag hold> "shared" <whether the first has the
resources at the top> "named" <whether the first is told the model's name by flag, as KServe does> "mounts" [...])
*/}}
{{- define "kserve-lib.containers" -}}
{{- $all := list -}}
{{- range $index, $each := .containers -}}
{{- $first := eq $index 0 -}}
{{- $container := include "kserve-lib.container" (dict "root" $.root "own" $each "shared" (and $first $.shared)) | fromYaml -}}
{{- $name := $each.name | default (printf "container-%d" $index) -}}
{{- $_ := set $container "name" (ternary "kserve-container" $name $first) -}}
{{- if $.canary }}{{ $_ := set $container "image" (include "kserve-lib.canaryImage" $each) }}{{ end -}}
{{- if $first -}}
{{- with include "kserve-lib.lifecycle" (dict "root" $.root "given" $each.lifecycle) | fromYaml }}{{ $_ := set $container "lifecycle" . }}{{ end -}}
{{- with concat ($container.volumeMounts | default list) ($.mounts | default list) }}{{ $_ := set $container "volumeMounts" . }}{{ end -}}
{{- $env := $container.env | default list -}}
{{- $names := list -}}
{{- range $env }}{{ $names = append $names .name }}{{ end -}}
{{- if not (has "SERVED_MODEL_NAME" $names) -}}
{{- $env = prepend $env (dict "name" "SERVED_MODEL_NAME" "value" (include "kserve-lib.servedModelName" $.root)) -}}
{{- end -}}
{{- $_ := set $container "env" $env -}}
{{- $args := $container.args | default list -}}
{{- if and $.named (not (regexMatch "(^| )--model_name([= ]|$)" (join " " $args))) -}}
{{- $_ := set $container "args" (prepend $args (printf "--model_name=%s" (include "kserve-lib.servedModelName" $.root))) -}}
{{- end -}}
{{- end -}}
{{- $all = append $all $container -}}
{{- end -}}
{{- toYaml (dict "containers" $all) -}}
{{- end }}

{{/* One container. (dict "root" $ "own" <it> "shared" <bool>) */}}
{{- define "kserve-lib.container" -}}
{{- $own := .own -}}
{{- $container := dict "image" $own.image -}}
{{- range $field := list "command" "args" "workingDir" "imagePullPolicy" "ports" "volumeMounts" "lifecycle" -}}
{{- with get $own $field }}{{ $_ := set $container $field . }}{{ end -}}
{{- end -}}
{{- range $field := list "env" "envFrom" -}}
{{- with concat (get $own $field | default list) (get $own (print "var_" $field) | default list) }}{{ $_ := set $container $field . }}{{ end -}}
{{- end -}}
{{- range $field := list "readinessProbe" "livenessProbe" "startupProbe" -}}
{{- with get $own (print "var_" $field) | default (get $own $field) }}{{ $_ := set $container $field . }}{{ end -}}
{{- end -}}
{{- $section := coalesce $own.var_resource $own.var_resources $own.resources -}}
{{- with include "kserve-lib.resources" (dict "root" .root "own" $section "shared" .shared) | fromYaml -}}
{{- $_ := set $container "resources" . -}}
{{- end -}}
{{- /* Not more: an image may need its own user or capabilities. */ -}}
{{- $_ := set $container "securityContext" ($own.securityContext | default (dict "allowPrivilegeEscalation" false)) -}}
{{- toYaml $container -}}
{{- end }}
