{{- /*
Pieces that more than one container of the Triton pod has.
*/ -}}

{{- /*
engineroom.triton.nodes: nodes that one replica spans; 1 unless a LeaderWorkerSet runs it.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.nodes" -}}
{{- if eq .Values.triton.workload.kind "LeaderWorkerSet" -}}
{{- divf (int .Values.model.worldSize) (max 1 (int .Values.gpu.perNode)) | ceil | int -}}
{{- else -}}1{{- end -}}
{{- end -}}

{{- /* engineroom.triton.gpus: GPUs of one pod; 0 for the runtime that uses none. Call with the root context. */ -}}
{{- define "engineroom.triton.gpus" -}}
{{- if eq .Values.model.runtime "ctranslate2" -}}0
{{- else -}}{{- div (int .Values.model.worldSize) (include "engineroom.triton.nodes" . | int) -}}{{- end -}}
{{- end -}}

{{- /*
engineroom.triton.sharedMemory: 1 GiB for Triton and NCCL, 64 MiB for each of four Python instances, 256 MiB for each
rank of the pod but the first (tools/engineroom/planning/replica.py), unless a value says better.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.sharedMemory" -}}
{{- $further := sub (max 1 (include "engineroom.triton.gpus" . | int)) 1 -}}
{{- default (printf "%dMi" (add 1280 (mul 256 $further))) .Values.triton.sharedMemory -}}
{{- end -}}

{{- /*
engineroom.triton.replicas: the field `replicas`, or nothing where something else owns the scale: an upgrade would
set it back, and Helm 4 even refuses to. Call with the root context.
*/ -}}
{{- define "engineroom.triton.replicas" -}}
{{- if and (eq .Values.autoscaling.kind "none") (not (kindIs "invalid" .Values.triton.replicas)) -}}
replicas: {{ .Values.triton.replicas }}
{{- end -}}
{{- end -}}

{{- /*
engineroom.triton.progressSeconds: the wait for a tag, the download and the load, all at their worst, are still progress.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.progressSeconds" -}}
{{- $waited := ternary (int .Values.artifact.waitSeconds) 0 (contains ":recipe-" (include "engineroom.triton.reference" .)) -}}
{{- add .Values.artifact.pullSeconds .Values.triton.loadSeconds $waited -}}
{{- end -}}

{{- /*
engineroom.triton.reference: the artifact that is served: the one that is named, else the one that the engine-build
Job is going to publish. Call with the root context.
*/ -}}
{{- define "engineroom.triton.reference" -}}
{{- if and .Values.engineBuild.enabled (not .Values.artifact.ref) -}}
{{- include "engineroom.engineBuild.reference" . -}}
{{- else -}}
{{- .Values.artifact.ref -}}
{{- end -}}
{{- end -}}

{{- /*
engineroom.triton.resources: what a container asks for. Init containers ask for the same as the server: a pod
counts as the larger of the two, so this is free, and nothing is killed for a smaller limit. The disk is asked for
by all, because it stays in use as long as the pod lives; a cache or a claim is not the pod's. No processor limit:
throttling stretches every token.
Call with: dict "root" $ "gpus" 1
*/ -}}
{{- define "engineroom.triton.resources" -}}
{{- $own := and (eq .root.Values.artifact.source "pull") (eq .root.Values.artifact.cache.kind "none") -}}
requests:
  cpu: {{ .root.Values.triton.cpu | quote }}
  memory: {{ .root.Values.triton.memory }}
  ephemeral-storage: {{ ternary .root.Values.artifact.storage .root.Values.triton.temporaryStorage $own }}
  {{- if gt (int .gpus) 0 }}
  {{ .root.Values.gpu.resource }}: {{ .gpus }}
  {{- end }}
limits:
  memory: {{ .root.Values.triton.memory }}
  {{- if gt (int .gpus) 0 }}
  {{ .root.Values.gpu.resource }}: {{ .gpus }}
  {{- end }}
{{- end -}}

{{- /*
engineroom.triton.environment: of the server and of preflight, which has to judge what the server will get. HOME for
programs that write caches there; the root file system is read-only. NVIDIA_VISIBLE_DEVICES is left to the device
plugin: `all` would hand in GPUs that belong to other pods.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.environment" -}}
- name: HOME
  value: /tmp
{{- if gt (int (include "engineroom.triton.gpus" .)) 0 }}
- name: NVIDIA_DRIVER_CAPABILITIES
  value: compute,utility
{{- end }}
{{- range $name, $value := .Values.triton.environment }}
- name: {{ $name | quote }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- /*
engineroom.triton.toolkitEnvironment: of the containers that run the toolkit image. Under NVIDIA's RuntimeClass a
container without a request for GPUs sees none only where it says so.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.toolkitEnvironment" -}}
- name: HOME
  value: /tmp
{{- if .Values.gpu.runtimeClass }}
- name: NVIDIA_VISIBLE_DEVICES
  value: void
{{- end }}
{{- end -}}

{{- /*
engineroom.triton.tree: the folder of the volume `models` that holds the served tree; empty: the volume itself.
A pulled tree is a folder of its volume: `engineroom pull` puts the whole tree in place by one rename, and a
mount point cannot be renamed. In a cache, which many releases and versions share, the folder is named by the digest.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.tree" -}}
{{- if eq .Values.artifact.source "pvc" -}}{{ .Values.artifact.pvc.subPath }}
{{- else if eq .Values.artifact.source "hostPath" -}}
{{- else if eq .Values.artifact.cache.kind "none" -}}models
{{- else -}}trees/{{ include "engineroom.triton.digest" . }}
{{- end -}}
{{- end -}}

{{- /* engineroom.triton.digest: the 64 digits of the artifact's digest; empty for a tag. Call with the root context. */ -}}
{{- define "engineroom.triton.digest" -}}
{{- regexFind "[0-9a-f]{64}$" (regexFind "@sha256:[0-9a-f]{64}$" (include "engineroom.triton.reference" .)) -}}
{{- end -}}

{{- /* engineroom.triton.cached: "true" where pods share what they pull. Call with the root context. */ -}}
{{- define "engineroom.triton.cached" -}}
{{- if and (eq .Values.artifact.source "pull") (ne .Values.artifact.cache.kind "none") }}true{{ end -}}
{{- end -}}

{{- /*
engineroom.triton.treeMount: the served tree at /models, which the C++ backend's config.pbtxt name in absolute paths.
The kubelet resolves a subPath when a container is created, so it finds what the init container `pull` has finished.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.treeMount" -}}
- name: models
  mountPath: /models
  {{- with include "engineroom.triton.tree" . }}
  subPath: {{ . }}
  {{- end }}
  readOnly: true
{{- end -}}

{{- /*
engineroom.triton.serverMounts: what preflight and the server see, and both the same, so that preflight judges the
shared memory that the server will get.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.serverMounts" -}}
{{ include "engineroom.triton.treeMount" . }}
{{- if include "engineroom.triton.cached" . }}
- name: models
  mountPath: /leases
  subPath: leases
  readOnly: true
{{- end }}
{{- if .Values.artifact.engines.hostPath }}
- name: engines
  mountPath: {{ .Values.artifact.engines.mountPath }}
  readOnly: true
{{- end }}
- name: shared-memory
  mountPath: /dev/shm
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- /*
engineroom.triton.volumes: the volumes of a pod. The claims that a StatefulSet makes for itself are no part of this.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.volumes" -}}
{{- if eq .Values.artifact.source "pvc" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.artifact.pvc.claim | quote }}
    readOnly: true
{{- else if eq .Values.artifact.source "hostPath" }}
- name: models
  hostPath:
    path: {{ .Values.artifact.hostPath.path | quote }}
    type: Directory
{{- else if eq .Values.artifact.cache.kind "hostPath" }}
- name: models
  hostPath:
    path: {{ .Values.artifact.cache.path | quote }}
    # Not DirectoryOrCreate, which would make a folder of root's that the pod cannot write to.
    type: Directory
{{- else if eq .Values.artifact.cache.kind "none" }}
- name: models
  emptyDir:
    sizeLimit: {{ .Values.artifact.storage }}
{{- else if .Values.artifact.cache.claim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.artifact.cache.claim | quote }}
{{- end }}
{{- with .Values.artifact.engines.hostPath }}
- name: engines
  hostPath:
    path: {{ . | quote }}
    type: Directory
{{- end }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ include "engineroom.triton.sharedMemory" . }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.triton.temporaryStorage }}
{{- if gt (include "engineroom.triton.nodes" . | int) 1 }}
- name: mpi-keys
  secret:
    secretName: {{ .Values.triton.mpi.secret | quote }}
    # Readable for the group that fsGroup names: ssh minds that only in files that are its own user's.
    defaultMode: 0440
{{- end }}
{{- if and .Values.gateway.enabled .Values.gateway.apiKeysSecret }}
- name: api-keys
  secret:
    secretName: {{ .Values.gateway.apiKeysSecret | quote }}
    defaultMode: 0440
{{- end }}
{{- end -}}
