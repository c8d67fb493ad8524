{{- /*
engineroom.backup.pod: the spec of a pod that copies between stores, with the command of one of the two ways.
Call with: dict "root" $ "name" "backup" "args" (list …) "volumes" "<YAML list items>" "mounts" "<YAML list items>"
*/ -}}
{{- define "engineroom.backup.pod" -}}
{{- $name := .name -}}
{{- $args := .args -}}
{{- $volumes := .volumes -}}
{{- $mounts := .mounts -}}
{{- with .root -}}
serviceAccountName: {{ include "engineroom.names.serviceAccount" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
restartPolicy: Never
securityContext: {{- include "engineroom.security.pod" . | nindent 2 }}
{{- with include "engineroom.images.pullSecrets" . }}
{{- . | nindent 0 }}
{{- end }}
containers:
  - name: {{ $name }}
    image: {{ include "engineroom.images.reference" (dict "root" . "image" .Values.images.toolkit) }}
    imagePullPolicy: {{ .Values.images.pullPolicy }}
    command: [engineroom]
    args: {{- toYaml $args | nindent 6 }}
    env:
      {{- include "engineroom.triton.storeEnvironment" . | nindent 6 }}
      {{- range $name, $value := .Values.backup.environment }}
      - name: {{ $name | quote }}
        value: {{ $value | quote }}
      {{- end }}
    {{- $secrets := list .Values.artifact.credentialsSecret .Values.backup.credentialsSecret | compact | uniq }}
    {{- with $secrets }}
    # Of two with the same key the later one wins: the backup's.
    envFrom:
      {{- range . }}
      - secretRef:
          name: {{ . | quote }}
      {{- end }}
    {{- end }}
    terminationMessagePolicy: FallbackToLogsOnError
    resources:
      requests:
        cpu: {{ .Values.backup.cpu | quote }}
        memory: {{ .Values.backup.memory }}
        ephemeral-storage: 1Gi
      limits:
        memory: {{ .Values.backup.memory }}
    securityContext: {{- include "engineroom.security.container" . | nindent 6 }}
    volumeMounts:
      {{- with $mounts }}
      {{- . | nindent 6 }}
      {{- end }}
      - name: tmp
        mountPath: /tmp
volumes:
  {{- with $volumes }}
  {{- . | nindent 2 }}
  {{- end }}
  - name: tmp
    emptyDir:
      sizeLimit: 1Gi
{{- end -}}
{{- end -}}
