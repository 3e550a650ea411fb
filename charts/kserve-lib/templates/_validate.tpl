{{/* What the schema can't see. Each message names the value and says what to do. */}}

{{- define "kserve-lib.validate" -}}
{{- include "kserve-lib.validateNames" . -}}
{{- include "kserve-lib.validateSource" . -}}
{{- include "kserve-lib.validateCanary" . -}}
{{- include "kserve-lib.validateContainers" . -}}
{{- include "kserve-lib.validateRepeats" . -}}
{{- include "kserve-lib.validateResources" . -}}
{{- include "kserve-lib.validateRollout" . -}}
{{- include "kserve-lib.validateRest" . -}}
{{- include "kserve-lib.validateSwitch" . -}}
{{- end }}

{{- define "kserve-lib.validateNames" -}}
{{- $release := .Release.Name -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $release) -}}
{{- fail (printf "the release's name %q can't be that of an InferenceService: KServe wants lower case letters, digits and -, and a letter first" $release) -}}
{{- end -}}
{{- $general := eq .Chart.Name "kserve-general" -}}
{{- $isvc := ternary (print $release "-primary") $release $general -}}
{{- /* the longest there are: KServe's label `app`, and the first part of a host */ -}}
{{- $longest := printf "isvc.%s-transformer" $isvc -}}
{{- $host := printf "%s-predictor-%s" $isvc .Release.Namespace -}}
{{- if gt (len $host) (len $longest) }}{{ $longest = $host }}{{ end -}}
{{- if gt (len $longest) 63 -}}
{{- $room := sub (add (len $release) 63) (len $longest) -}}
{{- fail (printf "the release's name %q is too long: %s has %d characters, and Kubernetes and DNS allow 63. In this namespace a name may have %d" $release $longest (len $longest) $room) -}}
{{- end -}}
{{- /* a-predictor-b in c would have the host of a in b-predictor-c, another namespace's */ -}}
{{- if regexMatch "-predictor(-|$)" $release -}}
{{- fail (printf "the release's name %q must not have -predictor in it: its host could be that of a release in another namespace. Choose another name" $release) -}}
{{- end -}}
{{- $served := include "kserve-lib.servedModelName" . -}}
{{- if and (contains "/" $served) (has (include "kserve-lib.protocol" .) (list "v1" "v2")) -}}
{{- fail (printf "inferenceservice.servedModelName %q has a /, and with the protocols v1 and v2 the name is part of the path: choose one without" $served) -}}
{{- end -}}
{{- end }}

{{- define "kserve-lib.validateSource" -}}
{{- $service := .Values.inferenceservice | default dict -}}
{{- $predictor := $service.predictor | default dict -}}
{{- $model := $predictor.model | default dict -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- $format := ($model.modelFormat).name -}}
{{- $where := "inferenceservice.predictor.model" -}}
{{- $meant := get (dict "scikit-learn" "sklearn" "scikit" "sklearn" "hf" "huggingface" "transformers" "huggingface" "torch" "pytorch" "torchserve" "pytorch" "tf" "tensorflow" "xgb" "xgboost" "lgb" "lightgbm") (lower ($format | default "")) -}}
{{- if and $meant (not $model.runtime) -}}
{{- fail (printf "%s.modelFormat.name %q is none that KServe's runtimes know: write %s, or name the runtime that has it in %s.runtime" $where $format $meant $where) -}}
{{- end -}}
{{- if eq $source.kind "containers" -}}
{{- range $field, $value := dict "modelFormat.name" $format "storageUri" $model.storageUri "image" $model.image "runtime" $model.runtime -}}
{{- if $value -}}
{{- fail (printf "both inferenceservice.predictor.containers and %s.%s are set: a model is served by one of them. Remove one" $where $field) -}}
{{- end -}}
{{- end -}}
{{- if ($service.multiModel).enabled -}}
{{- fail "both inferenceservice.multiModel.enabled and inferenceservice.predictor.containers are set: several models in one pod need the chart's own runtime. Remove one" -}}
{{- end -}}
{{- else if eq $source.kind "multiModel" -}}
{{- if not $source.storageUri -}}
{{- fail (printf "inferenceservice.multiModel.enabled needs %s.storageUri: the repository that holds the models" $where) -}}
{{- end -}}
{{- if $model.runtime -}}
{{- fail (printf "inferenceservice.multiModel.enabled makes a runtime of its own, so %s.runtime must not be set: remove one" $where) -}}
{{- end -}}
{{- else -}}
{{- if and (not $format) (or $model.storageUri $model.image $model.runtime $model.newStorageUri $model.newImage $model.newImageTag) -}}
{{- fail (printf "%s.modelFormat.name is missing: say what the model is, such as huggingface, vllm, sklearn, xgboost, pytorch, tensorflow, onnx, triton or mlflow" $where) -}}
{{- end -}}
{{- if and $format (not $model.storageUri) (ne (include "kserve-lib.server" .) "huggingface") -}}
{{- fail (printf "%s.storageUri is missing: say where the model is, such as hf://, s3://, gs://, pvc://, oci:// (only huggingface can do without, with --model_id among its args)" $where) -}}
{{- end -}}
{{- end -}}
{{- include "kserve-lib.validateGRPC" . -}}
{{- include "kserve-lib.validateUri" (dict "root" . "key" (print $where ".storageUri") "uri" $model.storageUri) -}}
{{- include "kserve-lib.validateUri" (dict "root" . "key" (print $where ".newStorageUri") "uri" $model.newStorageUri) -}}
{{- include "kserve-lib.validateUri" (dict "root" . "key" "inferenceservice.explainer.storageUri" "uri" ($service.explainer).storageUri) -}}
{{- if and $model.storageKey (not (regexMatch "^(s3|hdfs|webhdfs)://" ($model.storageUri | default ""))) -}}
{{- fail (printf "%s.storageKey works with s3://, hdfs:// and webhdfs:// only, not with %q: name the Secret in inferenceservice.predictor.serviceAccountSecrets instead" $where ($model.storageUri | default "")) -}}
{{- end -}}
{{- end }}

{{/* KServe finds no runtime, or one whose port is not known. */}}
{{- define "kserve-lib.validateGRPC" -}}
{{- $model := ((.Values.inferenceservice).predictor).model | default dict -}}
{{- $where := "inferenceservice.predictor.model" -}}
{{- $kind := include "kserve-lib.kind" . -}}
{{- if and (eq $kind "model") (eq ($model.protocolVersion | default "") "grpc-v2") -}}
{{- $server := include "kserve-lib.server" . -}}
{{- $theirs := and $model.runtime (not (hasPrefix "kserve-" $model.runtime)) -}}
{{- if and (not $theirs) (has $server (list "kserve" "mlserver" "huggingface" "vllm" "tensorflow")) -}}
{{- fail (printf "%s.protocolVersion is grpc-v2, which KServe's runtime for %s does not speak: write v2, or name a runtime that speaks it in %s.runtime" $where $model.modelFormat.name $where) -}}
{{- end -}}
{{- if not (include "kserve-lib.modelPorts" . | fromYaml).ports -}}
{{- fail (printf "%s.protocolVersion is grpc-v2, and the port of this runtime's gRPC is not known: set %s.ports, such as [{name: h2c, containerPort: 9000}]" $where $where) -}}
{{- end -}}
{{- end -}}
{{- with $model.ports -}}
{{- $first := first . -}}
{{- $grpc := regexMatch "grpc|h2c" ($first.name | default "") -}}
{{- if and (eq ($model.protocolVersion | default "") "grpc-v2") (not $grpc) -}}
{{- fail (printf "%s.ports[0].name is %q: with grpc-v2 call it h2c, or KServe and Istio take the port for HTTP/1.1" $where ($first.name | default "")) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* (dict "root" $ "key" <the value's name> "uri" <it>) */}}
{{- define "kserve-lib.validateUri" -}}
{{- $uri := .uri | default "" -}}
{{- $known := list "hf" "s3" "gs" "pvc" "oci" "oci+native" "oci+fetch" "https" "http" "hdfs" "webhdfs" "file" -}}
{{- $known = concat $known ((.root.Values.platform).storageSchemes | default list) -}}
{{- if or (not $uri) (hasPrefix "/" $uri) -}}
{{- else if regexMatch "\\s" $uri -}}
{{- fail (printf "%s %q has a blank in it: remove it" .key $uri) -}}
{{- else if not (contains "://" $uri) -}}
{{- fail (printf "%s %q says no scheme: is it hf://%s? Known are %s" .key $uri $uri (join ", " $known)) -}}
{{- else if not (has (first (splitList "://" $uri)) $known) -}}
{{- fail (printf "%s %q has an unknown scheme: known are %s. Where the cluster has a ClusterStorageContainer for it, name it in platform.storageSchemes" .key $uri (join ", " $known)) -}}
{{- else if regexMatch "^https?://(www\\.)?huggingface\\.co/" $uri -}}
{{- fail (printf "%s %q is a web page: write hf://%s" .key $uri (regexReplaceAll "^https?://[^/]+/([^/]+/[^/]+).*$" $uri "${1}")) -}}
{{- else if hasPrefix "hf://" $uri -}}
{{- if contains "@" $uri -}}
{{- fail (printf "%s %q: a revision stands behind a colon: %s" .key $uri (replace "@" ":" $uri)) -}}
{{- end -}}
{{- if not (regexMatch "^hf://[^/:]+/[^/:]+(:[^/]+)?$" $uri) -}}
{{- fail (printf "%s %q must be hf://organisation/model or hf://organisation/model:revision" .key $uri) -}}
{{- end -}}
{{- else if regexMatch "^[a-z0-9+]+://(/|$)" $uri -}}
{{- if not (hasPrefix "file://" $uri) -}}
{{- fail (printf "%s %q lacks the %s: %s" .key $uri (ternary "claim's name" "host or bucket" (hasPrefix "pvc" $uri)) (ternary "pvc://claim/path" "scheme://name/path" (hasPrefix "pvc" $uri))) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "kserve-lib.validateCanary" -}}
{{- $predictor := (.Values.inferenceservice).predictor | default dict -}}
{{- $model := $predictor.model | default dict -}}
{{- $source := include "kserve-lib.source" . | fromYaml -}}
{{- if ne .Chart.Name "kserve-general" -}}
{{- range $field := list "newStorageUri" "newImage" "newImageTag" -}}
{{- if get $source $field -}}
{{- fail (printf "%s is set, which is a canary's, and %s serves one variant: use the chart kserve-general, or remove it" $field $.Chart.Name) -}}
{{- end -}}
{{- end -}}
{{- else if eq $source.kind "containers" -}}
{{- range $field := list "newStorageUri" "newImage" "newImageTag" -}}
{{- if get $model $field -}}
{{- fail (printf "inferenceservice.predictor.model.%s has no effect with inferenceservice.predictor.containers: set newImage or newImageTag of the container" $field) -}}
{{- end -}}
{{- end -}}
{{- else if and $source.newImageTag (not (or $source.image $source.newImage)) -}}
{{- fail "inferenceservice.predictor.model.newImageTag needs inferenceservice.predictor.model.image: which image has the tag?" -}}
{{- end -}}
{{- end }}

{{- define "kserve-lib.validateContainers" -}}
{{- $service := .Values.inferenceservice | default dict -}}
{{- range $part := list "predictor" "transformer" "explainer" -}}
{{- $names := list -}}
{{- range $index, $each := (get $service $part | default dict).containers -}}
{{- $name := ternary "kserve-container" ($each.name | default (printf "container-%d" $index)) (eq $index 0) -}}
{{- $which := printf "inferenceservice.%s.containers[%d]" $part $index -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "%s.name %q can't be a container's: lower case letters, digits and - are allowed" $which $name) -}}
{{- end -}}
{{- include "kserve-lib.validateTwice" (dict "which" $which "container" $each) -}}
{{- if has $name $names -}}
{{- fail (printf "inferenceservice.%s.containers has two of the name %s: the first one serves and is called kserve-container, whatever its name; call the other one something else" $part $name) -}}
{{- end -}}
{{- $names = append $names $name -}}
{{- end -}}
{{- end -}}
{{- if and ($service.explainer).type ($service.explainer).containers -}}
{{- fail "both inferenceservice.explainer.type and inferenceservice.explainer.containers are set: remove one" -}}
{{- end -}}
{{- end }}

{{/* What a container says under the talk's name and under Kubernetes'. (dict "which" "container") */}}
{{- define "kserve-lib.validateTwice" -}}
{{- range $field := list "readinessProbe" "livenessProbe" "startupProbe" "resources" -}}
{{- $given := list -}}
{{- range $name := list $field (print "var_" $field) (trimSuffix "s" (print "var_" $field)) | uniq -}}
{{- if get $.container $name }}{{ $given = append $given $name }}{{ end -}}
{{- end -}}
{{- if gt (len $given) 1 -}}
{{- fail (printf "%s has %s: these are names of one thing. Remove one" $.which (join " and " $given)) -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range concat (.container.env | default list) (.container.var_env | default list) -}}
{{- if has .name $names -}}
{{- fail (printf "%s.var_env sets %s twice: remove one" $.which .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end }}

{{- define "kserve-lib.validateResources" -}}
{{- $root := . -}}
{{- $predictor := (.Values.inferenceservice).predictor | default dict -}}
{{- $sections := dict "resources" .Values.resources "inferenceservice.predictor.model.resources" ($predictor.model).resources -}}
{{- range $index, $each := $predictor.containers -}}
{{- $_ := set $sections (printf "inferenceservice.predictor.containers[%d].var_resource" $index) (coalesce $each.var_resource $each.var_resources $each.resources) -}}
{{- end -}}
{{- $resource := include "kserve-lib.gpuResource" . -}}
{{- range $key, $section := $sections -}}
{{- $section = $section | default dict -}}
{{- $request := include "kserve-lib.amount" (get $section "requestGPU") -}}
{{- $limit := include "kserve-lib.amount" (get $section "limitGPU") -}}
{{- if and $request $limit (ne $request $limit) -}}
{{- fail (printf "%s.requestGPU is %s and limitGPU is %s: Kubernetes shares no GPU, so both must be the same. Set one of them alone" $key $request $limit) -}}
{{- end -}}
{{- end -}}
{{- $served := $predictor.containers | default (list (dict "resources" (($predictor.model).resources))) -}}
{{- range $index, $each := $served -}}
{{- $own := coalesce $each.var_resource $each.var_resources $each.resources -}}
{{- $all := include "kserve-lib.resources" (dict "root" $root "own" $own "shared" (eq $index 0)) | fromYaml -}}
{{- range $name, $request := $all.requests -}}
{{- $limit := get ($all.limits | default dict) $name -}}
{{- if $limit -}}
{{- if gt (include "kserve-lib.quantity" $request | float64) (include "kserve-lib.quantity" $limit | float64) -}}
{{- fail (printf "resources: the request of %s for %s is above the limit of %s, and the pod would be refused. Raise the limit or lower the request" $request $name $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A quantity's number. */}}
{{- define "kserve-lib.quantity" -}}
{{- $unit := regexFind "[A-Za-z]+$" . -}}
{{- $factors := dict "m" 0.001 "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 -}}
{{- mulf (trimSuffix $unit . | float64) (get $factors $unit | default 1.0) -}}
{{- end }}

{{- define "kserve-lib.validateRest" -}}
{{- $service := .Values.inferenceservice | default dict -}}
{{- range $key := list "serving.kserve.io/deploymentMode" "serving.kserve.io/autoscalerClass" -}}
{{- if hasKey ($service.annotations | default dict) $key -}}
{{- fail (printf "inferenceservice.annotations sets %s, which is the chart's: it works in KServe's Standard mode alone, and `autoscaling` says what scales. Remove it" $key) -}}
{{- end -}}
{{- end -}}
{{- if hasKey ($service.labels | default dict) "networking.kserve.io/visibility" -}}
{{- fail "inferenceservice.labels sets networking.kserve.io/visibility, which is the chart's: a route that KServe makes leads past the token limits, and `exposeModel` publishes the model. Remove it" -}}
{{- end -}}
{{- $gpu := (.Values.platform).gpu | default dict -}}
{{- if and (eq ($gpu.nodeLabel | default "") "eks.amazonaws.com/nodegroup") (hasKey $gpu "nodeLabelValue") (not $gpu.nodeLabelValue) (not .Values.clusterName) -}}
{{- fail "platform.gpu.nodeLabel is eks.amazonaws.com/nodegroup, whose value is <clusterName>-gpu: set clusterName, or platform.gpu.nodeLabelValue" -}}
{{- end -}}
{{- include "kserve-lib.validateGraph" . -}}
{{- end }}

{{- define "kserve-lib.validateGraph" -}}
{{- with (.Values.inferenceservice).graph -}}
{{- if not (hasKey . "root") -}}
{{- fail "inferenceservice.graph has no node `root`: requests enter there" -}}
{{- end -}}
{{- range $node, $router := . -}}
{{- if not $router.steps -}}
{{- fail (printf "inferenceservice.graph.%s has no steps" $node) -}}
{{- end -}}
{{- if not (has $router.routerType (list "Sequence" "Splitter" "Ensemble" "Switch")) -}}
{{- fail (printf "inferenceservice.graph.%s.routerType must be Sequence, Splitter, Ensemble or Switch" $node) -}}
{{- end -}}
{{- $sum := 0 -}}
{{- range $router.steps -}}
{{- $sum = add $sum (.weight | default 0 | int) -}}
{{- if and .nodeName (not (hasKey $.Values.inferenceservice.graph .nodeName)) -}}
{{- fail (printf "inferenceservice.graph.%s has a step to the node %s, which there is none of: it has %s" $node .nodeName (keys $.Values.inferenceservice.graph | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $router.routerType "Splitter") (ne (int $sum) 100) -}}
{{- fail (printf "inferenceservice.graph.%s: the weights of a Splitter's steps must be 100 together, and are %d" $node $sum) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $.Chart.Name "kserve-general") (not (has (include "kserve-lib.protocol" $) (list "v1" "v2"))) -}}
{{- range . }}{{ range .steps }}{{ if not (or .serviceName .serviceUrl .nodeName) -}}
{{- fail "inferenceservice.graph: a step without serviceName, serviceUrl and nodeName calls this release, whose protocol is neither v1 nor v2: give the step a serviceUrl" -}}
{{- end }}{{ end }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end }}
