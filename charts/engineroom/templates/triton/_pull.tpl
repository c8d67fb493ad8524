{{- /*
engineroom.triton.pull: the init container that downloads and verifies the model, for the source `pull`.
Without a cache it fills the folder `models` of the pod's own disk. With one, pods of all releases share the volume:
the tree lies in it under its digest, one download runs at a time (a lock), and files that two trees have are there once.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.pull" -}}
{{- $reference := include "engineroom.triton.reference" . -}}
- name: pull
  image: {{ include "engineroom.images.reference" (dict "root" $ "image" .Values.images.toolkit) }}
  imagePullPolicy: {{ .Values.images.pullPolicy }}
  command: [engineroom]
  args:
    - pull
    - {{ $reference | quote }}
    {{- if include "engineroom.triton.cached" . }}
    - --cache
    - /volume
    - --cache-size
    - {{ .Values.artifact.storage }}
    {{- else }}
    - --to
    - /volume/{{ include "engineroom.triton.tree" . }}
    {{- end }}
    {{- if not (contains "@" $reference) }}
    # The tag that an engine-build Job publishes may not be there yet: waiting beats a crash loop.
    - --wait
    - {{ .Values.artifact.waitSeconds | quote }}
    {{- end }}
  env: {{- include "engineroom.triton.storeEnvironment" . | nindent 4 }}
  {{- with .Values.artifact.credentialsSecret }}
  envFrom:
    - secretRef:
        name: {{ . | quote }}
  {{- end }}
  # The one sentence of an error becomes the pod's status.
  terminationMessagePolicy: FallbackToLogsOnError
  resources: {{- include "engineroom.triton.resources" (dict "root" $ "gpus" 0) | nindent 4 }}
  securityContext: {{- include "engineroom.security.container" . | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /volume
    - name: tmp
      mountPath: /tmp
{{- end -}}

{{- /*
engineroom.triton.storeEnvironment: of every container that reads the artifact's store. Call with the root context.
*/ -}}
{{- define "engineroom.triton.storeEnvironment" -}}
{{ include "engineroom.triton.toolkitEnvironment" . }}
{{- range $name, $value := .Values.artifact.environment }}
- name: {{ $name | quote }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}
