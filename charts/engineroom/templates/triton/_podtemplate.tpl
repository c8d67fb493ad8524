{{- /*
engineroom.triton.podTemplate: metadata and spec of the pods that serve, the same under every kind of workload.
Call with: dict "root" $ "component" "triton"; the component is `triton-worker` in the nodes of a group that only
compute, which no Service leads to.
*/ -}}
{{- define "engineroom.triton.podTemplate" -}}
{{- $root := .root -}}
{{- $leads := eq .component "triton" -}}
{{- with .root -}}
metadata:
  labels: {{- include "engineroom.labels.pod" (dict "root" $root "component" $.component) | nindent 4 }}
  {{- with .Values.triton.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "engineroom.names.serviceAccount" . | quote }}
  automountServiceAccountToken: false
  # One set of variables for every Service of the namespace is of no use here.
  enableServiceLinks: false
  {{- with .Values.gpu.runtimeClass }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- with include "engineroom.names.priorityClass" . }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  securityContext: {{- include "engineroom.security.pod" . | nindent 4 }}
  {{- with include "engineroom.images.pullSecrets" . }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- $scheduling := dict "root" $root "component" $.component "gpus" (include "engineroom.triton.gpus" . | int) }}
  {{- $_ := set $scheduling "nodeSelector" .Values.triton.nodeSelector }}
  {{- $_ := set $scheduling "tolerations" .Values.triton.tolerations }}
  {{- $_ := set $scheduling "spread" (and .Values.triton.topologySpread $leads) }}
  {{- with include "engineroom.scheduling.pod" $scheduling | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  # preStop, then the answers that are running, then 10 seconds to leave memory and GPU.
  terminationGracePeriodSeconds: {{ add .Values.triton.preStopSeconds .Values.triton.drainSeconds 10 }}
  {{- $pulls := eq .Values.artifact.source "pull" }}
  {{- if or $pulls .Values.triton.preflight }}
  initContainers:
    {{- if $pulls }}
    {{- include "engineroom.triton.pull" . | nindent 4 }}
    {{- end }}
    {{- if .Values.triton.preflight }}
    {{- include "engineroom.triton.preflight" . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    {{- if $leads }}
    {{- include "engineroom.triton.server" . | nindent 4 }}
    {{- if .Values.gateway.enabled }}
    {{- include "engineroom.gateway.container" . | nindent 4 }}
    {{- end }}
    {{- else }}
    {{- include "engineroom.triton.worker" . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "engineroom.triton.volumes" . | trim | nindent 4 }}
{{- end -}}
{{- end -}}
