{{/* What pods ask for, and on which nodes they run. */}}

{{/*
A container's resources as Kubernetes writes them. (dict "root" $ "own" <its section> "shared" true) With `shared` the
section `resources` at the top is below its own, name by name.

A GPU's limit and request are one: Kubernetes refuses anything else. And a CPU or memory amount that is given alone is
both, because KServe's webhook fills the other with its own default, which may contradict it (a limit of 1 CPU below a
request of 4), and the Deployment would be refused.
*/}}
{{- define "kserve-lib.resources" -}}
{{- $resource := include "kserve-lib.gpuResource" .root -}}
{{- $sections := list -}}
{{- if .shared }}{{ $sections = append $sections (.root.Values.resources | default dict) }}{{ end -}}
{{- $requests := dict -}}
{{- $limits := dict -}}
{{- range $section := append $sections (.own | default dict) -}}
{{- $these := include "kserve-lib.amounts" (dict "section" $section "resource" $resource) | fromYaml -}}
{{- $requests = merge (dict) ($these.requests | default dict) $requests -}}
{{- $limits = merge (dict) ($these.limits | default dict) $limits -}}
{{- end -}}
{{- $requests = merge $requests $limits -}}
{{- range $name := list "cpu" "memory" -}}
{{- if and (hasKey $requests $name) (not (hasKey $limits $name)) }}{{ $_ := set $limits $name (get $requests $name) }}{{ end -}}
{{- end -}}
{{- $all := dict -}}
{{- range $kind, $amounts := dict "requests" $requests "limits" $limits -}}
{{- $kept := dict -}}
{{- range $name, $amount := $amounts -}}
{{- if not (and (contains "/" $name) (eq $amount "0")) }}{{ $_ := set $kept $name $amount }}{{ end -}}
{{- end -}}
{{- with $kept }}{{ $_ := set $all $kind . }}{{ end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end }}

{{/* One section's {requests, limits} as texts; its GPUs in both. (dict "section" "resource") */}}
{{- define "kserve-lib.amounts" -}}
{{- $section := .section -}}
{{- $resource := .resource -}}
{{- $all := dict "requests" dict "limits" dict -}}
{{- $gpus := "" -}}
{{- range $kind, $word := dict "requests" "request" "limits" "limit" -}}
{{- $into := get $all $kind -}}
{{- range $name, $amount := get $section $kind | default dict -}}
{{- $_ := set $into $name (include "kserve-lib.amount" $amount) -}}
{{- end -}}
{{- range $name, $key := dict "cpu" "CPU" "memory" "Memory" $resource "GPU" -}}
{{- with include "kserve-lib.amount" (get $section (print $word $key)) }}{{ $_ := set $into $name . }}{{ end -}}
{{- end -}}
{{- with get $into $resource }}{{ $gpus = . }}{{ end -}}
{{- end -}}
{{- if $gpus }}{{ range $all }}{{ $_ := set . $resource $gpus }}{{ end }}{{ end -}}
{{- toYaml $all -}}
{{- end }}

{{/* A quantity as text: Helm reads whole numbers as floats, which would print as 4e+09. */}}
{{- define "kserve-lib.amount" -}}
{{- if not (kindIs "invalid" .) -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "kserve-lib.gpuResource" -}}
{{- ((.Values.platform).gpu).resourceName | default "nvidia.com/gpu" -}}
{{- end }}

{{/* "true" where a pod of the model has a GPU. */}}
{{- define "kserve-lib.hasGPU" -}}
{{- $predictor := (.Values.inferenceservice).predictor | default dict -}}
{{- if $predictor.containers -}}
{{- include "kserve-lib.containersHaveGPU" (dict "root" . "containers" $predictor.containers "shared" true) -}}
{{- else -}}
{{- $model := dict "resources" (($predictor.model).resources) -}}
{{- include "kserve-lib.containersHaveGPU" (dict "root" . "containers" (list $model) "shared" true) -}}
{{- end -}}
{{- end }}

{{/* (dict "root" $ "containers" [...] "shared" <whether the first has the shared resources>) */}}
{{- define "kserve-lib.containersHaveGPU" -}}
{{- $root := .root -}}
{{- $shared := .shared -}}
{{- $found := "" -}}
{{- range $index, $each := .containers -}}
{{- $own := coalesce $each.var_resource $each.var_resources $each.resources -}}
{{- $all := include "kserve-lib.resources" (dict "root" $root "own" $own "shared" (and $shared (eq $index 0))) | fromYaml -}}
{{- range $name, $_ := $all.limits -}}
{{- /* nvidia.com/mig-...: slices live on GPU nodes too */ -}}
{{- if or (eq $name (include "kserve-lib.gpuResource" $root)) (hasPrefix "nvidia.com/" $name) }}{{ $found = "true" }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $found -}}
{{- end }}

{{/*
nodeSelector, tolerations and affinity as YAML. (dict "root" $ "gpu" "true"|"" "wishes" <map with the user's own>)
Pods with a GPU run on GPU nodes, all others elsewhere.
*/}}
{{- define "kserve-lib.scheduling" -}}
{{- $gpu := (.root.Values.platform).gpu | default dict -}}
{{- $tolerations := .wishes.tolerations | default list -}}
{{- $taint := ternary $gpu.taintKey "nvidia.com/gpu" (hasKey $gpu "taintKey") -}}
{{- if and .gpu $taint -}}
{{- $tolerations = append $tolerations (dict "key" $taint "operator" "Exists") -}}
{{- end -}}
{{- $affinity := deepCopy (.wishes.affinity | default dict) -}}
{{- $node := $affinity.nodeAffinity | default dict -}}
{{- $required := $node.requiredDuringSchedulingIgnoredDuringExecution | default dict -}}
{{- $expression := include "kserve-lib.gpuExpression" . | fromYaml -}}
{{- /* terms are alternatives: each of them has to ask for it */ -}}
{{- $terms := list -}}
{{- range $term := $required.nodeSelectorTerms | default (list dict) -}}
{{- $_ := set $term "matchExpressions" (append ($term.matchExpressions | default list) $expression) -}}
{{- $terms = append $terms $term -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- $all := dict "affinity" $affinity -}}
{{- with $tolerations }}{{ $_ := set $all "tolerations" . }}{{ end -}}
{{- with .wishes.nodeSelector }}{{ $_ := set $all "nodeSelector" . }}{{ end -}}
{{- toYaml $all -}}
{{- end }}

{{- define "kserve-lib.gpuExpression" -}}
{{- $gpu := (.root.Values.platform).gpu | default dict -}}
{{- $label := $gpu.nodeLabel | default "node-group" -}}
{{- $value := ternary $gpu.nodeLabelValue "gpu" (hasKey $gpu "nodeLabelValue") | default "" -}}
{{- if and (not $value) (eq $label "eks.amazonaws.com/nodegroup") }}{{ $value = printf "%s-gpu" (.root.Values.clusterName | default "") }}{{ end -}}
key: {{ $label | quote }}
{{- if $value }}
operator: {{ ternary "In" "NotIn" (eq .gpu "true") }}
values: [{{ $value | quote }}]
{{- else }}
operator: {{ ternary "Exists" "DoesNotExist" (eq .gpu "true") }}
{{- end }}
{{- end }}
