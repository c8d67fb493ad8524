{{- /*
engineroom.triton.preflight: the init container that compares the engine with the place where it is to run. It is
the server's twin (image, GPUs, mounts, environment), so that it judges what the server will get. A mismatch ends it
with exit code 3, and its sentence becomes the pod's status.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.preflight" -}}
{{- $gpus := int (include "engineroom.triton.gpus" .) -}}
- name: preflight
  image: {{ include "engineroom.images.reference" (dict "root" $ "image" .Values.images.server) }}
  imagePullPolicy: {{ .Values.images.pullPolicy }}
  command: [python3]
  args:
    - /models/preflight.py
    {{- if gt (include "engineroom.triton.nodes" . | int) 1 }}
    # Of the engine's ranks, this node runs some.
    - --gpus={{ $gpus }}
    {{- end }}
  env: {{- include "engineroom.triton.environment" . | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  resources: {{- include "engineroom.triton.resources" (dict "root" $ "gpus" $gpus) | nindent 4 }}
  securityContext: {{- include "engineroom.security.container" . | nindent 4 }}
  volumeMounts: {{- include "engineroom.triton.serverMounts" . | nindent 4 }}
{{- end -}}
