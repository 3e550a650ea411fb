{{- define "tokenweir.trial.labels" -}}
{{ include "tokenweir.selectorLabels" . }}
app.kubernetes.io/component: trial-store
{{- end -}}

{{- define "tokenweir.trial.name" -}}
{{- printf "%s-trial-%s" (include "tokenweir.fullname" .root) .store -}}
{{- end -}}

{{- define "tokenweir.trial.redis.url" -}}
{{- printf "redis://%s.%s.svc:6379/0" (include "tokenweir.trial.name" (dict "root" . "store" "redis")) .Release.Namespace -}}
{{- end -}}

{{/* The pod's own name: the one that the replica set knows it by. */}}
{{- define "tokenweir.trial.mongo.host" -}}
{{- $name := include "tokenweir.trial.name" (dict "root" . "store" "mongo") -}}
{{- printf "%s-0.%s.%s.svc:27017" $name $name .Release.Namespace -}}
{{- end -}}

{{- define "tokenweir.trial.mongo.url" -}}
{{- printf "mongodb://%s/?replicaSet=rs0" (include "tokenweir.trial.mongo.host" .) -}}
{{- end -}}

{{- define "tokenweir.trial.redis.container" -}}
image: {{ (.Values.trial).valkeyImage | default "docker.io/valkey/valkey:8.1" | quote }}
# Counters outlive the process, as far as the volume does; nothing is thrown out for want of memory.
command: [valkey-server]
args: [--dir, /data, --appendonly, "yes", --save, "", --maxmemory, 200mb, --maxmemory-policy, noeviction]
ports: [{name: tcp-redis, containerPort: 6379, protocol: TCP}]
readinessProbe: {tcpSocket: {port: tcp-redis}, periodSeconds: 5}
livenessProbe: {tcpSocket: {port: tcp-redis}, periodSeconds: 10, failureThreshold: 6}
resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 384Mi}}
volumeMounts: [{name: data, mountPath: /data}]
{{- end -}}

{{- define "tokenweir.trial.mongo.container" -}}
image: {{ (.Values.trial).mongoImage | default "docker.io/library/mongo:8.0" | quote }}
command: [mongod]
args: [--replSet, rs0, --bind_ip_all, --dbpath, /data/db, --wiredTigerCacheSizeGB, "0.25"]
env: [{name: HOME, value: /tmp}]
ports: [{name: tcp-mongo, containerPort: 27017, protocol: TCP}]
# The first start makes the replica set, of this one member; transactions and change streams need one.
startupProbe:
  exec:
    command:
      - mongosh
      - --quiet
      - --norc
      - --eval
      - >-
        try { rs.status() } catch (error) { rs.initiate({_id: "rs0", members: [{_id: 0, host: "{{ include "tokenweir.trial.mongo.host" . }}"}]}) }
        if (!db.hello().isWritablePrimary) quit(1)
  periodSeconds: 5
  timeoutSeconds: 15
  failureThreshold: 60
readinessProbe: {tcpSocket: {port: tcp-mongo}, periodSeconds: 5}
livenessProbe: {tcpSocket: {port: tcp-mongo}, periodSeconds: 10, failureThreshold: 6}
resources: {requests: {cpu: 100m, memory: 256Mi}, limits: {memory: 1Gi}}
volumeMounts: [{name: data, mountPath: /data/db}, {name: tmp, mountPath: /tmp}]
{{- end -}}
