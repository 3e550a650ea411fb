{{/*
Lists that name a thing twice. The API server refuses some of them; of others (volumes, names of ports) it refuses the
Deployment that KServe makes, which nobody sees who installs the release.
*/}}
{{- define "kserve-lib.validateRepeats" -}}
{{- $service := .Values.inferenceservice | default dict -}}
{{- $predictor := $service.predictor | default dict -}}
{{- $where := "inferenceservice.predictor" -}}
{{- include "kserve-lib.validateOnce" (dict "where" (print $where ".volumes") "items" $predictor.volumes "keys" (list "name")) -}}
{{- include "kserve-lib.validateOnce" (dict "where" (print $where ".volumeMounts") "items" $predictor.volumeMounts "keys" (list "mountPath")) -}}
{{- include "kserve-lib.validateOnce" (dict "where" (print $where ".model.env") "items" ($predictor.model).env "keys" (list "name")) -}}
{{- range $component := list "predictor" "transformer" "explainer" -}}
{{- range $index, $container := (get $service $component | default dict).containers -}}
{{- $one := printf "inferenceservice.%s.containers[%d]" $component $index -}}
{{- $mounts := $container.volumeMounts | default list -}}
{{- if and (eq $index 0) (eq $component "predictor") }}{{ $mounts = concat $mounts ($predictor.volumeMounts | default list) }}{{ end -}}
{{- include "kserve-lib.validateOnce" (dict "where" (print $one ".volumeMounts") "items" $mounts "keys" (list "mountPath")) -}}
{{- include "kserve-lib.validateOnce" (dict "where" (print $one ".ports") "items" $container.ports "keys" (list "containerPort" "protocol")) -}}
{{- include "kserve-lib.validateOnce" (dict "where" (print $one ".ports") "items" $container.ports "keys" (list "name")) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* (dict "where" <the list's name> "items" [...] "keys" [<what tells its items apart>]). Items without the first pass. */}}
{{- define "kserve-lib.validateOnce" -}}
{{- $found := list -}}
{{- range $item := .items -}}
{{- $own := list -}}
{{- range $key := $.keys }}{{ $own = append $own (get $item $key | default (ternary "TCP" "" (eq $key "protocol")) | toString) }}{{ end -}}
{{- if first $own -}}
{{- $name := join "/" $own -}}
{{- if has $name $found -}}
{{- fail (printf "%s names %s twice: remove one" $.where $name) -}}
{{- end -}}
{{- $found = append $found $name -}}
{{- end -}}
{{- end -}}
{{- end }}
