{{- /*
Pieces that more than one container of the Triton pod has.
*/ -}}

{{- /* engineroom.triton.gpus: GPUs of one pod; 0 for the runtime that uses none. Call with the root context. */ -}}
{{- define "engineroom.triton.gpus" -}}
{{- ternary 0 (int .Values.model.worldSize) (eq .Values.model.runtime "ctranslate2") -}}
{{- end -}}

{{- /*
engineroom.triton.resources: what a container asks for. Init containers ask for the same as the server: a pod
counts as the larger of the two, so this is free, and nothing is killed for a smaller limit. The disk is asked for
by all, because it stays in use as long as the pod lives. No processor limit: throttling stretches every token.
Call with: dict "root" $ "gpus" 1
*/ -}}
{{- define "engineroom.triton.resources" -}}
requests:
  cpu: {{ .root.Values.triton.cpu | quote }}
  memory: {{ .root.Values.triton.memory }}
  ephemeral-storage: {{ .root.Values.artifact.storage }}
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
engineroom.triton.environment: HOME for programs that write caches there; the root file system is read-only.
*/ -}}
{{- define "engineroom.triton.environment" -}}
- name: HOME
  value: /tmp
{{- end -}}

{{- /*
engineroom.triton.serverMounts: what preflight and the server see, and both the same, so that preflight judges the
shared memory that the server will get.
/models is a folder of the volume, not the volume itself: `engineroom pull` puts the whole tree in place by one
rename, and a mount point cannot be renamed. So pull sees the volume at /volume and makes /volume/models, and
this subPath, which the kubelet resolves when each container is created, finds the finished folder there: init containers have
ended by then. The C++ backend's config.pbtxt holds absolute paths below /models.
*/ -}}
{{- define "engineroom.triton.serverMounts" -}}
- name: models
  mountPath: /models
  subPath: models
  readOnly: true
- name: shared-memory
  mountPath: /dev/shm
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- /*
engineroom.triton.scheduling: nodes of the GPU class, and the taint that GPU nodes carry.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.scheduling" -}}
{{- $gpus := int (include "engineroom.triton.gpus" .) -}}
{{- if and (gt $gpus 0) .Values.gpu.products }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: nvidia.com/gpu.product
              operator: In
              values: {{- toYaml .Values.gpu.products | nindent 16 }}
{{- end }}
{{- with .Values.triton.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or (gt $gpus 0) .Values.triton.tolerations }}
tolerations:
  {{- if gt $gpus 0 }}
  - key: {{ .Values.gpu.resource }}
    operator: Exists
    effect: NoSchedule
  {{- end }}
  {{- with .Values.triton.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}
