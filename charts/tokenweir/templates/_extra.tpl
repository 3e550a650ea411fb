{{/*
What extraEnv, extraVolumes and extraVolumeMounts add must not be there already: the API server refuses a list that
names a thing twice, and says neither which value did it nor what to do.
*/}}
{{- define "tokenweir.check.extra" -}}
{{- $lists := list (list "extraEnv" "name" (include "tokenweir.env" .)) (list "extraVolumes" "name" (include "tokenweir.volumes" .)) (list "extraVolumeMounts" "mountPath" (include "tokenweir.mounts" .)) -}}
{{- if include "tokenweir.admin.enabled" . -}}
{{- $lists = concat $lists (list (list "extraEnv" "name" (include "tokenweir.admin.env" .)) (list "extraVolumes" "name" (include "tokenweir.admin.volumes" .)) (list "extraVolumeMounts" "mountPath" (include "tokenweir.admin.mounts" .))) -}}
{{- end -}}
{{- range $each := $lists -}}
{{- $found := list -}}
{{- range index $each 2 | fromYamlArray -}}
{{- $name := get . (index $each 1) -}}
{{- if has $name $found -}}
{{- fail (printf "%s: %s is there twice: the chart has it too, or the list repeats it. Remove one" (index $each 0) $name) -}}
{{- end -}}
{{- $found = append $found $name -}}
{{- end -}}
{{- end -}}
{{- $volumes := list -}}
{{- range include "tokenweir.volumes" . | fromYamlArray -}}{{- $volumes = append $volumes .name -}}{{- end -}}
{{- range .Values.extraVolumeMounts -}}
{{- if not (has .name $volumes) -}}
{{- fail (printf "extraVolumeMounts: there is no volume %q: add it to extraVolumes" (.name | default "")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
